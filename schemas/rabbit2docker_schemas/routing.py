"""Exchange, queue and stream names, and the grammar of routing keys: each name is written here once."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

REQUESTS_EXCHANGE: Final = "builds"
RESULTS_EXCHANGE: Final = "builds.results"
RETRY_EXCHANGE: Final = "builds.retry"
DEAD_LETTER_EXCHANGE: Final = "builds.dlx"
UNROUTED_EXCHANGE: Final = "builds.unrouted"

REQUESTS_QUEUE: Final = "builds.requests"
BULK_QUEUE: Final = "builds.requests.bulk"
CANCEL_QUEUE: Final = "builds.cancels"
DEAD_QUEUE: Final = "builds.dead"
REQUEST_LOG_STREAM: Final = "builds.requests.log"

TENANT_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""A tenant is one word of a routing key and part of queue names."""
_TENANT = re.compile(TENANT_PATTERN)


class Priority(StrEnum):
    """The two ways to ask: people waiting, and everything that can wait."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class RetryRung:
    """One queue of the retry ladder: a message rests there for `seconds` and comes back."""

    name: str
    seconds: int


RETRY_LADDER: Final = (RetryRung("10s", 10), RetryRung("1m", 60), RetryRung("10m", 600))
ATTEMPT_HEADER: Final = "r2d-attempt"
"""How often intake of this message was tried before. Our own, as brokers from 4.0 on ignore a client's x-death."""
ROUTING_KEY_HEADER: Final = "r2d-routing-key"
"""The key under which a message was first published, on its copies on the retry ladder and among the dead letters."""
MESSAGE_ID_HEADER: Final = "r2d-message-id"
"""The message_id under which a message was first published: each copy has a fresh one."""
QUEUE_HEADER: Final = "r2d-queue"
"""The queue from which a dead letter came."""
REASON_HEADER: Final = "r2d-reason"
"""Why a message is in the dead-letter queue."""


def request_key(tenant: str, priority: Priority | str) -> str:
    """Return the routing key of a request on the `builds` exchange; in patterns both may be placeholders."""
    return f"request.{tenant}.{priority}"


def cancel_key(tenant: str) -> str:
    """Return the routing key of a cancel message on the `builds` exchange."""
    return f"cancel.{tenant}"


def request_event_key(tenant: str, request_id: str, kind: str) -> str:
    """Return the routing key of `accepted` and `rejected`; `*` may stand for id and kind in bindings."""
    return f"request.{tenant}.{request_id}.{kind}"


def build_event_key(tenant: str, build_id: str, kind: str) -> str:
    """Return the routing key of a build's events; `*` may stand for id and kind in bindings."""
    return f"build.{tenant}.{build_id}.{kind}"


def hub_queue(name: str) -> str:
    """Return the queue that holds a hub's events while the hub is away."""
    return f"hub.{name}.events"


def passing_queue(tenant: str, unique: str) -> str:
    """Return the queue of a reader that keeps nothing; the tenant's permissions are for names that begin so."""
    return f"hub.{tenant}.passing-{unique}"


def tenant_stream(tenant: str) -> str:
    """Return the stream of a tenant's events: the history for late readers."""
    return f"builds.results.log.{tenant}"


def retry_queue(rung: RetryRung, queue: str) -> str:
    """Return the queue in which a message for `queue` waits on this rung."""
    suffix = {REQUESTS_QUEUE: "", BULK_QUEUE: ".bulk", CANCEL_QUEUE: ".cancels"}[queue]
    return f"{RETRY_EXCHANGE}.{rung.name}{suffix}"


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What the routing key of a message on the `builds` exchange says."""

    tenant: str
    action: str
    """`interactive` or `bulk` for a request, `cancel` for a cancel message."""


def parse_request_key(key: str) -> RequestKey | None:
    """Read a routing key of the `builds` exchange; None when it is none of ours."""
    match key.split("."):
        case ["request", tenant, action] if action in set(Priority):
            found = RequestKey(tenant, action)
        case ["cancel", tenant]:
            found = RequestKey(tenant, "cancel")
        case _:
            return None
    # Answers carry the tenant in their own keys: one that does not fit there cannot be answered.
    return found if _TENANT.fullmatch(found.tenant) else None


def hub_bindings(tenant: str) -> Iterable[str]:
    """Return the binding keys of a queue or stream that takes all events of a tenant."""
    return (f"request.{tenant}.#", f"build.{tenant}.#")
