"""What is overdue is ended, what has ended long ago is forgotten, and nothing else is touched."""

from datetime import timedelta

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.cleaner import Cleaner, is_overdue
from rabbit2docker.consumer.executors.base import AttemptName, AttemptState, AttemptStatus
from tests.support.members import owning
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.records import NOW, a_spec, an_attempt

LATER = NOW + timedelta(hours=2)


def test_an_attempt_is_overdue_a_minute_after_its_own_limit() -> None:
    attempt = an_attempt(timeout_seconds=600)
    assert not is_overdue(attempt, NOW + timedelta(seconds=650))
    assert is_overdue(attempt, NOW + timedelta(seconds=661))
    assert not is_overdue(an_attempt(state=AttemptState.ENDED, timeout_seconds=600), LATER)
    assert not is_overdue(an_attempt(status=AttemptStatus(cancelled_by="ada"), timeout_seconds=600), LATER)


async def test_ended_builds_are_forgotten_after_the_keep_time_and_no_sooner() -> None:
    world = MemoryWorld()
    executor = MemoryExecutor(world)
    attempts = AttemptCache(executor)
    mine = await owning(executor)
    names = [AttemptName(name) for name in ("told", "untold", "running")]
    for name in names:
        await executor.create(a_spec(name), AttemptStatus())
    for name in names[:2]:
        world.end(name)
    told = AttemptStatus(reported=True, reported_at=NOW)
    await executor.update_status(names[0], lambda _: told)
    for name in names:
        attempt = await executor.get(name)
        assert attempt is not None
        attempts.put(attempt.model_copy(update={"started_at": LATER}))
    for moment, kept in ((timedelta(seconds=599), 3), (timedelta(seconds=600), 2)):
        now = NOW + moment
        cleaner = Cleaner(executor, attempts, mine, keep_seconds=600, now=lambda: now)  # noqa: B023
        await cleaner.clean()
        assert len([name for name in names if await executor.get(name)]) == kept
    assert await executor.get(names[0]) is None
