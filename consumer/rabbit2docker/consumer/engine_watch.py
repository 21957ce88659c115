"""The watch over the Docker engine: its breaker follows checks made on purpose, not the requests that need it."""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.executors.base import EngineCheck
from rabbit2docker.errors import ENGINE
from rabbit2docker.retry import Backoff, doubling

log = structlog.get_logger()

AWAY_SECONDS: Final = doubling(1.0, 15.0)
"""Pauses between two checks while the engine is away."""


class EngineWatch:
    """Checks the engine: at the start, from time to time, when a build has lost it, and until it is back."""

    def __init__(self, executor: EngineCheck, breakers: Breakers) -> None:
        """Watch the engine of `executor` once `run` is started; `look` may be called before."""
        self._executor = executor
        self._breakers = breakers
        self._lock = asyncio.Lock()
        self._checked_from = float("-inf")
        self._problem: str | None = None
        self._found_away = asyncio.Event()
        self.checked = asyncio.Event()
        """Set once the engine was checked for the first time."""

    async def look(self, *, max_age: float = 0.0) -> str | None:
        """Return why the engine is away; None if it is not. Callers share a check that is at most `max_age` seconds old."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - max_age
        async with self._lock:
            if self._checked_from < oldest:
                self._checked_from = loop.time()
                self._problem = await self._executor.engine_problem()
                self._apply(self._problem)
        return self._problem

    async def run(self) -> None:
        """Keep the breaker up to date until cancelled."""
        pauses = Backoff(AWAY_SECONDS, jitter=0.1)
        while True:
            self._found_away.clear()
            if await self.look() is None:
                pauses.reset()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._executor.engine_check_seconds):
                        await self._found_away.wait()
            else:
                await pauses.sleep()

    def _apply(self, problem: str | None) -> None:
        self.checked.set()
        if problem is None:
            self._breakers.close(ENGINE)
        else:
            self._breakers.open(ENGINE, problem)
            self._found_away.set()
