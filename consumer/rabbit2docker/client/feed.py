"""One build as it goes on, put together once for all who read it.

Events come live, and from the stream where they were missed. Readers stand at their own places in what is kept in
memory; one that is so slow that its place was given up reads on from the stream until it has caught up. Nobody waits
for anybody.
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
from rabbit2docker.client.history import CLOCK_SLACK, History
from rabbit2docker.client.resequencer import Resequencer, SeenFilter
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Gap, Log, Rejected

INBOX: Final = 1000
"""Live events that wait while the stream is read; when there are more, the stream has them, too."""
HOLE_SECONDS: Final = 0.5
"""Lines that overtook others are waited for so long before the stream is asked for them."""
SETTLE_SECONDS: Final = 1.0
"""What was published while nobody listened may reach the stream a moment later than it reached others."""


class Order(Protocol):
    """What makes one sequence of events that come repeatedly and from several sides."""

    @property
    def waits(self) -> bool:
        """Tell whether something is held back."""

    def take(self, event: Event) -> list[Event]:
        """Return what can be given now."""

    def give_up(self) -> list[Event]:
        """Return what was held back."""


@dataclass(slots=True)
class ReaderPosition:
    """Where one reader stands."""

    order: Order
    number: int
    """Of the next event in memory."""
    offset: Offset
    """Of the next event in the stream, should it have to be read."""
    newest: datetime | None = None

    def take(self, event: Event) -> list[Event]:
        self.newest = event.time
        return self.order.take(event)


class BuildFeed:
    """One build, or one request that has no build (yet)."""

    def __init__(
        self, history: History, key: str, *, offset: Offset, read_first: bool, limit: Callable[[], int]
    ) -> None:
        """Take the build's id; `offset`: where the stream has its beginning; `limit`: bytes to keep in memory."""
        self.readers = 0
        self.key = key
        self._history = history
        self._beginning = self._offset = offset
        self._limit = limit
        self._order = self._new_order()
        self._window = EventBuffer()
        self._inbox: deque[Event] = deque()
        self._heard = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_built = self._is_over = False
        now = asyncio.get_running_loop().time()
        self._read_at: float | None = now if read_first else None
        """When the stream is to be read: what came live may not be all."""
        self._hole_at: float | None = None
        """When lines that are missing are looked for in the stream."""
        self._task = asyncio.create_task(self._run(), name=f"story of {key}")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _new_order(self) -> Order:
        return Resequencer()

    def _is_about(self, event: Event) -> bool:
        return event.stream_filter == self.key

    def _only(self) -> list[str]:
        return [self.key]

    @property
    def failed(self) -> bool:
        """Tell whether it ended without an end: the next reader needs another one."""
        return self._task.done() and (self._task.cancelled() or self._task.exception() is not None)

    def hear(self, event: Event) -> None:
        """Take a live event."""
        if len(self._inbox) < INBOX:
            self._inbox.append(event)
        elif self._read_at is None:
            self._read_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._heard.set()

    def interrupted(self) -> None:
        """Take note that live events may have been missed."""
        self._read_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._heard.set()

    async def close(self) -> None:
        """End it; readers get BrokerUnavailable."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while not self._is_over:
                await self._step()
        finally:
            self._is_over = True
            self._tell()

    async def _step(self) -> None:
        now = asyncio.get_running_loop().time()
        moments = [moment for moment in (self._read_at, self._hole_at) if moment is not None]
        if moments and min(moments) <= now:
            self._read_at = self._hole_at = None
            await self._read_stream()
            self._hear_all()
            self._put(self._order.give_up())
        elif self._inbox:
            self._hear_all()
            self._hole_at = (self._hole_at or now + HOLE_SECONDS) if self._order.waits else None
        else:
            self._heard.clear()
            try:
                async with asyncio.timeout_at(min(moments, default=None)):
                    await self._heard.wait()
            except TimeoutError:
                return

    def _hear_all(self) -> None:
        while self._inbox:
            self._put(self._order.take(self._inbox.popleft()))

    async def _read_stream(self) -> None:
        async with aclosing(self._history.pages(offset=self._where(), only=self._only())) as pages:
            async for page in pages:
                for event in page.events:
                    if self._is_about(event):
                        self._put(self._order.take(event))
                self._offset = page.next
                if self._is_over:
                    return
                await asyncio.sleep(0)  # readers that keep up shall not be overtaken

    def _where(self) -> Offset:
        return self._offset

    def _put(self, events: Iterable[Event]) -> None:
        for event in events:
            if self._is_over:
                return
            self._window.append(event, limit=self._limit())
            self._is_built = self._is_built or isinstance(event.data, Accepted | Log | Gap)
            # A rejection behind an acceptance is about another request that took the same id.
            self._is_over = event.is_terminal or (isinstance(event.data, Rejected) and not self._is_built)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, *, from_now: bool = False) -> AsyncGenerator[Event, None]:
        """Yield everything from the beginning, or from now, to the end. Raises what reading the stream raises."""
        place = ReaderPosition(self._new_order(), self._window.end if from_now else 0, self._beginning)
        while True:
            if place.number < self._window.first:
                async with aclosing(self._catch_up(place)) as missed:
                    async for event in missed:
                        yield event
            elif place.number < self._window.end:
                event, place.number = self._window[place.number], place.number + 1
                for new in place.take(event):
                    yield new
            elif self._is_over:
                await self._finished()
                for new in place.order.give_up():
                    yield new
                return
            else:
                await self._changed.wait()

    async def _catch_up(self, place: "ReaderPosition") -> AsyncGenerator[Event, None]:
        """Yield what a reader has missed in memory, and bring its place into what is there."""
        offset = self._resume(place)
        while place.number < self._window.first:
            end = self._window.end
            missed = self._history.pages(offset=offset, only=self._only(), small=True)
            async with aclosing(missed) as pages:
                async for page in pages:
                    for event in filter(self._is_about, page.events):
                        for new in place.take(event):
                            yield new
                    offset = place.offset = page.next
            if self._window.first <= end:  # else memory has gone on past what was the stream's end
                place.number = self._window.first

    def _resume(self, place: "ReaderPosition") -> Offset:
        return place.offset

    async def _finished(self) -> None:
        """Return when the story has come to its end; raises what ended it otherwise."""
        await asyncio.wait({self._task})
        if self._task.cancelled():
            raise BrokerUnavailable("The connection was closed.")
        self._task.result()


class TenantFeed(BuildFeed):
    """All builds of a tenant; it has no end."""

    _oldest: datetime | None = None
    _newest: datetime | None = None

    def _new_order(self) -> Order:
        return SeenFilter()

    def _is_about(self, event: Event) -> bool:
        return True

    def _only(self) -> list[str]:
        return []

    def _put(self, events: Iterable[Event]) -> None:
        for event in events:
            self._window.append(event, limit=self._limit())
            self._newest = event.time
            self._oldest = self._oldest or event.time
        self._tell()

    def _where(self) -> Offset:
        # Its own offset may be of long ago: unlike a build, this goes on for ever.
        return self._offset if self._newest is None else self._newest - 3 * CLOCK_SLACK

    def _resume(self, place: ReaderPosition) -> Offset:
        since = place.newest or self._oldest
        return place.offset if since is None else since - 3 * CLOCK_SLACK
