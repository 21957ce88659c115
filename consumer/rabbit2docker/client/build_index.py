"""The index of a tenant's builds: what began and ended them, in a stream that is small and searched from its end.

RabbitMQ looks through a stream at some ten thousand events a second, so that the events of one build are read from
where the index says that it began, not from the beginning of the stream.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rabbit2docker.amqp.stream import PREFETCH, Last, Offset, StoredEvent
from rabbit2docker.client.stream_pages import StreamPages
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Progress, Rejected
from rabbit2docker_schemas.ids import EventId

FIRST_WINDOW: Final = 1_000
"""Number of newest entries that are searched first: most builds looked for are recent."""
WINDOWS: Final = 4
WINDOW_GROWTH: Final = 8
"""Each further window is larger by this; after the last one all entries are read."""
FILLERS: Final = 16
"""Later builds whose events may come along. RabbitMQ sends matches in batches: without these, the last batch of a build
would be complete only at the end of the stream."""
FILLER_ENTRIES: Final = 32
"""A first page. A few later builds have more events than fit into a batch."""
ENDED_PREFETCH: Final = 32
"""For builds that have ended: no more than fillers can make up for."""


@dataclass(frozen=True, slots=True)
class IndexWindow:
    """The newest entries of an index."""

    events: AsyncGenerator[Event, None]
    is_whole: bool
    """True if there are no earlier ones, or none that were asked for."""


@dataclass(frozen=True, slots=True)
class BuildEntries:
    """The entries of one build, of the newest of its generations."""

    events: tuple[Event, ...]
    last_offset: int
    """Place of the last of them in the index."""
    is_repetition: bool = False
    """True if there is an earlier generation."""

    @property
    def begin(self) -> Event:
        """The first event."""
        return self.events[0]

    @property
    def end(self) -> Event | None:
        """The event after which there is no other; None while the build or the request goes on."""
        ends = [event for event in self.events if event.is_terminal]
        if ends:
            return ends[-1]
        accepted = [event for event in self.events if isinstance(event.data, Accepted)]
        has_joined = any(map(_joins, accepted))
        is_rejected = not accepted and isinstance(self.events[-1].data, Rejected)
        return self.events[-1] if has_joined or is_rejected else None


def is_beginning(event: Event) -> bool:
    """Return whether an entry may be the first of its build."""
    if isinstance(event.data, Rejected):
        return event.data.is_end
    return isinstance(event.data, Accepted) or _is_wait_for_attempt(event)


def _joins(event: Event) -> bool:
    """Return whether an event says that a request has joined the build of another one."""
    return isinstance(event.data, Accepted) and event.subject != event.stream_filter


def is_last(event: Event) -> bool:
    """Return whether no other event of a build or request is to be expected after this one."""
    if isinstance(event.data, Rejected):
        return event.data.is_end
    return event.is_terminal or _joins(event)


def _is_wait_for_attempt(event: Event) -> bool:
    return isinstance(event.data, Progress) and event.data.attempt == 0


def begins_anew(event: Event) -> bool:
    """Return whether an entry after an end begins another generation. A place in the line may come late."""
    is_place = isinstance(event.data, Progress) and event.data.is_place
    return isinstance(event.data, Accepted) or (_is_wait_for_attempt(event) and not is_place)


def newest_generation(entries: Sequence[StoredEvent]) -> BuildEntries | None:
    """Return the entries since the last end that another beginning follows; None if there are no entries.

    A request that comes again after its build is forgotten builds anew under the same ids of request and build.
    """
    seen: set[EventId] = set()
    generations: list[list[StoredEvent]] = [[]]
    for entry in entries:
        if entry.event.id in seen:
            continue
        seen.add(entry.event.id)
        if begins_anew(entry.event) and any(earlier.event.is_terminal for earlier in generations[-1]):
            generations.append([])
        generations[-1].append(entry)
    newest = generations[-1]
    if not newest:
        return None
    events = tuple(entry.event for entry in newest)
    return BuildEntries(events, newest[-1].offset, is_repetition=len(generations) > 1)


def fillers_among(entries: Sequence[StoredEvent]) -> tuple[str, ...]:
    """Return the filter values of builds that began with one of these entries."""
    began = [
        entry.event.stream_filter
        for entry in entries
        if isinstance(entry.event.data, Accepted) and not entry.event.data.attached
    ]
    return tuple(dict.fromkeys(began))[:FILLERS]


@dataclass(frozen=True, slots=True)
class IndexLookup:
    """The result of looking for one build in the index."""

    entries: BuildEntries | None
    """None if there are none."""
    last_entry: Last | None
    """The last entry of the index at the time; None if it is empty or there is none."""

    def begin_after(self, moment: datetime | None) -> Event | None:
        """Return the first event of the build; None if that is not known, or was before `moment` and so of another build."""
        begin = None if self.entries is None else self.entries.begin
        if begin is None or not is_beginning(begin) or (moment is not None and begin.time < moment):
            return None
        return begin


@dataclass(frozen=True, slots=True)
class Located:
    """The place of one build's events in its tenant's stream."""

    offset: Offset
    """Offset from which to read."""
    entries: BuildEntries | None = None
    """None: the index does not have it, so it may have begun only just now, or never."""
    fillers: tuple[str, ...] = ()
    """Further filter values to read with."""
    is_empty: bool = False
    """True if the stream had no message when this was found."""
    last: Last | None = None
    """A message after the end, up to which to read; None: look for the present last one."""

    @property
    def end(self) -> Event | None:
        """The last event, if it is known."""
        return self.entries.end if self.entries else None

    @property
    def prefetch(self) -> int:
        """Number of matches that RabbitMQ may look for ahead."""
        return ENDED_PREFETCH if self.end else PREFETCH


class BuildIndex:
    """Searches the index of a tenant."""

    def __init__(self, pages: StreamPages) -> None:
        """Read the index from its stream."""
        self._pages = pages

    async def fillers(self, found: BuildEntries, last: Last) -> tuple[str, ...]:
        """Return fillers for reading the events of a build that has ended; none for another."""
        if found.end is None:
            return ()
        return fillers_among(await self._read(found.last_offset + 1, last, newest=FILLER_ENTRIES))

    async def search(self, keys: Sequence[str], last: Last) -> BuildEntries | None:
        """Return the entries with these filter values up to `last`; None if there are none."""
        entries: list[StoredEvent] = []
        for start in _starts(await self._beginning(last), last):
            entries = [
                stored
                for stored in await self._read(start, last, only=keys)
                if stored.event.stream_filter in keys
            ]
            if entries and is_beginning(entries[0].event):
                break
        return newest_generation(entries)

    async def _beginning(self, last: Last) -> int:
        first = await self._pages.first() if last.offset > FIRST_WINDOW else None
        return first.offset if first else 0

    async def _read(
        self, start: int, last: Last, *, only: Sequence[str] = (), newest: int | None = None
    ) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        async with aclosing(self._pages.pages(offset=start, only=only, last=last)) as pages:
            async for page in pages:
                found += page.stored
                if newest is not None and len(found) >= newest:
                    break
        return found

    async def windows(self, since: datetime, last: Last, *, newest: int) -> AsyncGenerator[IndexWindow, None]:
        """Yield the `newest` entries up to `last`, then more of them at a time until all since a moment."""
        beginning = await self._pages.offset_at(since, last)
        for start in _starts(beginning, last, newest=newest):
            yield IndexWindow(self._events(start, last, since), is_whole=start == beginning)

    async def _events(self, start: int, last: Last, since: datetime) -> AsyncGenerator[Event, None]:
        async with aclosing(self._pages.pages(offset=start, last=last)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.time >= since:
                        yield event

    async def reaches_back_to(self, moment: datetime) -> bool:
        """Return whether the index, which must not be empty, has entries from before `moment`."""
        first = await self._pages.first()
        return first is not None and first.event.time <= moment


def _starts(beginning: int, last: Last, *, newest: int = FIRST_WINDOW) -> Iterable[int]:
    """Return the offsets from which to read: near the end first, then farther away, at last from the beginning."""
    for step in range(WINDOWS):
        start = last.offset - newest * WINDOW_GROWTH**step
        if start > beginning:
            yield start
    yield beginning
