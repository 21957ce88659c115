"""A build's events as BinderHub's server-sent events.

BinderHub's clients read `phase`, `message` and `imageName`. A stream ends after one `ready` or `failed`; errors are
`failed` events of a response with status 200, since the clients show nothing else to people.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, assert_never

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
_UNRESOLVED: Final = {
    RejectReason.REF_NOT_FOUND,
    RejectReason.REPOSITORY_NOT_FOUND,
    RejectReason.REPOSITORY_PRIVATE,
}
_PHASES_WITH_PROGRESS: Final = {Phase.WAITING, Phase.PUSHING}
"""Phases whose progress is sent; in the others the log lines show it."""
_ENCODED: Final[LRUCache[str, tuple[bytes, ...]]] = LRUCache(64)
"""Frames of lines, without ids: many viewers of one build get the same events at about the same time."""


def failure(message: str, status_code: int | None = None) -> dict[str, Any]:
    """Return the data of a `failed` event; `status_code` is the status that a plain response would have."""
    code = {} if status_code is None else {"status_code": status_code}
    return {"phase": "failed", **code, "message": message if message.endswith("\n") else f"{message}\n"}


def frame(payload: dict[str, Any], id_: str | None = None) -> bytes:
    """Return one server-sent event."""
    return (f"id: {id_}\n".encode() if id_ else b"") + b"data: " + json.dumps(payload).encode() + b"\n\n"


class BinderHubStream:
    """Renders the events of one request for one viewer."""

    def __init__(self, provider: str, spec: str, cursor: BinderHubCursor) -> None:
        """Start at `cursor`, which is advanced with every event."""
        self.cursor = cursor
        self.result = ""
        """The final phase, ready or failed; empty until then."""
        self.page = ""
        """URL of the build's page, for `failed`; BinderHub's clients ignore fields that they do not know."""
        self._provider = provider
        self._spec = spec
        self._seen = 0
        self.start = replace(cursor)
        """Where the viewer resumed."""
        self._cached = self._is_accepted = False

    def waiting(self) -> bytes:
        """Return BinderHub's first event, unless an event has been sent."""
        return b"" if self._seen else self._event(WAITING)

    def render(self, event: Event) -> bytes:
        """Return the frames for an event: any number of them."""
        match event.data:
            case Accepted() as accepted:
                self._cached, self._is_accepted = accepted.cached, True
                # Every viewer has got this one, before its request was answered: positions count it.
                first = self.waiting()
                if accepted.notice:
                    return first + self._event({"phase": "waiting", "message": f"{accepted.notice}\n"})
                return first
            case Progress() as progress:
                return self._progress(progress)
            case Log() as log:
                return self.waiting() + b"".join(self._lines(event.id, log))
            case Gap() as gap:
                return self.waiting() + self._gap(gap)
            case Completed() as completed:
                return self._completed(completed)
            case Failed() as failed:
                return self._end(failure(f"{failed.message}\n{failed.hint}".strip()))
            case Cancelled() as cancelled:
                return self._end(failure(f"The build was cancelled by {cancelled.by}."))
            case Rejected() as rejected:
                return self._end(failure(self._rejection(rejected)))
            case _:
                assert_never(event.data)

    def fail(self, message: str, status_code: int | None = None) -> bytes:
        """End the stream with an error of this service."""
        return self._end(failure(message, status_code))

    def _event(self, payload: dict[str, Any]) -> bytes:
        self._seen += 1
        if self._seen <= self.start.events:
            return b""
        self.cursor.events = self._seen
        return frame(payload, str(self.cursor))

    def _place(self, progress: Progress) -> bytes:
        # Without an id: it is true for a moment only.
        return self.waiting() + frame({"phase": "waiting", "message": f"{progress.message}\n"})

    def _progress(self, progress: Progress) -> bytes:
        if progress.is_place:
            return b"" if self._is_accepted else self._place(progress)
        first = self.waiting()
        if progress.phase not in _PHASES_WITH_PROGRESS:
            return first
        return first + self._event({"phase": str(progress.phase), "message": f"{progress.message}\n"})

    def _lines(self, event_id: str, log: Log) -> Iterator[bytes]:
        if event_id not in _ENCODED:
            _ENCODED[event_id] = tuple(
                frame({"phase": str(line.phase), "message": f"{line.text}\n"}) for line in log.lines
            )
        lines = _ENCODED[event_id]
        if (log.attempt, log.n) >= (self.cursor.attempt, self.cursor.line):
            # The common case, for many viewers at once: all lines are new, and their ids differ in the number only.
            self._move(log.attempt, log.n)
            start = f"id: {self.cursor.line_prefix}".encode()
            for following, line in enumerate(lines, log.n + 1):
                yield b"%b%d\n%b" % (start, following, line)
            self._move(log.attempt, log.n + len(lines))
            return
        for number, line in enumerate(lines, log.n):
            if not self.start.has_line(log.attempt, number):
                self._move(log.attempt, number + 1)
                yield f"id: {self.cursor}\n".encode() + line

    def _gap(self, gap: Gap) -> bytes:
        if self.start.has_line(gap.attempt, gap.last):
            return b""
        self._move(gap.attempt, gap.last + 1)
        if gap.first == gap.last:
            message = f"[line {gap.first} of the log is missing]\n"
        else:
            message = f"[lines {gap.first} to {gap.last} of the log are missing]\n"
        return frame({"phase": "unknown", "message": message}, str(self.cursor))

    def _move(self, attempt: int, line: int) -> None:
        if (attempt, line) > (self.cursor.attempt, self.cursor.line):
            self.cursor.attempt, self.cursor.line = attempt, line

    def _completed(self, completed: Completed) -> bytes:
        found = self._cached or completed.cached
        message = "Done! Found built image\n" if found else "Done! Image built\n"
        return self._end({"phase": "ready", "message": message, "imageName": completed.image})

    def _end(self, payload: dict[str, Any]) -> bytes:
        self.result = payload["phase"]
        self.cursor.ended = True
        if self.page and payload["phase"] == "failed":
            payload = {**payload, "page": self.page}
            if self.page.startswith("http"):
                # BinderHub's own clients show nothing but the message.
                payload["message"] += f"See the whole log at {self.page}\n"
        return frame(payload, str(self.cursor))

    def _rejection(self, rejected: Rejected) -> str:
        """Return BinderHub's sentence, which clients know, followed by the message, which says what to do."""
        if rejected.reason in _UNRESOLVED:
            sentence = (
                f"Could not resolve ref for {self._provider}:{self._spec}. "
                "Double check your URL and that your repo is public. "
            )
        elif rejected.reason is RejectReason.UNKNOWN_PROVIDER:
            sentence = f"No provider found for prefix {self._provider}. "
        elif rejected.reason is RejectReason.NOT_ALLOWED:
            sentence = f"Sorry, {self._spec} is not allowed to launch. Please contact admins for more info! "
        else:
            sentence = ""
        return sentence + rejected.message
