"""A build's events as the JSON API streams them, and the position of a reader.

A position consists of numbers that are the same for all readers and sources: whether `accepted` was sent, the count of
progress events, and the attempt and number of the next line. So any instance of the service can resume what another one
has begun, from RabbitMQ's stream or from the store.
"""

import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self, assert_never

from cachetools import LRUCache
from pydantic import Field

from rabbit2docker.hub.store.models import Record
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE
from rabbit2docker.hub.web.keepalive import with_keepalive
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    AnyEventData,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Kind,
    Log,
    Progress,
    ProgressDetail,
    Rejected,
)
from rabbit2docker_schemas.ids import lines_event_id

RETRY: Final = b"retry: 2000\n\n"
"""The first bytes of a stream: an EventSource that is disconnected reconnects after two seconds."""
_POSITION = re.compile(r"([01])\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)
_END: Final = "end"
_ENCODED: Final[LRUCache[str, bytes]] = LRUCache(128)
"""Events as JSON: many readers of one build get the same events at about the same time."""


class BuildEvent(Record):
    """The data of one server-sent event."""

    id: str
    """Id of the event; a redelivered event has the same one."""
    time: datetime
    kind: Kind
    data: AnyEventData = Field(union_mode="left_to_right")
    """As in the message on RabbitMQ; see `rabbit2docker schema`."""


class QueuePosition(Record):
    """The data of `event: queue`, which is sent while a request waits for a free slot."""

    ahead: int
    """Number of builds ahead of this one."""
    expected_start: datetime | None = None
    """Time at which it starts if others keep starting at the pace of late; missing while that is unknown."""


def _queue_frame(detail: ProgressDetail) -> bytes:
    """Return the frame of a place, without an id: it is true for a moment only."""
    position = QueuePosition(ahead=detail.ahead or 0, expected_start=detail.expected_start)
    return f"event: queue\ndata: {position.model_dump_json(exclude_none=True)}\n\n".encode()


@dataclass(slots=True)
class ApiCursor:
    """The position of one reader in a build's events."""

    accepted: bool = False
    progress: int = 0
    """Progress events."""
    attempt: int = 0
    line: int = 0
    """Number of the next line of `attempt`."""
    ended: bool = False

    def __str__(self) -> str:
        """Return the value of the field `id:`."""
        return _END if self.ended else f"{self.accepted:d}.{self.progress}.{self.attempt}.{self.line}"

    def first_new(self, attempt: int, first: int) -> int:
        """Return the first line from `first` on that is new to the reader."""
        if attempt < self.attempt:
            return 1 << 62
        return max(first, self.line) if attempt == self.attempt else first

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse a `Last-Event-ID`; anything malformed is the beginning."""
        text = (text or "").strip()
        if text == _END:
            return cls(ended=True)
        if not (match := _POSITION.fullmatch(text)):
            return cls()
        accepted, progress, attempt, line = (int(part) for part in match.groups())
        return cls(bool(accepted), progress, attempt, line)


class ApiStream:
    """Renders the events of one build for one reader, each exactly once, even if some are redelivered."""

    def __init__(self, cursor: ApiCursor) -> None:
        """Start at `cursor`, which is advanced with every event."""
        self.cursor = cursor
        self.result = ""
        """The kind of the final event; empty until then."""
        self._start = replace(cursor)
        self._progress_seen = 0

    def render(self, event: Event) -> bytes:
        """Return the frame for an event; empty if it is not new to the reader."""
        match event.data:
            case Accepted():
                # A build that several requests share has several; each reader gets the first.
                is_new, self.cursor.accepted = not self.cursor.accepted, True
                return self._frame(event) if is_new else b""
            case Progress() as progress if progress.is_place:
                return b"" if self.cursor.accepted else _queue_frame(progress.detail)
            case Progress():
                return self._progress(event)
            case Log() as log:
                return self._lines(event, log)
            case Gap() as gap:
                return self._gap(event, gap)
            case Completed() | Failed() | Cancelled() | Rejected():
                return self._end(event)
            case _:
                assert_never(event.data)

    def _progress(self, event: Event) -> bytes:
        self._progress_seen += 1
        if self._progress_seen <= self._start.progress:
            return b""
        self.cursor.progress = self._progress_seen
        return self._frame(event)

    def _lines(self, event: Event, log: Log) -> bytes:
        end = log.n + len(log.lines)
        first = self._start.first_new(log.attempt, log.n)
        if first >= end:
            return b""
        self._move(log.attempt, end)
        if first > log.n:
            rest = log.model_copy(update={"n": first, "lines": log.lines[first - log.n :]})
            event = replace(
                event,
                id=lines_event_id(log.build_id, log.attempt, first, end - 1, log.kind),
                data=rest,
            )
        return self._frame(event)

    def _gap(self, event: Event, gap: Gap) -> bytes:
        first = self._start.first_new(gap.attempt, gap.first)
        if first > gap.last:
            return b""
        self._move(gap.attempt, gap.last + 1)
        if first > gap.first:
            event = replace(
                event,
                id=lines_event_id(gap.build_id, gap.attempt, first, gap.last, gap.kind),
                data=gap.model_copy(update={"first": first}),
            )
        return self._frame(event)

    def _move(self, attempt: int, line: int) -> None:
        if (attempt, line) > (self.cursor.attempt, self.cursor.line):
            self.cursor.attempt, self.cursor.line = attempt, line

    def _end(self, event: Event) -> bytes:
        self.cursor.ended = True
        self.result = str(event.kind)
        return self._frame(event)

    def _frame(self, event: Event) -> bytes:
        return b"".join(self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        yield f"id: {self.cursor}\nevent: {event.kind}\ndata: ".encode()
        key = f"{event.id} {event.time.timestamp()}"
        if key not in _ENCODED:
            _ENCODED[key] = json.dumps(as_build_event(event)).encode()
        yield _ENCODED[key]
        yield b"\n\n"


class ApiRendering:
    """The events of one build, rendered from a position on."""

    def __init__(self, events: Callable[[], AsyncGenerator[Event, None]], cursor: ApiCursor) -> None:
        """Take what opens the events, from the first on."""
        self._open_events = events
        self._stream = ApiStream(replace(cursor))

    @property
    def result(self) -> str:
        """Return the kind of the final event; empty until then."""
        return self._stream.result

    def position(self) -> ApiCursor:
        """Return the position now."""
        return replace(self._stream.cursor)

    async def chunks(self, keepalive_seconds: float | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the frames of events, and comments during silence."""
        async with aclosing(with_keepalive(self._open_events(), keepalive_seconds)) as events:
            async for event in events:
                chunk = KEEPALIVE if event is None else self._stream.render(event)
                if chunk:
                    yield chunk
                if self._stream.result:
                    return


def as_build_event(event: Event) -> dict[str, Any]:
    """Return an event as the JSON of a `BuildEvent`."""
    return {
        "id": event.id,
        "time": event.time.isoformat(),
        "kind": str(event.kind),
        "data": event.data.model_dump(mode="json", exclude_none=True),
    }
