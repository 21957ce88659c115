"""Names of exchanges, queues and streams, and the grammar of routing keys."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

REQUESTS_EXCHANGE: Final = "builds"
"""For requests and cancel messages of all tenants. Users that must be kept apart publish to entry exchanges instead."""
ENTRY_PREFIX: Final = "builds.entry."
RESULTS_EXCHANGE: Final = "builds.results"
RESULTS_LOG_EXCHANGE: Final = "builds.results.log"
"""The same events, for the tenants' streams alone."""
RETRY_EXCHANGE: Final = "builds.retry"
DEAD_LETTER_EXCHANGE: Final = "builds.dlx"
UNROUTED_EXCHANGE: Final = "builds.unrouted"
DROPPED_EXCHANGE: Final = "builds.dropped"
REQUEST_LOG_EXCHANGE: Final = "builds.log"

REQUESTS_QUEUE: Final = "builds.requests"
BULK_QUEUE: Final = "builds.requests.bulk"
CANCEL_QUEUE: Final = "builds.cancels"
UNROUTED_QUEUE: Final = "builds.unrouted"
"""Messages that `builds` could route nowhere, until a consumer puts each into its queue or among the dead letters."""
DROPPED_QUEUE: Final = "builds.dropped"
"""Messages that RabbitMQ dropped from a queue of work, until a consumer answers each and puts it among the dead letters."""
DEAD_QUEUE: Final = "builds.dead"
REQUEST_LOG_STREAM: Final = "builds.requests.log"
CANCEL_LOG_STREAM: Final = "builds.cancels.log"
"""Cancels of requests that are no builds yet."""
WAITING_PREFIX: Final = "builds.waiting."
"""Of the queues in which requests wait for a slot, once a consumer has taken them in."""
WAITING_LOG_STREAM: Final = "builds.waiting.log"
"""The requests that wait and those that were taken, for all consumers."""
UNLISTED_TENANT: Final = "_"
"""In the names of the queues that all tenants share which are not in the consumer's settings; no tenant has this name."""
STATE_QUEUE: Final = "builds.state"
"""Always empty: its arguments name the records that the consumers of this virtual host share."""

TENANT_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""A tenant is one word of a routing key and part of queue names."""
_TENANT = re.compile(TENANT_PATTERN)


class Priority(StrEnum):
    """Queue of a request: `interactive` while a person waits, `bulk` for everything else."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Lane(StrEnum):
    """Queues of one tenant in which requests wait for a slot."""

    INTERACTIVE = "interactive"
    """Requests of people, up to a number for each requester."""
    LATER = "later"
    """Their further requests, of which one is started for several of the others."""
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class RetryRung:
    """One step of the retry ladder: a queue that holds a message for `seconds` and then returns it."""

    name: str
    seconds: int


