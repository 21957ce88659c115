"""Faults that tests inject into requests."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.support.kube.objects import ApiError

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A received request."""

    method: str
    path: str
    query: dict[str, str]
    verb: str
    """list, watch, get, log, create, update, patch or delete; the HTTP method if the path is not a resource."""
    resource: str
    """Plural name; empty if the path is not a resource."""
    name: str
    content_type: str = ""
    at: float = field(default_factory=time.monotonic)


class Kind(Enum):
    """The effect of a fault."""

    ANSWER = "answer"
    DROP_BEFORE = "drop before"
    DROP_AFTER = "drop after"
    HANG = "hang"
    DELAY = "delay"
    EMPTY = "empty"
    CUT = "cut"
    SAY = "say"
    GONE = "gone"


@dataclass(eq=False)
class Fault:
    """One fault; `remove` ends it, `release` continues the requests that it holds."""

    kind: Kind
    wanted: Callable[[Seen], bool]
    times: int | None
    """Number of further requests that it hits; None for all."""
    error: ApiError | None = None
    seconds: float = 0
    after: int | Callable[[], int] = 0
    text: bytes = b""
    clean: bool = False
    hits: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def remove(self) -> None:
        self.times = 0
        self.release()

    def release(self) -> None:
        self.released.set()


class Faults:
    """The active faults. Each method takes a filter for requests: verb, resource, name, path (a regular expression).

    `times` is how many requests are hit, None for all until the fault is removed. A request is hit by the first fault
    that means it.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def take(self, seen: Seen) -> Fault | None:
        """Return the fault that hits a request, and count it."""
        for fault in self._faults:
            if fault.times != 0 and fault.wanted(seen):
                fault.hits += 1
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def clear(self) -> None:
        """Remove all faults and continue the requests that they hold."""
        for fault in self._faults:
            fault.remove()
        self._faults.clear()

    def answer(
        self,
        status: int,
        *,
        message: str = "injected by the test",
        retry_after: int | None = None,
        times: int | None = 1,
        **which: str | None,
    ) -> Fault:
        """Respond with a Status without executing the request; also for the HTTP 410 of a watch."""
        error = ApiError(status, _REASONS.get(status, "Unknown"), message, retry_after=retry_after)
        return self._add(Fault(Kind.ANSWER, _meaning(**which), times, error=error))

    def drop_before(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Cut the connection without executing the request."""
        return self._add(Fault(Kind.DROP_BEFORE, _meaning(**which), times))

    def drop_after(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Execute the request, and cut the connection instead of responding."""
        return self._add(Fault(Kind.DROP_AFTER, _meaning(**which), times))

    def hang(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Hold the request until released, then execute it."""
        return self._add(Fault(Kind.HANG, _meaning(**which), times))

    def delay(self, seconds: float, *, times: int | None = 1, **which: str | None) -> Fault:
        """Execute the request after a delay."""
        return self._add(Fault(Kind.DELAY, _meaning(**which), times, seconds=seconds))

    def empty(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Respond to a watch or log with status 200 and an empty body."""
        return self._add(Fault(Kind.EMPTY, _meaning(**which), times))

    def cut(
        self,
        after: int | Callable[[], int],
        *,
        clean: bool = False,
        times: int | None = 1,
        **which: str | None,
    ) -> Fault:
        """Cut a watch or log after so many bytes, wherever that is; `clean` ends the body without an error.

        A function is asked for each stream anew, for cuts at random places.
        """
        return self._add(Fault(Kind.CUT, _meaning(**which), times, after=after, clean=clean))

    def say(self, text: bytes, *, after: int = 0, times: int | None = 1, **which: str | None) -> Fault:
        """Send `after` bytes of a log, then a text that is not a line of the container, and end."""
        return self._add(
            Fault(Kind.SAY, _meaning(**{"verb": "log", **which}), times, text=text, after=after, clean=True)
        )

    def gone(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Respond to a watch with an ERROR 410 in the stream, as for an expired version."""
        return self._add(Fault(Kind.GONE, _meaning(**{"verb": "watch", **which}), times))

    def _add(self, fault: Fault) -> Fault:
        self._faults = [known for known in self._faults if known.times != 0] + [fault]
        return fault


def _meaning(
    *,
    verb: str | None = None,
    resource: str | None = None,
    name: str | None = None,
    method: str | None = None,
    path: str | None = None,
) -> Callable[[Seen], bool]:
    """Return whether a request matches; raises TypeError for an unknown filter."""

    def means(seen: Seen) -> bool:
        if path is not None and not re.search(path, seen.path):
            return False
        wanted = ((verb, seen.verb), (resource, seen.resource), (name, seen.name), (method, seen.method))
        return all(want is None or want == found for want, found in wanted)

    return means
