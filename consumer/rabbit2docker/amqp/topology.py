"""Every exchange, queue, stream, binding and policy, with the reason for each argument. No I/O.

An argument never changes; a policy is for operators to tune. Keeping a message that fails too often in `builds.dead`
is an argument, because it has to work where policies cannot be set.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from rabbit2docker.amqp.users import UserSpec, make_users
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    CANCEL_QUEUE,
    DEAD_LETTER_EXCHANGE,
    DEAD_QUEUE,
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    REQUESTS_EXCHANGE,
    REQUESTS_QUEUE,
    RESULTS_EXCHANGE,
    RETRY_EXCHANGE,
    RETRY_LADDER,
    UNROUTED_EXCHANGE,
    UNROUTED_QUEUE,
    Priority,
    cancel_key,
    hub_bindings,
    request_key,
    retry_queue,
    tenant_stream,
)

DELIVERY_LIMIT: Final = 20
"""Deliveries of one message before it counts as poison. Each crash and each reconnect with the message unacknowledged
counts. RabbitMQ 4 has this limit by default, and drops the message if no dead-letter exchange is set."""
KEPT_DELIVERY_LIMIT: Final = 1_000_000_000
"""For dead letters, as listing delivers them, and for unrouted requests, which are held until their queue exists again.
RabbitMQ 3 has no value for `unlimited`."""
SEGMENT_BYTES: Final = 20_000_000
"""Retention removes whole segments of a stream and always keeps one: the default of 500 MB would keep everything."""
HUB_QUEUE_EXPIRES_MS: Final = 600_000
HUB_QUEUE_LENGTH: Final = 100_000
WORK_QUEUES: Final = (REQUESTS_QUEUE, BULK_QUEUE, CANCEL_QUEUE)

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """A durable exchange."""

    name: str
    type: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A durable queue or stream."""

    name: str
    arguments: Arguments


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
class PolicySpec:
    """Settings that can be changed while RabbitMQ runs."""

    name: str
    pattern: str
    definition: Arguments
    apply_to: str = "queues"


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything, in the order in which it can be declared."""

    exchanges: tuple[ExchangeSpec, ...]
    queues: tuple[QueueSpec, ...]
    bindings: tuple[BindingSpec, ...]
    policies: tuple[PolicySpec, ...]
    users: tuple[UserSpec, ...]
    obsolete: tuple[BindingSpec, ...] = ()
    """Bindings of earlier versions, which `declare` removes."""


def _work_queue(name: str) -> QueueSpec:
    return QueueSpec(
        name,
        {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
            # At-least-once is silently at-most-once unless the overflow is reject-publish.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def _retry_queues() -> Iterable[tuple[QueueSpec, BindingSpec]]:
    for queue in WORK_QUEUES:
        for rung in RETRY_LADDER:
            name = retry_queue(rung, queue)
            arguments = {
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERY_LIMIT,
                # One TTL per queue: messages expire at its head only, so mixed TTLs would block each other.
                "x-message-ttl": rung.seconds * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            yield QueueSpec(name, arguments), BindingSpec(RETRY_EXCHANGE, name, name)


def _stream(name: str) -> QueueSpec:
    arguments = {
        "x-queue-type": "stream",
        "x-stream-max-segment-size-bytes": SEGMENT_BYTES,
        "x-stream-filter-size-bytes": 64,
    }
    return QueueSpec(name, arguments)


def hub_queue_arguments() -> Arguments:
    """Return the arguments of a hub's queue. It outlives a restart of the hub, but not the hub, and is bounded."""
    return {
        "x-queue-type": "classic",
        "x-expires": HUB_QUEUE_EXPIRES_MS,
        "x-max-length": HUB_QUEUE_LENGTH,
        "x-overflow": "drop-head",
    }


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
    yield BindingSpec(REQUEST_LOG_EXCHANGE, REQUEST_LOG_STREAM, "")


def _obsolete_bindings() -> Iterable[BindingSpec]:
    # With a copy for the log, RabbitMQ confirms a request that no queue of work has taken.
    for priority in Priority:
        yield BindingSpec(REQUESTS_EXCHANGE, REQUEST_LOG_STREAM, request_key("*", priority))
    yield BindingSpec(UNROUTED_EXCHANGE, DEAD_QUEUE, "")


def _policies() -> tuple[PolicySpec, ...]:
    return (
        PolicySpec("builds-requests", r"^builds\.requests(\.bulk)?$", {"max-length": 10_000}),
        PolicySpec("builds-cancels", r"^builds\.(cancels|unrouted)$", {"max-length": 10_000}),
        PolicySpec(
            "builds-dead",
            r"^builds\.dead$",
            {"message-ttl": 14 * 24 * 3600 * 1000, "max-length": 100_000, "overflow": "reject-publish"},
        ),
        PolicySpec(
            "builds-requests-log",
            r"^builds\.requests\.log$",
            {"max-age": "30D", "max-length-bytes": 1_000_000_000},
            "streams",
        ),
        PolicySpec(
            "builds-results-log",
            r"^builds\.results\.log\.",
            {"max-age": "7D", "max-length-bytes": 5_000_000_000},
            "streams",
        ),
    )


def make_topology(tenants: Iterable[str]) -> Topology:
    """Return the topology for these tenants."""
    tenants = tuple(tenants)
    retry = tuple(_retry_queues())
    kept = {"x-queue-type": "quorum", "x-delivery-limit": KEPT_DELIVERY_LIMIT}
    dead, unrouted = (
        QueueSpec(DEAD_QUEUE, kept),
        QueueSpec(UNROUTED_QUEUE, kept | {"x-overflow": "reject-publish"}),
    )
    streams = [_stream(REQUEST_LOG_STREAM), *(_stream(tenant_stream(tenant)) for tenant in tenants)]
    return Topology(
        exchanges=(
            ExchangeSpec(UNROUTED_EXCHANGE, "fanout"),
            ExchangeSpec(DEAD_LETTER_EXCHANGE, "fanout"),
            ExchangeSpec(REQUEST_LOG_EXCHANGE, "fanout"),
            # Only work queues are bound to it, so that a message which no consumer would receive counts as unroutable.
            # Most publishers do not publish with `mandatory`: the alternate exchange catches their messages.
            ExchangeSpec(REQUESTS_EXCHANGE, "topic", {"alternate-exchange": UNROUTED_EXCHANGE}),
            ExchangeSpec(RETRY_EXCHANGE, "direct"),
            ExchangeSpec(RESULTS_EXCHANGE, "topic"),
        ),
        queues=(dead, unrouted, *map(_work_queue, WORK_QUEUES), *(queue for queue, _ in retry), *streams),
        bindings=(
            *_request_bindings(),
            *(binding for _, binding in retry),
            *(
                BindingSpec(RESULTS_EXCHANGE, tenant_stream(tenant), key)
                for tenant in tenants
                for key in hub_bindings(tenant)
            ),
        ),
        policies=_policies(),
        users=tuple(make_users(tenants)),
        obsolete=tuple(_obsolete_bindings()),
    )