def make_rung(seconds: int) -> RetryRung:
    """Return the rung for a pause. Its name holds the pause, so that a queue never needs another one."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return RetryRung(f"{seconds // size}{unit}", seconds)
    return RetryRung(f"{seconds}s", seconds)


@dataclass(frozen=True, slots=True)
class RetryLadder:
    """The rungs of the retry ladder, the shortest first, and how often a message may take one."""

    rungs: tuple[RetryRung, ...]
    tries: int
    """Number of tries after the first; beyond the last rung, that one is taken again."""

    def regular(self, tries: int) -> RetryRung:
        """Return the rung after this number of earlier tries."""
        return self.rungs[min(tries, len(self.rungs) - 1)]

    def next(self, tries: int, retry_after: float | None) -> RetryRung | None:
        """Return the rung on which a message waits, at least `retry_after` if one is that long; None after its last try."""
        if tries >= self.tries:
            return None
        remaining = self.rungs[tries:] or self.rungs[-1:]
        long_enough = (rung for rung in remaining if rung.seconds >= (retry_after or 0))
        return next(long_enough, remaining[-1])

    def longest_within(self, seconds: float) -> RetryRung:
        """Return the longest rung that is no longer than this; the shortest if all are."""
        return next((rung for rung in reversed(self.rungs) if rung.seconds <= seconds), self.rungs[0])


def make_ladder(pauses: Iterable[int], total_seconds: float | None = None) -> RetryLadder:
    """Return the ladder with these pauses. Tries go on until their pauses add up to `total_seconds`; None: once each."""
    rungs = tuple(map(make_rung, sorted(pauses)))
    tries, waited = 0, 0
    while tries < len(rungs) if total_seconds is None else waited < total_seconds:
        waited += rungs[min(tries, len(rungs) - 1)].seconds
        tries += 1
    return RetryLadder(rungs, tries)


RETRY_PAUSES: Final = (10, 60, 600)
RETRY_LADDER: Final = make_ladder(RETRY_PAUSES)
"""The ladder that the settings have by default."""
ATTEMPT_HEADER: Final = "r2d-attempt"
"""Number of earlier intake attempts. Our own header, because RabbitMQ 4.0 and newer ignore a client's `x-death`."""
ROUTING_KEY_HEADER: Final = "r2d-routing-key"
"""Routing key of the original message, on its copies on the retry ladder and among the dead letters."""
MESSAGE_ID_HEADER: Final = "r2d-message-id"
"""message_id of the original message; each copy has one of its own."""
WAITING_SINCE_HEADER: Final = "r2d-waiting-since"
"""Time from which a message waits on the retry ladder, in RFC 3339."""
WAITING_FOR_HEADER: Final = "r2d-waiting-for"
"""Name of the wait that was announced last, so that a further round of the same wait is silent."""
QUEUE_HEADER: Final = "r2d-queue"
"""Queue that a dead letter came from."""
REASON_HEADER: Final = "r2d-reason"
"""Reason for a message's place in the dead-letter queue."""
FORGED: Final = "forged"
"""Reason of a dead letter whose sender need not be the tenant that its routing key names. It is never redriven."""


def is_tenant(name: str) -> bool:
    """Return whether a tenant may have this name."""
    return _TENANT.fullmatch(name) is not None


def request_key(tenant: str, priority: Priority | str) -> str:
    """Return the routing key of a request on the `builds` exchange; either part may be a placeholder."""
    return f"request.{tenant}.{priority}"


def cancel_key(tenant: str) -> str:
    """Return the routing key of a cancel message on the `builds` exchange."""
    return f"cancel.{tenant}"


def entry_exchange(tenant: str) -> str:
    """Return the name of the exchange for a tenant's requests and cancel messages; no other tenant may write to it."""
    return f"{ENTRY_PREFIX}{tenant}"


def request_event_key(tenant: str, request_id: str, kind: str) -> str:
    """Return the routing key of `accepted` and `rejected` events; bindings use `*` for id and kind."""
    return f"request.{tenant}.{request_id}.{kind}"


def build_event_key(tenant: str, build_id: str, kind: str) -> str:
    """Return the routing key of a build's events; bindings use `*` for id and kind."""
    return f"build.{tenant}.{build_id}.{kind}"


def repeated_event_key(key: str) -> str:
    """Return the routing key of an event that is published again for hubs alone.

    Bindings that end in `#` match it; those of the streams, which have the event already, do not.
    """
    subject, kind = key.rsplit(".", 1)
    return f"{subject}.repeat.{kind}"


def hub_queue(name: str) -> str:
    """Return the name of the durable queue that keeps a hub's events while the hub is away."""
    return f"hub.{name}.events"


def hub_lock(name: str) -> str:
    """Return the name of the queue that a hub's only reader holds, because RabbitMQ lets several read a quorum queue."""
    return f"hub.{name}.lock"


def passing_queue(tenant: str, unique: str) -> str:
    """Return the name of a reader's temporary queue; the prefix is the one that a tenant's permissions allow."""
    return f"hub.{tenant}.passing-{unique}"


