"""The events of one build as it goes on, assembled once for all of its readers.

Events arrive live, and from the tenant's stream where live events may have been missed. The past of a build is taken
from recent events in memory if all of it is there. Each reader has its own position in the buffer; a reader so slow that
its position was dropped reads the past again until it has caught up. No reader holds up another.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from rabbit2docker.amqp.stream import Offset
from rabbit2docker.client.buffers import EventBuffer
from rabbit2docker.client.build_index import IndexLookup, Located
from rabbit2docker.client.history import CLOCK_SLACK, History
from rabbit2docker.client.recent_events import RecentBuild
from rabbit2docker.client.resequencer import Resequencer, SeenFilter
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Gap, Log, Progress, Rejected

INBOX_EVENTS: Final = 1000
"""Live events queued while the stream is read. Further ones are dropped, as the stream has them."""
HOLE_SECONDS: Final = 0.5
"""Wait for missing lines before they are looked for in the stream."""
EVENTS_AT_ONCE: Final = 100
"""Recent events that are taken before others get their turn."""
SETTLE_SECONDS: Final = 1.0
"""Wait after a gap before the stream is read: it may store an event later than a queue delivered it."""


class EventOrder(Protocol):
    """Turns repeated events from several sources into one sequence."""

    @property
    def is_holding(self) -> bool:
        """Return whether an event is held back."""

    def push(self, event: Event) -> list[Event]:
        """Return the events that are ready now."""

    def flush(self) -> list[Event]:
        """Return the events that were held back."""


@dataclass(slots=True)
class ReaderPosition:
    """The position of one reader in the buffer and in the stream."""

    order: EventOrder
    number: int
    """Number of the next event in the buffer."""
    offset: Offset | None = None
    """Stream offset to continue from if the buffer has dropped that event; None: the feed's beginning."""
    newest: datetime | None = None

    def push(self, event: Event) -> list[Event]:
        self.newest = event.time
        return self.order.push(event)


