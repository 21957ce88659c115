"""What goes wrong with requests, as tests want it."""

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
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    verb: str
    """list, watch, get, log, create, update, patch or delete; the method for what is no resource."""
    resource: str
    """Plural; empty for what is no resource."""
    name: str
    content_type: str = ""
    at: float = field(default_factory=time.monotonic)


class Kind(Enum):
    """What a fault does."""

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
    """One fault; `remove` ends it, `release` lets go of requests that it holds."""

    kind: Kind
    wanted: Callable[[Seen], bool]
    times: int | None
    """How many more requests it hits; None: all."""
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
    """The faults to come. Each method takes which requests are meant: verb, resource, name, path (a regular expression).

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
        """Remove all; what hangs goes on."""
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
        """Answer with a Status instead of doing what is asked; also a watch's HTTP 410."""
        error = ApiError(status, _REASONS.get(status, "Unknown"), message, retry_after=retry_after)
        return self._add(Fault(Kind.ANSWER, _meaning(**which), times, error=error))

    def drop_before(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Cut the connection; what is asked is not done."""
        return self._add(Fault(Kind.DROP_BEFORE, _meaning(**which), times))

    def drop_after(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Do what is asked, and cut the connection instead of answering."""
        return self._add(Fault(Kind.DROP_AFTER, _meaning(**which), times))

    def hang(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Say nothing until released; then what is asked is done."""
        return self._add(Fault(Kind.HANG, _meaning(**which), times))

    def delay(self, seconds: float, *, times: int | None = 1, **which: str | None) -> Fault:
        """Do what is asked later."""
        return self._add(Fault(Kind.DELAY, _meaning(**which), times, seconds=seconds))

    def empty(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Answer a watch or log with 200 and nothing."""
        return self._add(Fault(Kind.EMPTY, _meaning(**which), times))

    def cut(
        self,
        after: int | Callable[[], int],
        *,
        clean: bool = False,
        times: int | None = 1,
        **which: str | None,
    ) -> Fault:
        """Cut a watch or log after so many bytes, wherever that is; `clean` ends it as if that were all.

        A function is asked for each stream anew, for cuts at random places.
        """
        return self._add(Fault(Kind.CUT, _meaning(**which), times, after=after, clean=clean))

    def say(self, text: bytes, *, after: int = 0, times: int | None = 1, **which: str | None) -> Fault:
        """Send `after` bytes of a log, then a text that is no line of the container, and end."""
        return self._add(
            Fault(Kind.SAY, _meaning(**{"verb": "log", **which}), times, text=text, after=after, clean=True)
        )

    def gone(self, *, times: int | None = 1, **which: str | None) -> Fault:
        """Answer a watch with an ERROR 410 in the stream, as for a version that is too old."""
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
    """Return whether a request is meant; raises TypeError for another word."""

    def means(seen: Seen) -> bool:
        if path is not None and not re.search(path, seen.path):
            return False
        wanted = ((verb, seen.verb), (resource, seen.resource), (name, seen.name), (method, seen.method))
        return all(want is None or want == found for want, found in wanted)

    return means
