"""Rate limit for calls to the API server: a token bucket that serves waiting calls by priority."""

import asyncio
import heapq
import itertools
from enum import IntEnum


class CallPriority(IntEnum):
    """Order in which waiting calls get a token: the lowest value first."""

    CREATE = 0
    RECORD = 1
    READ = 2
    CLEAN = 3


class RateLimiter:
    """Admits `burst` calls at once and `per_second` calls on average."""

    def __init__(self, per_second: float, burst: int) -> None:
        """Start with a full bucket."""
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._refilled_at: float | None = None
        self._waiters: list[tuple[CallPriority, int, asyncio.Future[None]]] = []
        self._sequence = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, priority: CallPriority) -> None:
        """Take a token, waiting for it by priority, then by order of arrival."""
        self._refill()
        if not self._waiters and self._tokens >= 1:
            self._tokens -= 1
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (priority, next(self._sequence), waiter))
        self._schedule()
        try:
            await waiter
        except asyncio.CancelledError:
            # The token may have been granted in the same iteration of the loop: it passes to the next waiter.
            if waiter.done() and not waiter.cancelled():
                self._tokens += 1
                self._grant()
            raise

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._refilled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now

    def _schedule(self) -> None:
        if self._timer is None and self._waiters:
            seconds = max(0.0, 1 - self._tokens) / self._per_second
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._refill()
        self._grant()

    def _grant(self) -> None:
        # Tolerate a rounding error: the loop's clock may be coarser than the requested delay.
        while self._waiters and self._tokens >= 1 - 1e-6:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                self._tokens -= 1
                waiter.set_result(None)
        self._schedule()
