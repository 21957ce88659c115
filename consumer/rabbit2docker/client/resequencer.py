"""Pure: the rule by which a reader gets each event and each log line once, from any mixture of sources."""

from dataclasses import replace
from typing import Final

from cachetools import LRUCache

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Gap, Log
from rabbit2docker_schemas.ids import EventId, lines_event_id

HELD: Final = 200
"""Events that wait for lines before them. What is out of order by more than this is missing."""
REMEMBERED: Final = 20_000
"""Ids of a tenant's events: repetitions come within seconds, or are read again from where they were."""


class Deduplicator:
    """Takes events in the order they come, with repetitions and overlaps, and gives what is new."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: set[EventId] = set()
        self._highest: dict[tuple[str, int], int] = {}

    def next_line(self, build_id: str, attempt: int) -> int:
        """Return the number of the line that comes next."""
        return self._highest.get((build_id, attempt), -1) + 1

    def take(self, event: Event) -> list[Event]:
        """Return what is new of this event: nothing, it, or its new lines, perhaps after a gap that nobody told."""
        match event.data:
            case Log() as log:
                return self._lines(event, log)
            case Gap() as gap:
                return self._gap(event, gap)
            case _:
                return self._once(event)

    def _once(self, event: Event) -> list[Event]:
        if event.id in self._seen:
            return []
        self._seen.add(event.id)
        return [event]

    def _lines(self, event: Event, log: Log) -> list[Event]:
        key = (log.build_id, log.attempt)
        highest = self._highest.get(key, -1)
        last = log.n + len(log.lines) - 1
        if last <= highest:
            return []
        self._highest[key] = last
        if log.n > highest + 1:
            return [untold_gap(event, log.build_id, log.attempt, highest + 1, log.n - 1), event]
        known = highest + 1 - log.n
        if not known:
            return [event]
        rest = log.model_copy(update={"n": highest + 1, "lines": log.lines[known:]})
        new_id = lines_event_id(log.build_id, log.attempt, rest.n, last, rest.kind)
        return [replace(event, id=new_id, data=rest)]

    def _gap(self, event: Event, gap: Gap) -> list[Event]:
        key = (gap.build_id, gap.attempt)
        highest = self._highest.get(key, -1)
        if gap.last <= highest:
            return []
        self._highest[key] = gap.last
        return [replace(event, data=gap.model_copy(update={"first": max(gap.first, highest + 1)}))]


class SeenFilter:
    """Gives events whose id has not come lately, for a reader of all builds; it has nothing that waits."""

    waits: Final = False

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: LRUCache[EventId, bool] = LRUCache(REMEMBERED)

    def take(self, event: Event) -> list[Event]:
        """Return the event, or nothing when it was seen."""
        if event.id in self._seen:
            return []
        self._seen[event.id] = True
        return [event]

    def give_up(self) -> list[Event]:
        """Return nothing."""
        return []


class Resequencer:
    """Gives what `Merged` gives, and lets lines that came too early, or an end, wait for the lines before them."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._merged = Deduplicator()
        self._held: list[Event] = []

    @property
    def waits(self) -> bool:
        """Tell whether lines are missing before something that is here."""
        return bool(self._held)

    def take(self, event: Event) -> list[Event]:
        """Return what can be given now that this event is here."""
        if self._is_early(event):
            if all(event.id != held.id for held in self._held):
                self._held.append(event)
            return self.give_up() if len(self._held) > HELD else []
        given = self._merged.take(event)
        for held in self._in_turn():
            if not self._is_early(held):
                self._held.remove(held)
                given += self._merged.take(held)
        return given

    def give_up(self) -> list[Event]:
        """Return all that waits, with a gap for each hole."""
        given: list[Event] = []
        for event in self._in_turn():
            if (lost := self._lost_before_end(event)) is not None:
                given += self._merged.take(lost)
            given += self._merged.take(event)
        self._held.clear()
        return given

    def _in_turn(self) -> list[Event]:
        def place(event: Event) -> tuple[bool, int, int]:
            data = event.data
            match data:
                case Log():
                    return (False, data.attempt, data.n)
                case Gap():
                    return (False, data.attempt, data.first)
                case _:
                    return (True, 0, 0)

        return sorted(self._held, key=place)

    def _is_early(self, event: Event) -> bool:
        data = event.data
        match data:
            case Log():
                return data.n > self._merged.next_line(data.build_id, data.attempt)
            case Gap():
                return data.first > self._merged.next_line(data.build_id, data.attempt)
            case Completed() | Failed() | Cancelled():
                return (
                    any(not held.is_terminal for held in self._held)
                    or self._lost_before_end(event) is not None
                )
            case _:
                return False

    def _lost_before_end(self, event: Event) -> Event | None:
        """Return the gap between the last line that came and the last one that the build's end counts."""
        data = event.data
        if not isinstance(data, Completed | Failed | Cancelled) or not data.attempt or not data.lines:
            return None
        first = self._merged.next_line(data.build_id, data.attempt)
        if first >= data.lines:
            return None
        return untold_gap(event, data.build_id, data.attempt, first, data.lines - 1)


def untold_gap(event: Event, build_id: str, attempt: int, first: int, last: int) -> Event:
    """Return a gap that nobody has published, in the place before `event`."""
    gap = Gap(
        build_id=build_id,
        attempt=attempt,
        first=first,
        last=last,
        message="These lines did not reach this reader.",
    )
    return replace(event, id=lines_event_id(build_id, attempt, first, last, gap.kind), data=gap)
