"""Deterministic ids of requests, builds and events.

Every id is a function of the thing it identifies. A service that was killed half-way repeats its last steps and
computes the same ids, so readers recognise the repetition and drop it.
"""

import hashlib
import re
import uuid
from typing import Final, NewType

RequestId = NewType("RequestId", str)
BuildId = NewType("BuildId", str)
EventId = NewType("EventId", str)

NAMESPACE: Final = uuid.UUID("5f0c1c8e-6d0b-5c39-9f6e-7b3f7d1a2c44")
REQUEST_ID_PATTERN: Final = r"^[A-Za-z0-9_-]{1,128}$"
"""A request id is one word of a routing key: no dots, no wildcards."""

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


def _uuid(*parts: str | int) -> str:
    return str(uuid.uuid5(NAMESPACE, "/".join(str(part) for part in parts)))


def routable_request_id(raw: str) -> RequestId:
    """Return `raw` if it fits into a routing key, else a stable id derived from its hash."""
    if _REQUEST_ID.fullmatch(raw):
        return RequestId(raw)
    return RequestId("id-" + hashlib.sha256(raw.encode(errors="surrogatepass")).hexdigest()[:32])


def build_id_of(tenant: str, request_id: str) -> BuildId:
    """Return the id of the build that this request starts, unless it joins a running one."""
    return BuildId(_uuid("build", tenant, request_id))


def request_event_id(tenant: str, request_id: str, kind: str, generation: str = "") -> EventId:
    """Return the id of a request's `accepted` or `rejected` event."""
    return EventId(_uuid("request", tenant, request_id, kind, *_suffix(generation)))


def terminal_event_id(build_id: str, generation: str = "") -> EventId:
    """Return the id of the event that ends a build, the same for all three kinds.

    A request that comes again after its build is forgotten starts the build anew: the `generation` makes their
    ends differ. Within one generation there is one end.
    """
    return EventId(_uuid(build_id, "terminal", *_suffix(generation)))


def lines_event_id(
    build_id: str, attempt: int, first: int, last: int, kind: str, generation: str = ""
) -> EventId:
    """Return the id of a `log` or `gap` event about the lines `first`..`last` of an attempt."""
    return EventId(_uuid(build_id, attempt, kind, first, last, *_suffix(generation)))


def progress_event_id(build_id: str, attempt: int, about: str, generation: str = "") -> EventId:
    """Return the id of a progress event; `about` names what it reports and is the same after a repetition."""
    return EventId(_uuid(build_id, attempt, "progress", about, *_suffix(generation)))


def _suffix(generation: str) -> tuple[str, ...]:
    return (generation,) if generation else ()
