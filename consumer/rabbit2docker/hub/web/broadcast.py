"""The stream of one build for all of its viewers at once.

A broadcast renders each event once, keeps the newest chunks, and writes them to all viewers in rounds, each with what has
come since the one before. A viewer costs it no task and no timer. One that has no room for more is left out until it
has; once the chunks that it needs next are gone, it leaves the broadcast and reads by itself from its position.
"""

import asyncio
from asyncio import Future
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from contextlib import aclosing, contextmanager
from enum import Enum, auto
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE
from rabbit2docker.hub.web.chunks import ChunkBuffer, Piece
from rabbit2docker.hub.web.outlet import Outlet

MEMORY_BYTES: Final = 16 * 1024 * 1024
"""Memory that the chunks of all broadcasts share."""
MAX_BYTES: Final = 512 * 1024
MIN_BYTES: Final = 16 * 1024
SLICE: Final = 50
"""Viewers that are written to before others get their turn."""
LONG_ROUND_SECONDS: Final = 0.005
MAX_PAUSE_SECONDS: Final = 0.1
"""After a long round the next one waits for as long as it took: at least half of the time is left for everything else."""

COMMENT: Final = Piece(KEEPALIVE)

CursorT = TypeVar("CursorT")
PositionT = TypeVar("PositionT", covariant=True)