class BuildFeed:
    """The events of one build, or of one request that has no build (yet)."""

    def __init__(
        self,
        history: History,
        key: str,
        *,
        since: datetime | None,
        recent: RecentBuild | None = None,
        read_first: bool = True,
        limit: Callable[[], int],
    ) -> None:
        """Take the build's id, the `recent` events of it, and the `limit` of the buffer in bytes.

        `since`: a time before the first event, for the case that the index does not have it. `read_first`: take the past
        before live events are passed on.
        """
        self.readers = 0
        self.key = key
        self._history = history
        self._since = since
        self._recent = recent
        self._known: IndexLookup | None = None
        self._located: Located | None = None
        self._offset: Offset | None = None
        self._limit = limit
        self._order = self._new_order()
        self._buffer = EventBuffer()
        self._inbox: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._has_build = self._is_over = False
        now = asyncio.get_running_loop().time()
        self._is_first_read = True
        self._read_at: float | None = now if read_first else None
        """Time to read the stream, because live events may have been missed."""
        self._hole_at: float | None = None
        """Time to look for missing lines in the stream."""
        self._task = asyncio.create_task(self._run(), name=f"feed of {key}")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _new_order(self) -> EventOrder:
        return Resequencer()

    def _accepts(self, event: Event) -> bool:
        return event.stream_filter == self.key

    def _filter_values(self) -> list[str]:
        return [self.key]

    @property
    def failed(self) -> bool:
        """Return whether the feed broke before the build's end; new readers need a new feed."""
        return self._task.done() and (self._task.cancelled() or self._task.exception() is not None)

    def push(self, event: Event) -> None:
        """Add a live event."""
        if len(self._inbox) < INBOX_EVENTS:
            self._inbox.append(event)
        elif self._read_at is None:
            self._read_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._wake.set()

    def mark_gap_possible(self) -> None:
        """Record that live events may have been missed, so that the stream is read."""
        self._read_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._wake.set()

    async def close(self) -> None:
        """End the feed; its readers get BrokerUnavailable."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while not self._is_over:
                await self._step()
        finally:
            self._is_over = True
            self._wake_readers()

    async def _step(self) -> None:
        now = asyncio.get_running_loop().time()
        due_times = [due for due in (self._read_at, self._hole_at) if due is not None]
        if due_times and min(due_times) <= now:
            was_waited_for = self._hole_at is not None and self._hole_at <= now
            self._read_at = self._hole_at = None
            if self._is_first_read and await self._take_recent():
                self._drain_inbox()
                self._watch_hole()
            else:
                await self._read_stream()
                self._drain_inbox()
                if was_waited_for:
                    self._append(self._order.flush())
                else:  # what is missing may be under way
                    self._watch_hole()
            self._is_first_read = False
        elif self._inbox:
            self._drain_inbox()
            self._watch_hole()
        else:
            self._wake.clear()
            try:
                async with asyncio.timeout_at(min(due_times, default=None)):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _watch_hole(self) -> None:
        due = self._hole_at or asyncio.get_running_loop().time() + HOLE_SECONDS
        self._hole_at = due if self._order.is_holding else None

    def _drain_inbox(self) -> None:
        while self._inbox:
            self._append(self._order.push(self._inbox.popleft()))

    async def _take_recent(self) -> bool:
        """Append the past of the build from memory; return False if not all of it is there."""
        if self._recent is None:
            return False
        found = self._recent.events()
        if found is None:
            begin = (await self._look_up()).begin_after(self._since)
            found = None if begin is None else self._recent.events_from(begin)
        if found is None:
            return False
        for number, event in enumerate(found, 1):
            self._append(self._order.push(event))
            if not number % EVENTS_AT_ONCE:
                await asyncio.sleep(0)
        return True

    async def _read_stream(self) -> None:
        self._recent = None  # what it lacks, readers that are late must get from the stream, too
        located, offset = await self._locate(), self._stream_offset()
        pages = self._history.pages(
            offset=located.offset if offset is None else offset,
            only=self._filter_values(),
            located=located,
        )
        async with aclosing(pages):
            async for page in pages:
                for event in filter(self._accepts, page.events):
                    self._append(self._order.push(event))
                self._offset = page.next
                if self._is_over:
                    return
                await asyncio.sleep(0)  # readers that keep up must not lose their position to a long page

    async def _locate(self) -> Located:
        if self._located is None:
            known = await self._look_up()
            if self._since is None or known.begin_after(self._since) is not None:
                self._located = await self._history.locate(self._filter_values(), known)
            else:
                self._located = Located(self._since)
        return self._located

    async def _look_up(self) -> IndexLookup:
        if self._known is None:
            self._known = await self._history.look_up(self._filter_values())
        return self._known

    def _stream_offset(self) -> Offset | None:
        return self._offset

    def _append(self, events: Iterable[Event]) -> None:
        for event in events:
            if self._is_over:
                return
            if self._has_build and isinstance(event.data, Progress) and event.data.is_place:
                continue  # published at the moment at which the request was taken
            self._buffer.append(event, limit=self._limit())
            self._has_build = self._has_build or isinstance(event.data, Accepted | Log | Gap)
            # A rejection after an acceptance belongs to another request that reused the id.
            self._is_over = event.is_terminal or (isinstance(event.data, Rejected) and not self._has_build)
        self._wake_readers()

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, *, from_now: bool = False) -> AsyncGenerator[Event, None]:
        """Yield everything from the beginning, or from now, to the end. Raises what reading the stream raises."""
        position = ReaderPosition(self._new_order(), self._buffer.end if from_now else 0)
        while True:
            if position.number < self._buffer.first:
                async with aclosing(self._replay(position)) as missed:
                    async for event in missed:
                        yield event
            elif position.number < self._buffer.end:
                event, position.number = self._buffer[position.number], position.number + 1
                for new in position.push(event):
                    yield new
            elif self._is_over:
                await self._raise_if_broken()
                for new in position.order.flush():
                    yield new
                return
            else:
                await self._changed.wait()

    async def _replay(self, position: ReaderPosition) -> AsyncGenerator[Event, None]:
        """Yield what the buffer has dropped, and move the position back into the buffer."""
        end = self._buffer.end
        found = None if self._recent is None else self._recent.events()
        if found is None:
            async with aclosing(self._replay_stream(position)) as missed:
                async for event in missed:
                    yield event
            return
        for number, event in enumerate(found, 1):
            for new in position.push(event):
                yield new
            if not number % EVENTS_AT_ONCE:
                await asyncio.sleep(0)
        position.number = end

    async def _replay_stream(self, position: ReaderPosition) -> AsyncGenerator[Event, None]:
        located, offset = await self._locate(), self._replay_offset(position)
        while position.number < self._buffer.first:
            end = self._buffer.end
            missed = self._history.pages(
                offset=located.offset if offset is None else offset,
                only=self._filter_values(),
                small=True,
                located=located,
            )
            async with aclosing(missed) as pages:
                async for page in pages:
                    for event in filter(self._accepts, page.events):
                        for new in position.push(event):
                            yield new
                    offset = position.offset = page.next
            if self._buffer.first <= end:  # else the buffer has moved past what was the stream's end
                position.number = self._buffer.first

    def _replay_offset(self, position: ReaderPosition) -> Offset | None:
        return position.offset

    async def _raise_if_broken(self) -> None:
        """Return if the feed has reached its end; raise its error otherwise."""
        await asyncio.wait({self._task})
        if self._task.cancelled():
            raise BrokerUnavailable("The connection was closed.")
        self._task.result()


class TenantFeed(BuildFeed):
    """The events of all builds of a tenant. Has no end."""

    _oldest: datetime | None = None
    _newest: datetime | None = None

    def _new_order(self) -> EventOrder:
        return SeenFilter()

    def _accepts(self, event: Event) -> bool:
        return True

    def _filter_values(self) -> list[str]:
        return []

    async def _locate(self) -> Located:
        return Located("first" if self._since is None else self._since)

    def _append(self, events: Iterable[Event]) -> None:
        for event in events:
            self._buffer.append(event, limit=self._limit())
            self._newest = event.time
            self._oldest = self._oldest or event.time
        self._wake_readers()

    def _stream_offset(self) -> Offset | None:
        # The last offset read may be from long ago: unlike a build, this feed lives as long as the program.
        return self._offset if self._newest is None else self._newest - 3 * CLOCK_SLACK

    def _replay_offset(self, position: ReaderPosition) -> Offset | None:
        since = position.newest or self._oldest
        return position.offset if since is None else since - 3 * CLOCK_SLACK
