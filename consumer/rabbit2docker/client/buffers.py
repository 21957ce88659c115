"""Pure: what is kept in memory of events that came lately, within a bound."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log

EVENT_BYTES: Final = 1000
LINE_BYTES: Final = 600
"""About what an event, and each of its lines beside its text, takes as Python objects."""


def weight(event: Event) -> int:
    """Return about how many bytes of memory an event takes."""
    if isinstance(event.data, Log):
        return EVENT_BYTES + sum(LINE_BYTES + len(line.text) for line in event.data.lines)
    return EVENT_BYTES


class EventBuffer:
    """The newest of numbered events. The first that was ever appended has the number 0."""

    def __init__(self) -> None:
        """Start empty."""
        self.first = 0
        """Number of the oldest that is still here."""
        self.weight = 0
        self._events: deque[tuple[Event, int]] = deque()

    @property
    def end(self) -> int:
        """Return the number that the next event gets."""
        return self.first + len(self._events)

    def __getitem__(self, number: int) -> Event:
        """Return the event of this number, which has to be here."""
        return self._events[number - self.first][0]

    def append(self, event: Event, *, limit: int) -> None:
        """Add an event, and forget the oldest while all take more than `limit` bytes; the new one stays."""
        self._events.append((event, added := weight(event)))
        self.weight += added
        while self.weight > limit and len(self._events) > 1:
            self.weight -= self._events.popleft()[1]
            self.first += 1


class RecentEvents:
    """Events with the moments at which they came, and from when on none of them is missing."""

    def __init__(self, now: float, *, limit: int) -> None:
        """Keep at most about `limit` bytes."""
        self._complete_since = now
        self._limit = limit
        self._weight = 0
        self._events: deque[tuple[float, Event]] = deque()

    def add(self, event: Event, now: float) -> None:
        """Add an event that came now."""
        self._events.append((now, event))
        self._weight += weight(event)
        while self._weight > self._limit:
            moment, oldest = self._events.popleft()
            self._weight -= weight(oldest)
            self._complete_since = moment

    def interrupted(self, now: float) -> None:
        """Note that events may be missing before now."""
        self._complete_since = now

    def has_all_since(self, moment: float) -> bool:
        """Tell whether everything is here that came since that moment."""
        return moment > self._complete_since

    def about(self, key: str, *, since: float = 0.0) -> Iterable[Event]:
        """Return what is about a build and came since that moment."""
        return [event for moment, event in self._events if moment >= since and event.stream_filter == key]