class Rendering(Protocol[PositionT]):
    """A build's events, rendered from a position on."""

    @property
    def result(self) -> str:
        """Return the result, once the stream has reached its end."""

    def position(self) -> PositionT:
        """Return the position now; its str() names it for all readers."""

    def chunks(self, keepalive_seconds: float | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the chunks, with comments during silence."""


class End(Enum):
    """The reason for the end of a subscription."""

    OVER = auto()
    """Everything was sent."""
    BEHIND = auto()
    """The viewer has to read by itself."""
    STALLED = auto()


class Subscriber(Generic[CursorT]):
    """One viewer of a broadcast."""

    __slots__ = ("cursor", "ended", "is_blocked", "number", "outlet", "stalled")

    def __init__(self, outlet: Outlet, number: int, cursor: CursorT) -> None:
        """Start with a chunk, which follows a position."""
        self.outlet = outlet
        self.number = number
        self.cursor = cursor
        self.is_blocked = False
        self.stalled: asyncio.TimerHandle | None = None
        self.ended: Future[End] = asyncio.get_running_loop().create_future()

    def end(self, why: End) -> None:
        """Note the end, unless there was one."""
        if not self.ended.done():
            self.ended.set_result(why)

    def close(self) -> None:
        """Forget the timer."""
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None


class Broadcast(Generic[CursorT]):
    """Reads a rendering once and sends its chunks to its subscribers."""

    def __init__(
        self,
        rendering: Rendering[CursorT],
        *,
        limit: Callable[[], int],
        on_news: Callable[[], None],
        stalled_seconds: float,
    ) -> None:
        """Start to read; `limit` is that of the chunks in bytes, `on_news` is called with each of them."""
        self._rendering = rendering
        self._limit = limit
        self._on_news = on_news
        self._stalled_seconds = stalled_seconds
        self._buffer = ChunkBuffer(rendering.position())
        self._subscribers: dict[Subscriber[CursorT], None] = {}
        self._loop = asyncio.get_running_loop()
        self._room: Future[None] | None = None
        self._is_over = self._is_quiet = self._is_wanted = self._is_scheduled = False
        self._not_before = 0.0
        self._reading = asyncio.create_task(self._read(), name="broadcast of a build")
        self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def result(self) -> str:
        """Return the result; empty unless the stream has reached its end."""
        return self._rendering.result

    def raise_error(self) -> None:
        """Raise the error that has ended it, if one has."""
        if self._reading.done() and not self._reading.cancelled():
            self._reading.result()

    @property
    def is_broken(self) -> bool:
        """Return whether it has ended before the build has; new viewers need another one."""
        return self._is_over and not self.result

    def number_of(self, cursor: CursorT) -> int | None:
        """Return the number of the chunk that follows a position; None if a viewer cannot join there."""
        return None if self.is_broken else self._buffer.number_of(str(cursor))

    @property
    def is_empty(self) -> bool:
        """Return whether it has no subscribers."""
        return not self._subscribers

    @contextmanager
    def subscribed(self, outlet: Outlet, number: int, cursor: CursorT) -> "Iterator[Subscriber[CursorT]]":
        """Send to a viewer until the context is left."""
        subscriber = Subscriber(outlet, number, cursor)
        self._subscribers[subscriber] = None
        self._schedule()
        try:
            yield subscriber
        finally:
            del self._subscribers[subscriber]
            subscriber.close()
            self._make_room()

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await asyncio.wait({self._reading})

    def keep_alive(self) -> None:
        """Send a comment to everybody who has everything."""
        self._is_quiet = True
        self._schedule()

    async def _read(self) -> None:
        try:
            async with aclosing(self._rendering.chunks()) as chunks:
                async for chunk in chunks:
                    await self._append(chunk)
        finally:
            self._is_over = True
            self._schedule()

    async def _append(self, chunk: bytes) -> None:
        """Append a chunk as soon as no chunk has to go for it that not a single viewer has got."""
        cursor = self._rendering.position()
        while self._buffer.is_full(self._limit()):
            self._buffer.shrink(self._limit(), self._front())
            if not self._buffer.is_full(self._limit()):
                break
            self._room = self._loop.create_future()
            await self._room
        self._buffer.append(chunk, cursor)
        self._is_quiet = False
        self._on_news()
        self._schedule()

    def _front(self) -> int:
        return max((subscriber.number for subscriber in self._subscribers), default=self._buffer.first)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _schedule(self) -> None:
        """Have a round, after the one that goes on."""
        self._is_wanted = True
        if not self._is_scheduled:
            self._is_scheduled = True
            if self._loop.time() < self._not_before:
                self._loop.call_at(self._not_before, self._begin_round)
            else:
                self._loop.call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._is_wanted = False
        comment, self._is_quiet = self._is_quiet, False
        subscribers = iter(list(self._subscribers))
        self._continue_round(subscribers, self._buffer.end, comment, self._loop.time())

    def _continue_round(
        self, subscribers: "Iterator[Subscriber[CursorT]]", end: int, comment: bool, began: float
    ) -> None:
        served = 0
        for subscriber in islice(subscribers, SLICE):
            served += 1
            self._serve(subscriber, end, comment=comment)
        if served == SLICE:
            self._loop.call_soon(self._continue_round, subscribers, end, comment, began)
            return
        self._is_scheduled = False
        self._make_room()
        took = self._loop.time() - began
        if took > LONG_ROUND_SECONDS:
            self._not_before = self._loop.time() + min(took, MAX_PAUSE_SECONDS)
        if self._is_wanted:
            self._schedule()

    def _serve(self, subscriber: Subscriber[CursorT], end: int, *, comment: bool = False) -> None:
        """Send what a subscriber has not got, as far as there is room for it."""
        if subscriber.is_blocked or subscriber.ended.done():
            return
        if subscriber.number < self._buffer.first:
            subscriber.end(End.BEHIND)
            return
        if comment and subscriber.number == self._buffer.end:
            self._write(subscriber, COMMENT)
        while subscriber.number < end and not subscriber.is_blocked:
            piece, subscriber.number, subscriber.cursor = self._buffer.piece(subscriber.number, end)
            self._write(subscriber, piece)
        if self._is_over and subscriber.number == self._buffer.end and not subscriber.is_blocked:
            subscriber.end(End.OVER)

    def _write(self, subscriber: Subscriber[CursorT], piece: Piece) -> None:
        rest = subscriber.outlet.write(piece)
        if rest is not None:
            subscriber.is_blocked = True
            subscriber.stalled = self._loop.call_later(self._stalled_seconds, subscriber.end, End.STALLED)
            rest.add_done_callback(partial(self._go_on, subscriber))

    def _go_on(self, subscriber: Subscriber[CursorT], rest: "Future[None]") -> None:
        """Send on to a subscriber that has taken the rest, unless its connection was closed."""
        subscriber.close()
        if not rest.cancelled() and rest.exception() is None and subscriber in self._subscribers:
            subscriber.is_blocked = False
            self._serve(subscriber, self._buffer.end)
            self._make_room()


class Broadcasts:
    """The broadcasts with viewers, by what they are of, and one timer for the silence of all."""

    def __init__(self, *, keepalive_seconds: float, stalled_seconds: float) -> None:
        """Take the silence after which viewers get a comment, and the time in which they have to read."""
        self._keepalive_seconds = keepalive_seconds
        self._stalled_seconds = stalled_seconds
        self._broadcasts: dict[Hashable, Broadcast[Any]] = {}
        self._quiet_since: OrderedDict[Hashable, float] = OrderedDict()
        """Those that were silent for longest come first."""
        self._timer: asyncio.TimerHandle | None = None

    def find(self, key: Hashable) -> Broadcast[Any] | None:
        """Return the broadcast of a build, if there is one that can be joined."""
        broadcast = self._broadcasts.get(key)
        return None if broadcast is None or broadcast.is_broken else broadcast

    def start(self, key: Hashable, rendering: Rendering[CursorT]) -> Broadcast[CursorT]:
        """Start one in the place of any that is there; subscribe before anything else happens."""
        broadcast = Broadcast(
            rendering,
            limit=self._limit,
            on_news=partial(self._note_news, key),
            stalled_seconds=self._stalled_seconds,
        )
        self._broadcasts[key] = broadcast
        self._note_news(key)
        return broadcast

    async def leave(self, key: Hashable, broadcast: Broadcast[Any]) -> None:
        """End a broadcast that has no viewers left."""
        if not broadcast.is_empty:
            return
        if self._broadcasts.get(key) is broadcast:
            del self._broadcasts[key]
            del self._quiet_since[key]
        await broadcast.close()

    def _limit(self) -> int:
        return max(MIN_BYTES, min(MAX_BYTES, MEMORY_BYTES // max(1, len(self._broadcasts))))

    def _note_news(self, key: Hashable) -> None:
        if key in self._broadcasts:
            self._quiet_since[key] = asyncio.get_running_loop().time()
            self._quiet_since.move_to_end(key)
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is None and self._quiet_since:
            due = next(iter(self._quiet_since.values())) + self._keepalive_seconds
            self._timer = asyncio.get_running_loop().call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        long_ago = asyncio.get_running_loop().time() - self._keepalive_seconds
        while self._quiet_since and next(iter(self._quiet_since.values())) <= long_ago:
            key = next(iter(self._quiet_since))
            self._broadcasts[key].keep_alive()
            self._note_news(key)
        self._set_timer()
