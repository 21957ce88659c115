"""Every exchange, queue, stream and binding, with the reason for each argument. No I/O.

Limits are arguments, taken from the settings, so that each queue and stream has them wherever it is declared. Policies
are left to operators: there are none here, and those that exist are never changed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rabbit2docker.amqp.users import UserSpec, make_users
from rabbit2docker.settings.topology import TopologySettings
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    CANCEL_LOG_STREAM,
    CANCEL_QUEUE,
    DEAD_LETTER_EXCHANGE,
    DEAD_QUEUE,
    DROPPED_EXCHANGE,
    DROPPED_QUEUE,
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    REQUESTS_EXCHANGE,
    REQUESTS_QUEUE,
    RESULTS_EXCHANGE,
    RESULTS_LOG_EXCHANGE,
    RETRY_EXCHANGE,
    STATE_QUEUE,
    UNLISTED_TENANT,
    UNROUTED_EXCHANGE,
    UNROUTED_QUEUE,
    WAITING_LOG_STREAM,
    Lane,
    Priority,
    cancel_key,
    entry_exchange,
    hub_bindings,
    index_bindings,
    make_ladder,
    phase_key,
    request_key,
    retry_queue,
    stream_bindings,
    tenant_index,
    tenant_phases,
    tenant_stream,
    waiting_queue,
)

KEPT_DELIVERY_LIMIT: Final = 1_000_000_000
"""For dead letters, as listing delivers them, and for unrouted requests, which are held until their queue exists again.
RabbitMQ 3 has no value for `unlimited`."""
INDEX_SEGMENT_BYTES: Final = 2_000_000
"""An index has a hundredth of the size of its stream, and shall not keep what the stream has dropped long ago."""
HUB_QUEUE_EXPIRES_MS: Final = 600_000
STATE_EXPIRES_MS: Final = 600_000
"""Time after the last consumer has gone until consumers with other records may take over the virtual host."""
HUB_QUEUE_LENGTH: Final = 100_000
DEFAULTS: Final = TopologySettings()
QUORUM: Final = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
QUORUM_LIMITS: Final = {"x-quorum-initial-group-size": "quorum_replicas"}
STREAM_LIMITS: Final = {
    # Retention removes whole segments and always keeps one: RabbitMQ's default of 500 MB would keep everything.
    "x-stream-max-segment-size-bytes": "segment_bytes",
    "x-initial-cluster-size": "stream_replicas",
}
WORK_QUEUES: Final = (REQUESTS_QUEUE, BULK_QUEUE, CANCEL_QUEUE)
WAITING_LOG: Final = {"x-max-age": "2D", "x-max-length-bytes": 50_000_000}
"""Consumers read the whole of it when they start."""
WAITING_LOG_SEGMENT_BYTES: Final = 5_000_000

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """A durable exchange."""

    name: str
    type: str
    arguments: Arguments = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return `exchange`."""
        return "exchange"


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A durable queue or stream."""

    name: str
    arguments: Arguments
    limits: Mapping[str, str] = field(default_factory=dict)
    """The setting behind each argument that may be another one in RabbitMQ, as it cannot be changed there."""

    @property
    def kind(self) -> str:
        """Return `stream` or `queue`."""
        return "stream" if self.arguments.get("x-queue-type") == "stream" else "queue"


@dataclass(frozen=True, slots=True)
class BindingSpec:
    """A binding of a queue."""

    exchange: str
    queue: str
    key: str

    def __str__(self) -> str:
        """Name it for messages."""
        return f"binding of {self.queue} to {self.exchange} with key {self.key!r}"


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything, in the order in which it can be declared."""

    exchanges: tuple[ExchangeSpec, ...]
    queues: tuple[QueueSpec, ...]
    bindings: tuple[BindingSpec, ...]
    users: tuple[UserSpec, ...]
    obsolete: tuple[BindingSpec, ...] = ()
    """Bindings of earlier versions, which `declare` removes."""

    @property
    def objects(self) -> "tuple[ExchangeSpec | QueueSpec, ...]":
        """Return all exchanges, queues and streams, in the order in which they can be declared."""
        return (*self.exchanges, *self.queues)


