"""A buffer of events in memory, bounded by their size. No I/O."""

from collections import deque
from typing import Final

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log

EVENT_BYTES: Final = 1000
"""Approximate memory of an event without log lines."""
LINE_BYTES: Final = 600
"""Approximate memory of a log line besides its text."""


def weight(event: Event) -> int:
    """Return the approximate memory of an event in bytes."""
    if isinstance(event.data, Log):
        return EVENT_BYTES + sum(LINE_BYTES + len(line.text) for line in event.data.lines)
    return EVENT_BYTES


class EventBuffer:
    """The newest events of a sequence, by their number. The first event ever appended has number 0."""

    def __init__(self) -> None:
        """Start empty."""
        self.first = 0
        """Number of the oldest event that is still in the buffer."""
        self.weight = 0
        self._events: deque[tuple[Event, int]] = deque()

    @property
    def end(self) -> int:
        """Return the number of the next event to be appended."""
        return self.first + len(self._events)

    def __getitem__(self, number: int) -> Event:
        """Return an event by its number, which must be in the buffer."""
        return self._events[number - self.first][0]

    def append(self, event: Event, *, limit: int) -> None:
        """Append an event and drop the oldest while the buffer exceeds `limit` bytes; the new event always stays."""
        self._events.append((event, added := weight(event)))
        self.weight += added
        while self.weight > limit and len(self._events) > 1:
            self.weight -= self._events.popleft()[1]
            self.first += 1
