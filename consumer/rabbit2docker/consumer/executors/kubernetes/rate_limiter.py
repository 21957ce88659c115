"""How fast the API server is asked: a token bucket in which the more urgent calls go first."""

import asyncio
import heapq
import itertools
from enum import IntEnum


class CallPriority(IntEnum):
    """Who goes first when calls have to wait."""

    CREATE = 0
    RECORD = 1
    READ = 2
    CLEAN = 3


class RateLimiter:
    """Lets `burst` calls pass at once and `per_second` in the long run."""

    def __init__(self, per_second: float, burst: int) -> None:
        """Start with a full bucket."""
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._counted_at: float | None = None
        self._waiting: list[tuple[CallPriority, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, urgency: CallPriority) -> None:
        """Return when a call may be made."""
        self._refill()
        if not self._waiting and self._tokens >= 1:
            self._tokens -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, next(self._order), turn))
        self._arm()
        try:
            await turn
        except asyncio.CancelledError:
            # Its turn may have come in the same moment: then it is the next one's.
            if turn.done() and not turn.cancelled():
                self._tokens += 1
                self._hand_out()
            raise

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._counted_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            seconds = max(0.0, 1 - self._tokens) / self._per_second
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._refill()
        self._hand_out()

    def _hand_out(self) -> None:
        # A hair less than a whole token is one: the clock need not tick as finely as it is asked to.
        while self._waiting and self._tokens >= 1 - 1e-6:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._tokens -= 1
                turn.set_result(None)
        self._arm()
