"""A cancel finds the build, or its next attempt, or is looked for again."""

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.executors.base import AttemptName, AttemptStatus, StoredOutcome
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingCancel
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest
from tests.support.cancel_log import MemoryCancelLog
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.records import a_spec

CANCEL = IncomingCancel("default", CancelRequest(build_id=build_id_of("default", "one"), requester="ada"))
REQUESTS = {"one": "digest"}


async def test_a_cancel_of_a_build_that_was_just_handed_over_waits_for_the_next_attempt() -> None:
    """Another replica follows the build, and its next attempt is not known here yet."""
    world = MemoryWorld()
    executor = MemoryExecutor(world)
    attempts = AttemptCache(executor)
    cancellation = Cancellation(executor, attempts, MemoryCancelLog())
    first, _ = await executor.create(a_spec("one"), AttemptStatus(requests=REQUESTS))
    attempts.put(first)
    handed_over = AttemptStatus(
        requests=REQUESTS, outcome=StoredOutcome(kind="retry", data={}), reported=True
    )
    await executor.update_status(first.name, lambda _: handed_over)
    assert not await cancellation.cancel(CANCEL)
    assert not await cancellation.cancel(CANCEL)  # also once that is known here
    second = a_spec("one-2", attempt=2, build_id=first.spec.build_id)
    attempts.put((await executor.create(second, AttemptStatus(requests=REQUESTS)))[0])
    assert await cancellation.cancel(CANCEL)
    assert world.records[AttemptName("one-2")].status.cancelled_by == "ada"
    assert world.records[AttemptName("one")].status.cancelled_by is None


async def test_a_cancel_of_a_build_that_has_ended_is_settled() -> None:
    executor = MemoryExecutor()
    attempts = AttemptCache(executor)
    ended = AttemptStatus(requests=REQUESTS, outcome=StoredOutcome(kind="completed", data={}), reported=True)
    attempts.put((await executor.create(a_spec("one"), ended))[0])
    cancels = MemoryCancelLog()
    assert await Cancellation(executor, attempts, cancels).cancel(CANCEL)
    assert cancels.recorded == []


async def test_a_cancel_of_an_unknown_request_is_recorded_once_for_its_own_tenant() -> None:
    executor = MemoryExecutor()
    cancels = MemoryCancelLog()
    replica, other = (Cancellation(executor, AttemptCache(executor), cancels) for _ in range(2))
    for _ in range(2):
        assert not await replica.cancel(CANCEL)
    build_id = CANCEL.cancel.build_id or ""
    assert cancels.recorded == [("default", build_id, "ada")]
    assert other.withdrawn_by("default", build_id) == "ada"
    assert other.withdrawn_by("lab", build_id) is None