def _queue(
    name: str, arguments: Arguments, settings: TopologySettings, limits: Mapping[str, str]
) -> QueueSpec:
    values = {argument: _value(argument, getattr(settings, setting)) for argument, setting in limits.items()}
    given = {argument: value for argument, value in values.items() if value is not None}
    return QueueSpec(name, arguments | given, limits)


def _value(argument: str, setting: Any) -> Any:
    """Return the value of an argument: ages are days in the settings."""
    match argument:
        case "x-max-age":
            return f"{setting}D"
        case "x-message-ttl":
            return setting * 24 * 3600 * 1000
        case _:
            return setting


def _work_queue(name: str, settings: TopologySettings, dropped: str = DROPPED_EXCHANGE) -> QueueSpec:
    arguments = {
        **QUORUM,
        "x-dead-letter-exchange": dropped,
        # At-least-once is silently at-most-once unless the overflow is reject-publish.
        "x-dead-letter-strategy": "at-least-once",
    }
    # RabbitMQ 4 has a delivery limit by default, and drops the message if there is no dead-letter exchange.
    limits = {"x-max-length": "requests_length", "x-delivery-limit": "delivery_limit", **QUORUM_LIMITS}
    return _queue(name, arguments, settings, limits)


def _retry_queues(settings: TopologySettings) -> Iterable[tuple[QueueSpec, BindingSpec]]:
    limits = {"x-max-length": "retry_length", "x-delivery-limit": "delivery_limit", **QUORUM_LIMITS}
    for queue in WORK_QUEUES:
        for rung in make_ladder(settings.retry_pauses).rungs:
            name = retry_queue(rung, queue)
            arguments = {
                **QUORUM,
                # One TTL per queue: messages expire at its head only, so mixed TTLs would block each other.
                "x-message-ttl": rung.seconds * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": queue,
                "x-dead-letter-strategy": "at-least-once",
            }
            yield _queue(name, arguments, settings, limits), BindingSpec(RETRY_EXCHANGE, name, name)


def _kept_queues(settings: TopologySettings) -> Iterable[QueueSpec]:
    """Yield the queues whose messages wait for an operator, or for another queue."""
    arguments = {**QUORUM, "x-delivery-limit": KEPT_DELIVERY_LIMIT}
    dead = {"x-max-length": "dead_letters_length", "x-message-ttl": "dead_letters_days", **QUORUM_LIMITS}
    yield _queue(DEAD_QUEUE, arguments, settings, dead)
    unrouted = {"x-max-length": "requests_length", **QUORUM_LIMITS}
    yield _queue(UNROUTED_QUEUE, arguments, settings, unrouted)


def _stream(name: str, settings: TopologySettings, limits: Mapping[str, str]) -> QueueSpec:
    arguments = {"x-queue-type": "stream", "x-stream-filter-size-bytes": 64}
    return _queue(name, arguments, settings, {**limits, **STREAM_LIMITS})


def _tenant_streams(tenant: str, settings: TopologySettings) -> Iterable[QueueSpec]:
    """Yield the stream with a tenant's events, its index and its phases."""
    limits = {"x-max-age": "events_days", "x-max-length-bytes": "events_bytes"}
    yield _stream(tenant_stream(tenant), settings, limits)
    segments = {"x-stream-max-segment-size-bytes": INDEX_SEGMENT_BYTES}
    for name in (tenant_index(tenant), tenant_phases(tenant)):
        small = _stream(name, settings, limits)
        yield replace(small, arguments={**small.arguments, **segments})


