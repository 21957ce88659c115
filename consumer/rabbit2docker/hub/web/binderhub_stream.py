"""Pure: a build's events in BinderHub's words and order, framed as server-sent events.

BinderHub's clients know `phase`, `message` and `imageName`; a stream ends after its one `ready` or `failed`, and errors
are `failed` events of a response with status 200, since the clients show nothing else to people.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from cachetools import LRUCache

from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Log,
    Phase,
    Progress,
    Rejected,
)
from rabbit2docker_schemas.reasons import RejectReason

KEEPALIVE: Final = b":keepalive\n\n"
WAITING: Final = {"phase": "waiting", "message": "Waiting for build to start...\n"}
_NOT_RESOLVED: Final = {
    RejectReason.REF_NOT_FOUND,
    RejectReason.REPOSITORY_NOT_FOUND,
    RejectReason.REPOSITORY_PRIVATE,
}
_WORTH_TELLING: Final = {Phase.WAITING, Phase.PUSHING}
"""Phases whose progress is told: in the others the lines themselves say how far it is."""
_ENCODED: Final[LRUCache[str, tuple[bytes, ...]]] = LRUCache(64)
"""Frames of lines, without ids: many viewers of one build get the same events at about the same time."""


def failure(message: str, status_code: int | None = None) -> dict[str, Any]:
    """Return a `failed` event's data; `status_code` is what another kind of response would have had."""
    code = {} if status_code is None else {"status_code": status_code}
    return {"phase": "failed", **code, "message": message if message.endswith("\n") else f"{message}\n"}


def queue_words(ahead: int) -> str:
    """Return how many builds are before one that waits, for people."""
    if not ahead:
        before = "this build is the next"
    else:
        before = "1 build is before this one" if ahead == 1 else f"{ahead} builds are before this one"
    return f"Waiting for a free build slot: {before}."


def frame(payload: dict[str, Any], id_: str | None = None) -> bytes:
    """Return one server-sent event."""
    return (f"id: {id_}\n".encode() if id_ else b"") + b"data: " + json.dumps(payload).encode() + b"\n\n"


class BinderHubStream:
    """Tells one viewer about one request."""

    def __init__(self, provider: str, spec: str, cursor: BinderHubCursor) -> None:
        """Go on at `cursor`, which moves along."""
        self.cursor = cursor
        self.result = ""
        """How it ended: ready or failed; empty until then."""
        self._provider = provider
        self._spec = spec
        self._skip = cursor.told
        self._met = 0
        self._begun = BinderHubCursor(cursor.request_id, cursor.told, cursor.attempt, cursor.line)
        self._cached = False

    @property
    def has_begun(self) -> bool:
        """Tell whether the viewer has got anything yet."""
        return self.cursor.told > 0

    def waiting(self) -> bytes:
        """Say that the build has not started, if nothing has been said yet."""
        if self._met:
            return b""
        return self._beside(WAITING)

    def queued(self, ahead: int) -> bytes:
        """Say how many builds are before this one; it is no place to go on from, as it holds for a moment only."""
        return self.waiting() + frame({"phase": "waiting", "message": f"{queue_words(ahead)}\n"})

    def tell(self, event: Event) -> bytes:
        """Return what the viewer gets of an event: several frames, one, or nothing."""
        match event.data:
            case Accepted() as accepted:
                self._cached = accepted.cached
                return b"" if accepted.cached else self.waiting()
            case Progress() as progress:
                return self._progress(progress)
            case Log() as log:
                return self.waiting() + b"".join(self._lines(event.id, log))
            case Gap() as gap:
                return self.waiting() + self._gap(gap)
            case _:
                return self._end(event)

    def fail(self, message: str, status_code: int | None = None) -> bytes:
        """End it with an error of our own."""
        return self._last(failure(message, status_code))

    def _beside(self, payload: dict[str, Any]) -> bytes:
        self._met += 1
        if self._met <= self._skip:
            return b""
        self.cursor.told = self._met
        return frame(payload, str(self.cursor))

    def _progress(self, progress: Progress) -> bytes:
        first = self.waiting()
        if progress.phase not in _WORTH_TELLING:
            return first
        return first + self._beside({"phase": str(progress.phase), "message": f"{progress.message}\n"})

    def _lines(self, event_id: str, log: Log) -> Iterator[bytes]:
        if event_id not in _ENCODED:
            _ENCODED[event_id] = tuple(
                frame({"phase": str(line.phase), "message": f"{line.text}\n"}) for line in log.lines
            )
        lines = _ENCODED[event_id]
        if (log.attempt, log.n) >= (self.cursor.attempt, self.cursor.line):
            # Nearly always, and for many viewers at once: nothing of it is known, and only the number is another each time.
            self._move(log.attempt, log.n)
            start = f"id: {self.cursor.before_line}".encode()
            for following, line in enumerate(lines, log.n + 1):
                yield b"%b%d\n%b" % (start, following, line)
            self._move(log.attempt, log.n + len(lines))
            return
        for number, line in enumerate(lines, log.n):
            if not self._begun.has_line(log.attempt, number):
                self._move(log.attempt, number + 1)
                yield f"id: {self.cursor}\n".encode() + line

    def _gap(self, gap: Gap) -> bytes:
        if self._begun.has_line(gap.attempt, gap.last):
            return b""
        self._move(gap.attempt, gap.last + 1)
        lines = f"line {gap.first}" if gap.first == gap.last else f"lines {gap.first} to {gap.last}"
        message = f"[{lines} of the log could not be had]\n"
        return frame({"phase": "unknown", "message": message}, str(self.cursor))

    def _move(self, attempt: int, line: int) -> None:
        if (attempt, line) > (self.cursor.attempt, self.cursor.line):
            self.cursor.attempt, self.cursor.line = attempt, line

    def _end(self, event: Event) -> bytes:
        match event.data:
            case Completed() as completed:
                found = self._cached or completed.cached
                message = "Done! Found built image\n" if found else "Done! Image built\n"
                return self._last({"phase": "ready", "message": message, "imageName": completed.image})
            case Failed() as failed:
                return self._last(failure(f"{failed.message}\n{failed.hint}".strip()))
            case Cancelled() as cancelled:
                return self._last(failure(f"The build was cancelled by {cancelled.by}."))
            case Rejected() as rejected:
                return self._last(failure(self._rejection(rejected)))
            case _:
                return b""

    def _last(self, payload: dict[str, Any]) -> bytes:
        self.result = payload["phase"]
        self.cursor.ended = True
        return frame(payload, str(self.cursor))

    def _rejection(self, rejected: Rejected) -> str:
        """Return BinderHub's sentence, which people and scripts know, and ours, which says what to do."""
        if rejected.reason in _NOT_RESOLVED:
            theirs = (
                f"Could not resolve ref for {self._provider}:{self._spec}. "
                "Double check your URL and that your repo is public. "
            )
        elif rejected.reason is RejectReason.UNKNOWN_PROVIDER:
            theirs = f"No provider found for prefix {self._provider}. "
        elif rejected.reason is RejectReason.NOT_ALLOWED:
            theirs = f"Sorry, {self._spec} is not allowed to launch. Please contact admins for more info! "
        else:
            theirs = ""
        return theirs + rejected.message