def tenant_stream(tenant: str) -> str:
    """Return the name of the stream with a tenant's event history."""
    return f"builds.results.log.{tenant}"


def tenant_index(tenant: str) -> str:
    """Return the name of the stream with what begins and ends a tenant's builds: events without logs and progress."""
    return f"{tenant_stream(tenant)}.index"


def tenant_phases(tenant: str) -> str:
    """Return the name of the stream with the phases and waits of a tenant's builds, but no steps and layers."""
    return f"{tenant_stream(tenant)}.phases"


def waiting_key(tenant: str, build_id: str) -> str:
    """Return the second routing key of the progress of a request that has no attempt yet."""
    return build_event_key(tenant, build_id, "waiting")


def phase_key(tenant: str, build_id: str) -> str:
    """Return the second routing key of an attempt's progress that is a new phase or wait, not a step or layer."""
    return build_event_key(tenant, build_id, "phase")


def waiting_queue(tenant: str, lane: Lane) -> str:
    """Return the name of a queue in which the tenant's requests wait for a slot."""
    return f"{WAITING_PREFIX}{tenant}.{lane}"


def parse_waiting_queue(queue: str) -> tuple[str, Lane] | None:
    """Return tenant and lane of a queue in which requests wait for a slot; None for another queue."""
    tenant, _, lane = queue.removeprefix(WAITING_PREFIX).rpartition(".")
    if not queue.startswith(WAITING_PREFIX) or not tenant or lane not in set(Lane):
        return None
    return tenant, Lane(lane)


def entry_queue(queue: str) -> str:
    """Return the queue through which a message comes in that waits in `queue`."""
    waiting = parse_waiting_queue(queue)
    if waiting is None:
        return queue
    return BULK_QUEUE if waiting[1] is Lane.BULK else REQUESTS_QUEUE


def retry_queue(rung: RetryRung, queue: str) -> str:
    """Return the name of the queue that holds messages for `queue` on this rung."""
    suffix = {REQUESTS_QUEUE: "", BULK_QUEUE: ".bulk", CANCEL_QUEUE: ".cancels"}[entry_queue(queue)]
    return f"{RETRY_EXCHANGE}.{rung.name}{suffix}"


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A parsed routing key of the `builds` exchange."""

    tenant: str
    action: str
    """`interactive` or `bulk` for a request, `cancel` for a cancel message."""

    @property
    def queue(self) -> str:
        """The queue for messages with this key."""
        queues: dict[str, str] = {Priority.INTERACTIVE: REQUESTS_QUEUE, Priority.BULK: BULK_QUEUE}
        return queues.get(self.action, CANCEL_QUEUE)


def parse_request_key(key: str) -> RequestKey | None:
    """Parse a routing key of the `builds` exchange; return None if it is malformed."""
    match key.split("."):
        case ["request", tenant, action] if action in set(Priority):
            found = RequestKey(tenant, action)
        case ["cancel", tenant]:
            found = RequestKey(tenant, "cancel")
        case _:
            return None
    # Events carry the tenant in their own routing keys, so an invalid one could not be answered.
    return found if is_tenant(found.tenant) else None


def hub_bindings(tenant: str) -> Iterable[str]:
    """Return the binding keys that select all events of a tenant, repetitions for hubs included."""
    return (f"request.{tenant}.#", f"build.{tenant}.#")


def index_bindings(tenant: str) -> Iterable[str]:
    """Return the binding keys of a tenant's index: what begins and ends builds, without the repetitions for hubs."""
    ends = ("completed", "failed", "cancelled")
    return (
        request_event_key(tenant, "*", "*"),
        waiting_key(tenant, "*"),
        *(build_event_key(tenant, "*", end) for end in ends),
    )


def stream_bindings(tenant: str) -> Iterable[str]:
    """Return the binding keys of a tenant's stream: all events, without the repetitions for hubs."""
    return (request_event_key(tenant, "*", "*"), build_event_key(tenant, "*", "*"))
