"""Requests whose handlers run: the store that they use is closed after them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class RunningRequests:
    """Counts handlers. Tornado ends a handler whose connection is closed no sooner than by itself."""

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def wait_for_end(self, seconds: float) -> None:
        """Wait until none runs, for some seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
