"""One sequence of events out of several sources: each event and each log line once, lines in order. No I/O."""

from dataclasses import replace
from typing import Final

from cachetools import LRUCache

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Gap, Log
from rabbit2docker_schemas.ids import EventId, lines_event_id

MAX_HELD: Final = 200
"""Events held back until the lines before them arrive. Lines that are later than this count as missing."""
SEEN_IDS: Final = 20_000
"""Ids remembered of a tenant's events. Repetitions follow within seconds, or after a replay of the stream."""


class Deduplicator:
    """Drops repeated events and cuts overlapping lines, for events that arrive in order."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: set[EventId] = set()
        self._highest: dict[tuple[str, int], int] = {}

    def next_line(self, build_id: str, attempt: int) -> int:
        """Return the number of the line that is expected next."""
        return self._highest.get((build_id, attempt), -1) + 1

    def push(self, event: Event) -> list[Event]:
        """Return the news in an event: nothing, the event, or its new lines, with a gap before them if lines are missing."""
        match event.data:
            case Log() as log:
                return self._new_lines(event, log)
            case Gap() as gap:
                return self._new_gap(event, gap)
            case _:
                return self._unseen(event)

    def _unseen(self, event: Event) -> list[Event]:
        if event.id in self._seen:
            return []
        self._seen.add(event.id)
        return [event]

    def _new_lines(self, event: Event, log: Log) -> list[Event]:
        key = (log.build_id, log.attempt)
        highest = self._highest.get(key, -1)
        last = log.n + len(log.lines) - 1
        if last <= highest:
            return []
        self._highest[key] = last
        if log.n > highest + 1:
            return [inferred_gap(event, log.build_id, log.attempt, highest + 1, log.n - 1), event]
        known = highest + 1 - log.n
        if not known:
            return [event]
        rest = log.model_copy(update={"n": highest + 1, "lines": log.lines[known:]})
        new_id = lines_event_id(log.build_id, log.attempt, rest.n, last, rest.kind)
        return [replace(event, id=new_id, data=rest)]

    def _new_gap(self, event: Event, gap: Gap) -> list[Event]:
        key = (gap.build_id, gap.attempt)
        highest = self._highest.get(key, -1)
        if gap.last <= highest:
            return []
        self._highest[key] = gap.last
        return [replace(event, data=gap.model_copy(update={"first": max(gap.first, highest + 1)}))]


class SeenFilter:
    """Drops events whose id was seen recently, for a reader of all builds. Holds nothing back."""

    is_holding: Final = False

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: LRUCache[EventId, bool] = LRUCache(SEEN_IDS)

    def push(self, event: Event) -> list[Event]:
        """Return the event, or nothing if its id was seen."""
        if event.id in self._seen:
            return []
        self._seen[event.id] = True
        return [event]

    def flush(self) -> list[Event]:
        """Return nothing."""
        return []


class Resequencer:
    """A Deduplicator for events in any order: early lines, and an early end, are held until the lines before arrive."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._deduplicator = Deduplicator()
        self._held: list[Event] = []

    @property
    def is_holding(self) -> bool:
        """Return whether an event is held back because lines before it are missing."""
        return bool(self._held)

    def push(self, event: Event) -> list[Event]:
        """Return the events that are ready once this one has arrived."""
        if self._is_early(event):
            if all(event.id != held.id for held in self._held):
                self._held.append(event)
            return self.flush() if len(self._held) > MAX_HELD else []
        ready = self._deduplicator.push(event)
        for held in self._held_in_order():
            if not self._is_early(held):
                self._held.remove(held)
                ready += self._deduplicator.push(held)
        return ready

    def flush(self) -> list[Event]:
        """Return everything that was held back, with a gap in place of missing lines."""
        ready: list[Event] = []
        for event in self._held_in_order():
            if (gap := self._gap_before_end(event)) is not None:
                ready += self._deduplicator.push(gap)
            ready += self._deduplicator.push(event)
        self._held.clear()
        return ready

    def _held_in_order(self) -> list[Event]:
        def order(event: Event) -> tuple[bool, int, int]:
            data = event.data
            match data:
                case Log():
                    return (False, data.attempt, data.n)
                case Gap():
                    return (False, data.attempt, data.first)
                case _:
                    return (True, 0, 0)

        return sorted(self._held, key=order)

    def _is_early(self, event: Event) -> bool:
        data = event.data
        match data:
            case Log():
                return data.n > self._deduplicator.next_line(data.build_id, data.attempt)
            case Gap():
                return data.first > self._deduplicator.next_line(data.build_id, data.attempt)
            case Completed() | Failed() | Cancelled():
                return (
                    any(not held.is_terminal for held in self._held)
                    or self._gap_before_end(event) is not None
                )
            case _:
                return False

    def _gap_before_end(self, event: Event) -> Event | None:
        """Return the gap between the last line that arrived and the line count in a terminal event."""
        data = event.data
        if not isinstance(data, Completed | Failed | Cancelled) or not data.attempt or not data.lines:
            return None
        first = self._deduplicator.next_line(data.build_id, data.attempt)
        if first >= data.lines:
            return None
        return inferred_gap(event, data.build_id, data.attempt, first, data.lines - 1)


def inferred_gap(event: Event, build_id: str, attempt: int, first: int, last: int) -> Event:
    """Return a gap that was never published, placed before `event`."""
    gap = Gap(
        build_id=build_id,
        attempt=attempt,
        first=first,
        last=last,
        message="These lines did not reach this reader.",
    )
    return replace(event, id=lines_event_id(build_id, attempt, first, last, gap.kind), data=gap)
