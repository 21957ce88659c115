"""Background tasks: what an owner waits for, cancels, restarts and logs."""

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.tasks import TaskSet, cancel_and_wait, first_set, restart_forever, root_cause, run_together

pytestmark = pytest.mark.looptime


async def fail(error: Exception) -> None:
    raise error


async def test_closing_waits_for_work_and_cancels_background_work() -> None:
    tasks, finished = TaskSet(), []

    async def work() -> None:
        await asyncio.sleep(5)
        finished.append("work")

    tasks.run(work(), "work")
    background = tasks.run_in_background(asyncio.sleep(3600), "background")
    await tasks.close()
    assert finished == ["work"]
    assert background.cancelled()
    assert len(tasks) == 0


async def test_closing_cancels_work_that_takes_too_long() -> None:
    tasks = TaskSet()
    slow = tasks.run(asyncio.sleep(3600), "slow")
    await asyncio.sleep(0)
    await tasks.close(seconds=1)
    assert slow.cancelled()


async def test_a_defect_in_a_task_is_logged_with_its_name_and_an_expected_error_is_not() -> None:
    tasks = TaskSet()
    with capture_logs() as logs:
        tasks.run(fail(ValueError("defect")), "broken")
        tasks.run(fail(BrokerUnavailable("expected")), "unlucky")
        await tasks.close()
    assert [(entry["event"], entry["task"]) for entry in logs] == [("task failed", "broken")]


async def test_work_that_runs_together_ends_with_the_first_error() -> None:
    ended: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    with pytest.raises(BrokerUnavailable, match="away"):
        await run_together(wait(), fail(BrokerUnavailable("away")))
    assert ended == [True]


async def test_work_that_crashes_is_started_anew_until_it_returns() -> None:
    errors = [ValueError("once"), ValueError("twice")]
    reported: list[str] = []

    async def work() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    result = await restart_forever(work, pauses=(1.0, 60.0), report=lambda error: reported.append(str(error)))
    assert (result, reported) == ("done", ["once", "twice"])


async def test_cancelling_tasks_waits_for_their_clean_up() -> None:
    cleaned: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(2)
            cleaned.append(True)

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    await cancel_and_wait([task])
    assert cleaned == [True]


async def test_the_first_of_several_events_ends_the_wait() -> None:
    early, late = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(1, early.set)
    await first_set(early, late)
    assert not late.is_set()


def test_the_root_cause_of_a_group_is_our_own_error_where_there_is_one() -> None:
    ours = BrokerUnavailable("away")
    group = ExceptionGroup("outer", [ValueError("noise"), ExceptionGroup("inner", [KeyError("x"), ours])])
    assert root_cause(ExceptionGroup("top", [group, ours])) is ours
    assert isinstance(root_cause(ExceptionGroup("plain", [ValueError("only")])), ValueError)


async def test_a_cancellation_that_is_lost_is_repeated() -> None:
    async def work() -> None:
        with suppress(asyncio.CancelledError):  # as a library does where an answer comes at the same moment
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel_and_wait([task])
    assert task.cancelled()


async def test_waiting_for_cancelled_tasks_has_an_end() -> None:
    async def work() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(300)
            if asyncio.get_running_loop().time() > 1000:
                return

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel_and_wait([task], seconds=90)
    assert not task.done()
    await task
