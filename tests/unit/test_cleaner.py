"""Overdue attempts are ended, ended builds are deleted after the keep time, and nothing else is touched."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.cleaner import SETTLE_SECONDS, Cleaner, due_end
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    ExternalEnd,
    PendingDeadline,
)
from rabbit2docker.consumer.following.outcome import Evidence, ImageCheck, decide
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.hashing import ranked
from rabbit2docker_schemas.events import Failed
from rabbit2docker_schemas.reasons import FailureReason
from tests.support.members import SharedExecutor, ownership_of, sole_ownership
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.records import NOW, a_spec, an_attempt

LATER = NOW + timedelta(hours=2)


def end_at(attempt: Attempt, now: datetime) -> ExternalEnd | None:
    return due_end(attempt, lambda moment: now >= moment)


def test_an_attempt_is_overdue_a_minute_after_its_own_limit() -> None:
    attempt = an_attempt(timeout_seconds=600)
    assert end_at(attempt, NOW + timedelta(seconds=650)) is None
    end = end_at(attempt, NOW + timedelta(seconds=661))
    assert end is not None
    assert end.reason is FailureReason.TIMEOUT
    assert end_at(an_attempt(state=AttemptState.ENDED, timeout_seconds=600), LATER) is None
    cancelled = an_attempt(status=AttemptStatus(cancelled_by="ada"), timeout_seconds=600)
    assert end_at(cancelled, LATER) is None


async def clean_twice(cleaner: Cleaner) -> None:
    """Let a new cleaner see what is past, and see it again once the clock may be trusted."""
    await cleaner.clean()
    await asyncio.sleep(SETTLE_SECONDS)
    await cleaner.clean()


@pytest.mark.looptime
async def test_reported_builds_are_deleted_after_the_keep_time_and_no_sooner() -> None:
    world = MemoryWorld()
    executor = MemoryExecutor(world)
    attempts = AttemptCache(executor)
    mine = await sole_ownership(executor)
    names = [AttemptName(name) for name in ("reported", "unreported", "running")]
    for name in names:
        await executor.create(a_spec(name), AttemptStatus())
    for name in names[:2]:
        world.end(name)
    reported = AttemptStatus(reported=True, reported_at=NOW)
    await executor.update_status(names[0], lambda _: reported)
    for name in names:
        attempt = await executor.get(name)
        assert attempt is not None
        attempts.put(attempt.model_copy(update={"started_at": LATER}))
    cleaner = Cleaner(executor, attempts, mine, keep_seconds=600, now=lambda: NOW)
    for pause, kept in ((0, 3), (599, 3), (1, 2)):
        await asyncio.sleep(pause)
        await cleaner.clean()
        assert len([name for name in names if await executor.get(name)]) == kept
    assert await executor.get(names[0]) is None


DEADLINE: Final = PendingDeadline(
    reason=FailureReason.BUILDER_IMAGE_UNAVAILABLE,
    message="The builder image cannot be pulled: not found",
    at=NOW + timedelta(seconds=90),
)


def stuck(attempt: Attempt, **changes: Any) -> Attempt:
    return attempt.model_copy(
        update={"state": AttemptState.PENDING, "started_at": None, "pending_deadline": DEADLINE, **changes}
    )


def test_a_stuck_attempt_is_ended_at_its_deadline_and_not_before() -> None:
    attempt = stuck(an_attempt())
    assert end_at(attempt, DEADLINE.at - timedelta(microseconds=1)) is None
    assert end_at(attempt, DEADLINE.at) == DEADLINE


def test_a_running_ended_or_cancelled_attempt_has_no_deadline() -> None:
    late = DEADLINE.at + timedelta(seconds=1)
    assert end_at(stuck(an_attempt(), pending_deadline=None), late) is None
    assert end_at(stuck(an_attempt(), state=AttemptState.ENDED), late) is None
    assert end_at(stuck(an_attempt(), status=AttemptStatus(cancelled_by="ada")), late) is None


class CleaningReplica:
    """A replica with a cleaner, in fake time."""

    def __init__(self, *live: str) -> None:
        self.world = MemoryWorld(starts_at_once=False)
        self.executor = SharedExecutor(self.world, "a")
        self.attempts = AttemptCache(self.executor)
        self.live = live or ("a",)
        self.jump = timedelta()
        """Difference of the wall clock to the time that has passed."""
        self._began = asyncio.get_running_loop().time()
        self._tasks: list[asyncio.Task[None]] = []

    def now(self) -> datetime:
        return NOW + self.jump + timedelta(seconds=asyncio.get_running_loop().time() - self._began)

    async def start(self) -> None:
        """Run a cleaner that has seen nothing yet."""
        ownership = await ownership_of("a", *self.live)
        self.cleaner = Cleaner(self.executor, self.attempts, ownership, keep_seconds=600, now=self.now)
        self._tasks = [asyncio.create_task(self.cleaner.run())]
        await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(self, name: str, **changes: Any) -> Attempt:
        attempt, _ = await self.executor.create(a_spec(name), AttemptStatus())
        return self.attempts.put(stuck(attempt, **changes))

    async def until(self, seconds: float) -> None:
        """Wait until `seconds` after the start of the test."""
        await asyncio.sleep(self._began + seconds - asyncio.get_running_loop().time())


@pytest.mark.looptime
async def test_a_stuck_attempt_fails_with_the_message_of_its_deadline() -> None:
    replica = CleaningReplica()
    await replica.start()
    await replica.create("build-1")
    await replica.until(89.9)
    assert replica.world.cancels == []
    await replica.until(90.1)
    assert replica.world.cancels == ["build-1"]
    await replica.end()
    attempt = await replica.executor.get(AttemptName("build-1"))
    assert attempt is not None
    found = decide(attempt, Evidence(ImageCheck.THERE, (), 0, 5))
    assert isinstance(found, Failed)
    assert (found.reason, found.message) == (DEADLINE.reason, DEADLINE.message)


@pytest.mark.looptime
@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)])
async def test_a_jump_of_the_wall_clock_neither_ends_nor_spares_an_attempt(jump: timedelta) -> None:
    replica = CleaningReplica()
    await replica.start()
    await replica.create("stuck")
    running = {"state": AttemptState.RUNNING, "started_at": NOW, "pending_deadline": None}
    await replica.create("running", **running)
    await replica.until(30)
    replica.jump = jump
    await replica.until(80)
    assert replica.world.cancels == []
    await replica.until(95)
    assert replica.world.cancels == ["stuck"]
    # Started after the jump, by the wall clock of then.
    await replica.create("later", **{**running, "started_at": replica.now()})
    await replica.until(3600)
    assert replica.world.cancels == ["stuck"]
    await replica.until(3700)
    assert replica.world.cancels == ["stuck", "running"]
    await replica.until(3800)
    assert replica.world.cancels == ["stuck", "running", "later"]
    await replica.end()


@pytest.mark.looptime
async def test_a_deadline_in_the_past_takes_effect_once_the_clock_may_be_trusted() -> None:
    replica = CleaningReplica()
    await replica.start()
    await replica.until(7)
    past = DEADLINE.model_copy(update={"at": replica.now() - timedelta(seconds=1)})
    await replica.create("build-1", pending_deadline=past)
    await replica.until(7 + SETTLE_SECONDS - 1)
    assert replica.world.cancels == []
    await replica.until(7 + SETTLE_SECONDS + 1.5)
    assert replica.world.cancels == ["build-1"]
    await replica.end()


@pytest.mark.looptime
async def test_a_clock_that_is_wrong_at_the_start_ends_and_forgets_nothing() -> None:
    replica = CleaningReplica()
    replica.jump = timedelta(days=1)
    running = {"state": AttemptState.RUNNING, "started_at": NOW, "pending_deadline": None}
    await replica.create("running", **running)
    ended = await replica.create("ended", state=AttemptState.ENDED, pending_deadline=None)
    replica.world.end("ended")
    reported = AttemptStatus(reported=True, reported_at=NOW)
    replica.attempts.put(ended.model_copy(update={"status": reported}))
    await replica.start()
    await replica.until(SETTLE_SECONDS - 1)
    replica.jump = timedelta()
    await replica.until(590)
    assert "ended" in replica.world.records
    await replica.until(625)
    assert "ended" not in replica.world.records
    await replica.until(3600)
    assert replica.world.cancels == []
    await replica.until(3700)
    assert replica.world.cancels == ["running"]
    await replica.end()


@pytest.mark.looptime
async def test_a_stream_of_stuck_attempts_does_not_postpone_their_ends() -> None:
    replica = CleaningReplica()
    await replica.start()
    for number in range(60):
        soon = DEADLINE.model_copy(update={"at": replica.now() + timedelta(seconds=0.1)})
        await replica.create(f"build-{number}", pending_deadline=soon)
        await asyncio.sleep(0.5)
    assert len(replica.world.cancels) > 50
    await replica.end()


@pytest.mark.looptime
async def test_an_attempt_that_starts_before_its_deadline_is_not_ended() -> None:
    replica = CleaningReplica()
    await replica.start()
    attempt = await replica.create("build-1")
    await replica.until(80)
    replica.attempts.put(attempt.model_copy(update={"state": AttemptState.RUNNING, "pending_deadline": None}))
    await replica.until(200)
    assert replica.world.cancels == []
    await replica.end()


@pytest.mark.looptime
async def test_a_cancel_before_the_deadline_is_not_overwritten() -> None:
    replica = CleaningReplica()
    await replica.start()
    await replica.create("build-1")
    await replica.executor.update_status(
        AttemptName("build-1"), lambda status: status.model_copy(update={"cancelled_by": "ada"})
    )
    await replica.until(120)
    attempt = await replica.executor.get(AttemptName("build-1"))
    assert attempt is not None
    assert (attempt.status.cancelled_by, attempt.status.cancel_reason) == ("ada", None)
    await replica.end()


@pytest.mark.looptime
async def test_a_stuck_attempt_is_ended_once_the_executor_is_back() -> None:
    replica = CleaningReplica()
    await replica.start()
    await replica.create("build-1")
    await replica.until(80)
    replica.world.failure = ExecutorUnavailable("away")
    await replica.until(100)
    assert replica.world.cancels == []
    replica.world.failure = None
    await replica.until(125)
    assert replica.world.cancels == ["build-1"]
    await replica.end()


@pytest.mark.looptime
async def test_a_cleaner_touches_only_the_builds_that_its_replica_owns() -> None:
    world = MemoryWorld(starts_at_once=False)
    late = NOW + timedelta(hours=2)
    names = [f"build-{number}" for number in range(20)]
    waiting, ended_names = names[::2], names[1::2]
    members = ("a", "b")
    touched: dict[str, set[str]] = {}
    for me in members:
        executor = SharedExecutor(world, me)
        attempts = AttemptCache(executor)
        for name in names:
            attempt, _ = await executor.create(a_spec(name), AttemptStatus())
            if name in waiting:
                attempts.put(stuck(attempt))
            else:
                reported = AttemptStatus(reported=True, reported_at=NOW)
                ended = {"state": AttemptState.ENDED, "status": reported}
                attempts.put(attempt.model_copy(update=ended))
                world.records[attempt.name].state = AttemptState.ENDED
        before = set(world.records), set(world.cancels)
        ownership = await ownership_of(me, *members)
        await clean_twice(Cleaner(executor, attempts, ownership, keep_seconds=600, now=lambda: late))
        touched[me] = (before[0] - set(world.records)) | (set(world.cancels) - before[1])
        for name in names:
            expected = ranked(a_spec(name).build_id, members)[0] == me
            assert (name in touched[me]) == expected, name
        for name in ended_names:
            await executor.create(a_spec(name), AttemptStatus())
    assert touched["a"] | touched["b"] == set(names)
    assert touched["a"]
    assert touched["b"]


@pytest.mark.looptime
async def test_one_replica_sweeps_for_all() -> None:
    swept = []
    for me in ("a", "b", "c"):
        executor = SharedExecutor(MemoryWorld(), me)
        ownership = await ownership_of(me, "a", "b", "c")
        cleaner = Cleaner(executor, AttemptCache(executor), ownership, keep_seconds=600)
        await cleaner.clean()
        assert executor.sweeps == 0
        await asyncio.sleep(3600)
        await cleaner.clean()
        swept.append(executor.sweeps)
    assert sorted(swept) == [0, 0, 1]
