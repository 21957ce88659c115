"""Pure: a build's events as the JSON API streams them, and how far a reader has come.

A place is told by numbers that are the same whoever reads, when, and from where: whether the acceptance was told, how
many progress events, and which line of which attempt comes next. So any instance of the service goes on with what
another has begun, from the stream or from the store.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from cachetools import LRUCache
from pydantic import Field

from rabbit2docker.hub.store.models import Record
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    AnyEventData,
    Gap,
    Kind,
    Log,
    Progress,
    Rejected,
)
from rabbit2docker_schemas.ids import lines_event_id

RETRY: Final = b"retry: 2000\n\n"
"""What a stream begins with: who is cut off comes back after two seconds."""
_PLACE = re.compile(r"([01])\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)
_END: Final = "end"
_ENCODED: Final[LRUCache[str, bytes]] = LRUCache(128)
"""Events as JSON: many readers of one build get the same ones at about the same time."""


class BuildEvent(Record):
    """The data of one server-sent event."""

    id: str
    """The event's own id: a repetition has the same one."""
    time: datetime
    kind: Kind
    data: AnyEventData = Field(union_mode="left_to_right")
    """As in the event's message; see `rabbit2docker schema`."""


class QueuePosition(Record):
    """The data of `event: queue`, which comes while a request waits for a free slot."""

    ahead: int
    """Builds that are before this one."""


def queue_frame(ahead: int) -> bytes:
    """Return what a reader gets while a request waits; without an id, as it holds for a moment only."""
    return f"event: queue\ndata: {QueuePosition(ahead=ahead).model_dump_json()}\n\n".encode()


@dataclass(slots=True)
class ApiCursor:
    """What a reader of a build's events has got."""

    accepted: bool = False
    progress: int = 0
    """Progress events."""
    attempt: int = 0
    line: int = 0
    """Number of the line of `attempt` that comes next."""
    ended: bool = False

    def __str__(self) -> str:
        """Return what stands after `id:`."""
        return _END if self.ended else f"{self.accepted:d}.{self.progress}.{self.attempt}.{self.line}"

    def first_new(self, attempt: int, first: int) -> int:
        """Return the first line from `first` on that the reader has not got."""
        if attempt < self.attempt:
            return 1 << 62
        return max(first, self.line) if attempt == self.attempt else first

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Return the place that a `Last-Event-ID` names; the beginning if it names none."""
        text = (text or "").strip()
        if text == _END:
            return cls(ended=True)
        if not (match := _PLACE.fullmatch(text)):
            return cls()
        accepted, progress, attempt, line = (int(part) for part in match.groups())
        return cls(bool(accepted), progress, attempt, line)


class ApiStream:
    """Tells one reader the events of one build, each once, whichever of them are given again."""

    def __init__(self, place: ApiCursor) -> None:
        """Go on at `place`, which moves along."""
        self.place = place
        self.result = ""
        """The kind of event that ended it; empty until then."""
        self._begun = replace(place)
        self._met = 0

    def tell(self, event: Event) -> bytes:
        """Return what the reader gets of an event: a frame, or nothing."""
        match event.data:
            case Accepted():
                # Of a build that several asked for there are several; each reader gets the first.
                is_new, self.place.accepted = not self.place.accepted, True
                return self._frame(event) if is_new else b""
            case Progress():
                self._met += 1
                if self._met <= self._begun.progress:
                    return b""
                self.place.progress = self._met
                return self._frame(event)
            case Log() as log:
                return self._lines(event, log)
            case Gap() as gap:
                return self._gap(event, gap)
            case _:
                return self._end(event)

    def _lines(self, event: Event, log: Log) -> bytes:
        end = log.n + len(log.lines)
        first = self._begun.first_new(log.attempt, log.n)
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
        first = self._begun.first_new(gap.attempt, gap.first)
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
        if (attempt, line) > (self.place.attempt, self.place.line):
            self.place.attempt, self.place.line = attempt, line

    def _end(self, event: Event) -> bytes:
        assert event.is_terminal or isinstance(event.data, Rejected)
        self.place.ended = True
        self.result = str(event.kind)
        return self._frame(event)

    def _frame(self, event: Event) -> bytes:
        return b"".join(self._parts(event))

    def _parts(self, event: Event) -> Iterator[bytes]:
        yield f"id: {self.place}\nevent: {event.kind}\ndata: ".encode()
        key = f"{event.id} {event.time.timestamp()}"
        if key not in _ENCODED:
            _ENCODED[key] = json.dumps(as_build_event(event)).encode()
        yield _ENCODED[key]
        yield b"\n\n"


def as_build_event(event: Event) -> dict[str, Any]:
    """Return the data of an event's frame."""
    return {
        "id": event.id,
        "time": event.time.isoformat(),
        "kind": str(event.kind),
        "data": event.data.model_dump(mode="json", exclude_none=True),
    }
