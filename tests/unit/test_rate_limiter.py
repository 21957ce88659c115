"""The rate limit for calls to the API server."""

import asyncio

import pytest

from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority, RateLimiter

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


class Callers:
    """Calls that share a limiter, and when each passed."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self.passed: list[str] = []
        self.moments: list[float] = []
        self._tasks: list[asyncio.Task[None]] = []

    def call(self, name: str = "", priority: CallPriority = CallPriority.READ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(name, priority))
        self._tasks.append(task)
        return task

    async def _call(self, name: str, priority: CallPriority) -> None:
        await self._limiter.acquire(priority)
        self.passed.append(name)
        self.moments.append(now())

    async def done(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_burst_passes_at_once_and_further_calls_at_the_rate() -> None:
    callers, started_at = Callers(RateLimiter(per_second=10, burst=5)), now()
    for _ in range(25):
        callers.call()
    await callers.done()
    after = [moment - started_at for moment in callers.moments]
    assert after[:5] == pytest.approx([0.0] * 5, abs=1e-3)
    assert after[5:] == pytest.approx([(number + 1) / 10 for number in range(20)], abs=1e-3)


async def test_many_calls_pass_at_the_rate_after_one_burst() -> None:
    callers, started_at = Callers(RateLimiter(per_second=50, burst=100)), now()
    for _ in range(1100):
        callers.call()
    await callers.done()
    assert now() - started_at == pytest.approx(20, abs=0.01)


async def test_an_idle_limiter_saves_one_burst_and_no_more() -> None:
    limiter = RateLimiter(per_second=10, burst=3)
    for _ in range(3):
        await limiter.acquire(CallPriority.READ)
    await asyncio.sleep(3600)
    callers, started_at = Callers(limiter), now()
    for _ in range(4):
        callers.call()
    await callers.done()
    after = [moment - started_at for moment in callers.moments]
    assert after == pytest.approx([0.0, 0.0, 0.0, 0.1], abs=1e-3)


async def test_calls_below_the_rate_never_wait() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    for _ in range(50):
        started_at = now()
        await limiter.acquire(CallPriority.CLEAN)
        assert now() - started_at == pytest.approx(0, abs=1e-3)
        await asyncio.sleep(0.11)


async def test_calls_pass_by_priority_then_by_arrival() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    await limiter.acquire(CallPriority.READ)
    callers = Callers(limiter)
    for name, priority in (
        ("clean", CallPriority.CLEAN),
        ("read 1", CallPriority.READ),
        ("record", CallPriority.RECORD),
        ("read 2", CallPriority.READ),
        ("create 1", CallPriority.CREATE),
    ):
        callers.call(name, priority)
    await asyncio.sleep(0.05)
    callers.call("create 2", CallPriority.CREATE)
    await callers.done()
    assert callers.passed == ["create 1", "create 2", "record", "read 1", "read 2", "clean"]


async def test_a_late_call_does_not_overtake_a_waiting_one() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    await limiter.acquire(CallPriority.READ)
    callers = Callers(limiter)
    callers.call("first", CallPriority.READ)
    await asyncio.sleep(0.0999)
    callers.call("second", CallPriority.READ)
    await callers.done()
    assert callers.passed == ["first", "second"]


async def test_a_cancelled_call_takes_no_token() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    await limiter.acquire(CallPriority.READ)
    callers, started_at = Callers(limiter), now()
    cancelled = callers.call("cancelled")
    callers.call("stayed")
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await callers.done()
    assert callers.passed == ["stayed"]
    assert now() - started_at == pytest.approx(0.1, abs=1e-3)


async def test_a_call_cancelled_as_it_gets_its_token_returns_it() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    await limiter.acquire(CallPriority.READ)
    callers, started_at = Callers(limiter), now()
    cancelled = callers.call("cancelled")
    callers.call("stayed")
    await asyncio.sleep(0)
    # Right after the timer that grants the token, and before the task resumes.
    asyncio.get_running_loop().call_later(0.1, cancelled.cancel)
    await callers.done()
    assert cancelled.cancelled()
    assert callers.passed == ["stayed"]
    assert now() - started_at == pytest.approx(0.1, abs=1e-3)


async def test_the_limiter_works_after_all_waiting_calls_were_cancelled() -> None:
    limiter = RateLimiter(per_second=10, burst=1)
    await limiter.acquire(CallPriority.READ)
    callers = Callers(limiter)
    for _ in range(20):
        callers.call().cancel()
    await callers.done()
    started_at = now()
    await limiter.acquire(CallPriority.READ)
    assert now() - started_at <= 0.1 + 1e-3