def waiting_queues(tenants: Iterable[str]) -> list[str]:
    """Return the queues in which requests wait for a slot."""
    return [waiting_queue(tenant, lane) for tenant in (*tenants, UNLISTED_TENANT) for lane in Lane]


def _waiting_log(settings: TopologySettings) -> QueueSpec:
    stream = _stream(WAITING_LOG_STREAM, settings, {})
    segments = {"x-stream-max-segment-size-bytes": WAITING_LOG_SEGMENT_BYTES}
    return replace(stream, arguments={**stream.arguments, **WAITING_LOG, **segments})


def state_queue(state_id: str) -> QueueSpec:
    """Return the queue that consumers with the records `state_id` declare and hold, and that others cannot declare."""
    arguments = {
        # Replicated, so that it can be declared while one node of a cluster is away.
        "x-queue-type": "quorum",
        "x-expires": STATE_EXPIRES_MS,
        "x-overflow": "reject-publish",
        # Of the arguments that RabbitMQ compares, the one that holds a text. It has no effect on an empty queue.
        "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        "x-dead-letter-routing-key": state_id,
    }
    return QueueSpec(STATE_QUEUE, arguments)


def hub_queue_arguments(queue_type: str) -> Arguments:
    """Return the arguments of a hub's queue. It outlives a restart of the hub, but not the hub, and is bounded."""
    arguments = {
        "x-queue-type": queue_type,
        "x-expires": HUB_QUEUE_EXPIRES_MS,
        "x-max-length": HUB_QUEUE_LENGTH,
        "x-overflow": "drop-head",
    }
    # Each reconnect of the hub counts as a delivery of what it had not acknowledged.
    return arguments | ({"x-delivery-limit": KEPT_DELIVERY_LIMIT} if queue_type == "quorum" else {})


def temporary_queue_arguments() -> Arguments:
    """Return the arguments of a queue that ends with its reader. It is bounded, too."""
    return {"x-queue-type": "classic", "x-max-length": HUB_QUEUE_LENGTH, "x-overflow": "drop-head"}


def _request_bindings() -> Iterable[BindingSpec]:
    for priority, queue in ((Priority.INTERACTIVE, REQUESTS_QUEUE), (Priority.BULK, BULK_QUEUE)):
        yield BindingSpec(REQUESTS_EXCHANGE, queue, request_key("*", priority))
    yield BindingSpec(REQUESTS_EXCHANGE, CANCEL_QUEUE, cancel_key("*"))
    yield BindingSpec(UNROUTED_EXCHANGE, UNROUTED_QUEUE, "")
    # For unrouted messages: a way into each queue that does not depend on the bindings of `builds`.
    for queue in WORK_QUEUES:
        yield BindingSpec(RETRY_EXCHANGE, queue, queue)
    yield BindingSpec(DEAD_LETTER_EXCHANGE, DEAD_QUEUE, "")
    yield BindingSpec(DROPPED_EXCHANGE, DROPPED_QUEUE, "")
    yield BindingSpec(REQUEST_LOG_EXCHANGE, REQUEST_LOG_STREAM, "")
    # Not to `builds`: with a copy for the log, RabbitMQ would confirm a cancel that no queue of work has taken.
    for stream in (CANCEL_LOG_STREAM, WAITING_LOG_STREAM):
        yield BindingSpec(RETRY_EXCHANGE, stream, stream)


def _entry_exchange(tenant: str) -> ExchangeSpec:
    return ExchangeSpec(entry_exchange(tenant), "topic", {"alternate-exchange": UNROUTED_EXCHANGE})


def _entry_bindings(tenant: str) -> Iterable[BindingSpec]:
    # Past `builds`, to which a tenant's user may not write, and by the tenant's own keys only.
    entry = entry_exchange(tenant)
    yield BindingSpec(entry, REQUESTS_QUEUE, request_key(tenant, Priority.INTERACTIVE))
    yield BindingSpec(entry, BULK_QUEUE, request_key(tenant, Priority.BULK))
    yield BindingSpec(entry, CANCEL_QUEUE, cancel_key(tenant))


