"""Comments during silence in a stream of items, without a task and a timer for each item."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Generic, TypeVar

T = TypeVar("T")

AHEAD: Final = 8
"""Items taken before the reader asks for them, so that a burst wakes it once."""


async def with_keepalive(
    items: AsyncGenerator[T, None], seconds: float | None
) -> AsyncGenerator[T | None, None]:
    """Yield the items; None whenever none has come for `seconds`, if there is such a limit."""
    if seconds is None:
        async with aclosing(items):
            async for item in items:
                yield item
        return
    pump = _Pump(items)
    try:
        while True:
            while pump.items:
                yield pump.take()
            if pump.is_over:
                pump.raise_error()
                return
            await pump.wait(seconds)
            if not pump.items and not pump.is_over:
                yield None
    finally:
        await pump.close()


class _Pump(Generic[T]):
    """Takes items in one task. Its timer runs on through items, and is set again only when it fires early."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self.items: deque[T] = deque()
        self.is_over = False
        self._source = items
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._space: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._task = asyncio.create_task(self._run(), name="items of a stream")

    async def _run(self) -> None:
        try:
            async for item in self._source:
                self.items.append(item)
                self._wake_reader()
                if len(self.items) >= AHEAD:
                    self._space = self._loop.create_future()
                    await self._space
        finally:
            self.is_over = True
            self._wake_reader()

    def take(self) -> T:
        """Return the next item, which must be there."""
        item = self.items.popleft()
        if not self.items and self._space is not None and not self._space.done():
            self._space.set_result(None)
        return item

    def raise_error(self) -> None:
        """Raise what has ended the items, if anything but their end has."""
        if self._task.done():
            self._task.result()

    async def wait(self, seconds: float) -> None:
        """Wait for an item, the end or the `seconds`, which are the same at each call."""
        self._reader = self._loop.create_future()
        self._due = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._on_timer)
        try:
            await self._reader
        finally:
            self._reader = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._reader is None:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._on_timer)
        else:
            self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def close(self) -> None:
        """End the items."""
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # the reader has it, or has left
        await self._source.aclose()
