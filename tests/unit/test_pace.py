"""How fast the API server is asked."""

import asyncio

import pytest

from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority, RateLimiter

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


class Callers:
    """Calls that take turns, and what came of them."""

    def __init__(self, pace: RateLimiter) -> None:
        self._pace = pace
        self.passed: list[str] = []
        self.moments: list[float] = []
        self._tasks: list[asyncio.Task[None]] = []

    def call(self, name: str = "", urgency: CallPriority = CallPriority.READ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(name, urgency))
        self._tasks.append(task)
        return task

    async def _call(self, name: str, urgency: CallPriority) -> None:
        await self._pace.turn(urgency)
        self.passed.append(name)
        self.moments.append(now())

    async def done(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    callers, began = Callers(RateLimiter(per_second=10, burst=5)), now()
    for _ in range(25):
        callers.call()
    await callers.done()
    after = [moment - began for moment in callers.moments]
    assert after[:5] == pytest.approx([0.0] * 5, abs=1e-3)
    assert after[5:] == pytest.approx([(number + 1) / 10 for number in range(20)], abs=1e-3)


async def test_in_the_long_run_no_more_pass_than_the_rate_allows() -> None:
    callers, began = Callers(RateLimiter(per_second=50, burst=100)), now()
    for _ in range(1100):
        callers.call()
    await callers.done()
    assert now() - began == pytest.approx(20, abs=0.01)


async def test_a_quiet_time_saves_up_one_burst_and_no_more() -> None:
    pace = RateLimiter(per_second=10, burst=3)
    for _ in range(3):
        await pace.turn(CallPriority.READ)
    await asyncio.sleep(3600)
    callers, began = Callers(pace), now()
    for _ in range(4):
        callers.call()
    await callers.done()
    after = [moment - began for moment in callers.moments]
    assert after == pytest.approx([0.0, 0.0, 0.0, 0.1], abs=1e-3)


async def test_callers_who_come_slower_than_the_rate_never_wait() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    for _ in range(50):
        began = now()
        await pace.turn(CallPriority.CLEAN)
        assert now() - began == pytest.approx(0, abs=1e-3)
        await asyncio.sleep(0.11)


async def test_the_more_urgent_calls_go_first_and_among_equals_who_came_first() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    await pace.turn(CallPriority.READ)
    callers = Callers(pace)
    for name, urgency in (
        ("clean", CallPriority.CLEAN),
        ("read 1", CallPriority.READ),
        ("record", CallPriority.RECORD),
        ("read 2", CallPriority.READ),
        ("create 1", CallPriority.CREATE),
    ):
        callers.call(name, urgency)
    await asyncio.sleep(0.05)
    callers.call("create 2", CallPriority.CREATE)
    await callers.done()
    assert callers.passed == ["create 1", "create 2", "record", "read 1", "read 2", "clean"]


async def test_nobody_overtakes_by_coming_at_the_right_moment() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    await pace.turn(CallPriority.READ)
    callers = Callers(pace)
    callers.call("first", CallPriority.READ)
    await asyncio.sleep(0.0999)
    callers.call("second", CallPriority.READ)
    await callers.done()
    assert callers.passed == ["first", "second"]


async def test_a_cancelled_caller_takes_no_turn() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    await pace.turn(CallPriority.READ)
    callers, began = Callers(pace), now()
    left = callers.call("left")
    callers.call("stayed")
    await asyncio.sleep(0.05)
    left.cancel()
    await callers.done()
    assert callers.passed == ["stayed"]
    assert now() - began == pytest.approx(0.1, abs=1e-3)


async def test_a_caller_cancelled_in_the_moment_of_its_turn_gives_it_back() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    await pace.turn(CallPriority.READ)
    callers, began = Callers(pace), now()
    left = callers.call("left")
    callers.call("stayed")
    await asyncio.sleep(0)
    # Exactly behind the timer that hands the turn out, and before the task sees it.
    asyncio.get_running_loop().call_later(0.1, left.cancel)
    await callers.done()
    assert left.cancelled()
    assert callers.passed == ["stayed"]
    assert now() - began == pytest.approx(0.1, abs=1e-3)


async def test_calls_go_on_after_all_who_waited_are_gone() -> None:
    pace = RateLimiter(per_second=10, burst=1)
    await pace.turn(CallPriority.READ)
    callers = Callers(pace)
    for _ in range(20):
        callers.call().cancel()
    await callers.done()
    began = now()
    await pace.turn(CallPriority.READ)
    assert now() - began <= 0.1 + 1e-3