def _stream_bindings(tenant: str) -> Iterable[BindingSpec]:
    # By the second exchange, an event that a hub's queue has refused reaches the stream without being refused again.
    for exchange in (RESULTS_EXCHANGE, RESULTS_LOG_EXCHANGE):
        for key in stream_bindings(tenant):
            yield BindingSpec(exchange, tenant_stream(tenant), key)
        for key in index_bindings(tenant):
            yield BindingSpec(exchange, tenant_index(tenant), key)
        yield BindingSpec(exchange, tenant_phases(tenant), phase_key(tenant, "*"))


def _obsolete_bindings(tenants: Iterable[str]) -> Iterable[BindingSpec]:
    # With a copy for the log, RabbitMQ confirms a request that no queue of work has taken.
    for priority in Priority:
        yield BindingSpec(REQUESTS_EXCHANGE, REQUEST_LOG_STREAM, request_key("*", priority))
    yield BindingSpec(UNROUTED_EXCHANGE, DEAD_QUEUE, "")
    # They would put repetitions for hubs into the streams.
    for tenant in tenants:
        for key in hub_bindings(tenant):
            yield BindingSpec(RESULTS_EXCHANGE, tenant_stream(tenant), key)


def make_topology(tenants: Iterable[str], settings: TopologySettings = DEFAULTS) -> Topology:
    """Return the topology for these tenants, with the limits of these settings."""
    tenants = tuple(tenants)
    retry = tuple(_retry_queues(settings))
    waiting = waiting_queues(tenants)
    streams = (
        _waiting_log(settings),
        _stream(
            REQUEST_LOG_STREAM,
            settings,
            {"x-max-age": "request_log_days", "x-max-length-bytes": "request_log_bytes"},
        ),
        _stream(
            CANCEL_LOG_STREAM,
            settings,
            {"x-max-age": "cancel_log_days", "x-max-length-bytes": "cancel_log_bytes"},
        ),
        *(stream for tenant in tenants for stream in _tenant_streams(tenant, settings)),
    )
    return Topology(
        exchanges=(
            ExchangeSpec(UNROUTED_EXCHANGE, "fanout"),
            ExchangeSpec(DEAD_LETTER_EXCHANGE, "fanout"),
            ExchangeSpec(DROPPED_EXCHANGE, "fanout"),
            ExchangeSpec(REQUEST_LOG_EXCHANGE, "fanout"),
            # Only work queues are bound to it, so that a message which no consumer would receive counts as unroutable.
            # Most publishers do not publish with `mandatory`: the alternate exchange catches their messages.
            ExchangeSpec(REQUESTS_EXCHANGE, "topic", {"alternate-exchange": UNROUTED_EXCHANGE}),
            *map(_entry_exchange, tenants),
            ExchangeSpec(RETRY_EXCHANGE, "direct"),
            ExchangeSpec(RESULTS_EXCHANGE, "topic"),
            ExchangeSpec(RESULTS_LOG_EXCHANGE, "topic"),
        ),
        queues=(
            *_kept_queues(settings),
            _work_queue(DROPPED_QUEUE, settings, DEAD_LETTER_EXCHANGE),
            *(_work_queue(name, settings) for name in (*WORK_QUEUES, *waiting)),
            *(queue for queue, _ in retry),
            *streams,
        ),
        bindings=(
            *_request_bindings(),
            *(BindingSpec(RETRY_EXCHANGE, queue, queue) for queue in waiting),
            *(binding for tenant in tenants for binding in _entry_bindings(tenant)),
            *(binding for _, binding in retry),
            *(binding for tenant in tenants for binding in _stream_bindings(tenant)),
        ),
        users=tuple(make_users(tenants)),
        obsolete=tuple(_obsolete_bindings(tenants)),
    )
