"""The promises of every executor, each tested on the memory, local and kubernetes executors."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import pytest
from blockbuster import blockbuster_ctx

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    BuilderLine,
    Change,
    Changed,
    Executor,
    Lines,
    MissingLines,
    Removed,
    Synced,
)
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor
from rabbit2docker.errors import RecordMissing
from tests.support.kube.stage import KubernetesStage
from tests.support.records import a_spec
from tests.support.stages import LocalStage, MemoryStage, Stage

ONE = AttemptName("build-one")
T = TypeVar("T")
Created = tuple[Attempt, bool]


@pytest.fixture(params=["memory", "local", "kubernetes"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with blockbuster_ctx("rabbit2docker") as blocking:
        for function in blocking.functions.values():
            # It runs in a thread with an event loop of its own.
            function.can_block_in("executors/kubernetes/client.py", {"_read_configuration"})
        if request.param == "memory":
            yield MemoryStage()
            return
        if request.param == "kubernetes":
            pods = KubernetesStage(tmp_path, KubernetesExecutor)
            yield pods
            pods.close()
            return
        stage = LocalStage(tmp_path)
        monkeypatch.setenv("SCRIPTED_BUILDER_DIR", str(stage.pipes))
        yield stage
        stage.close()


async def make(
    stage: Stage, executor: Executor, name: str = ONE, status: AttemptStatus | None = None
) -> Created:
    stage.prepare(name)
    return await executor.create(a_spec(name), status or AttemptStatus())


def left(iterator: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """Close an iterator at the end of the `async with`."""
    return aclosing(cast("AsyncGenerator[T, None]", iterator))


@asynccontextmanager
async def synced(executor: Executor) -> AsyncIterator[AsyncIterator[Change]]:
    """Yield the changes from now on."""
    async with left(executor.changes()) as changes:
        async for change in changes:
            if isinstance(change, Synced):
                break
        yield changes


async def first_change(executor: Executor, matches: Callable[[Change], bool]) -> Change:
    """Return the first change that `matches`."""
    async with left(executor.changes()) as changes:
        async for change in changes:
            if matches(change):
                return change
    raise AssertionError("the changes ended")


async def in_state(executor: Executor, name: str, state: AttemptState) -> Attempt:
    change = await first_change(
        executor,
        lambda change: (
            isinstance(change, Changed) and change.attempt.name == name and change.attempt.state is state
        ),
    )
    assert isinstance(change, Changed)
    return change.attempt


async def until_line(executor: Executor, text: str, *, name: AttemptName = ONE, after: int = -1) -> None:
    """Read until the line is there."""
    async with left(executor.lines(name, after=after)) as batches:
        async for batch in batches:
            if isinstance(batch, list) and any(line.text == text for line in batch):
                return
    raise AssertionError(f"no line {text!r}")


async def read_all(executor: Executor, *, name: AttemptName = ONE, after: int = -1) -> list[Lines]:
    return [batch async for batch in executor.lines(name, after=after)]


def texts(batches: list[Lines]) -> list[str]:
    return [line.text for line in flat(batches)]


def flat(batches: list[Lines]) -> list[BuilderLine]:
    assert not any(isinstance(batch, MissingLines) for batch in batches), batches
    return [line for batch in batches if isinstance(batch, list) for line in batch]


def with_request(name: str) -> Callable[[AttemptStatus], AttemptStatus]:
    return lambda status: status.model_copy(update={"requests": {**status.requests, name: "digest"}})


async def test_creating_a_record_starts_its_builder(stage: Stage) -> None:
    async with stage.service() as executor:
        created, is_new = await make(stage, executor, status=AttemptStatus(requests={"request": "digest"}))
        assert is_new
        assert created.spec == a_spec(ONE)
        assert created.status.requests == {"request": "digest"}
        running = await in_state(executor, ONE, AttemptState.RUNNING)
        assert running.is_live
        assert running.started_at is not None
        assert running.node
        stage.end(ONE)


async def test_creating_a_record_of_an_existing_name_returns_the_existing_one(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        other = a_spec(ONE, image="registry.example/other:1")
        again, is_new = await executor.create(other, AttemptStatus(requests={"other": "digest"}))
        assert not is_new
        assert again.spec == a_spec(ONE)
        assert again.status == AttemptStatus()
        stage.end(ONE)


async def test_concurrent_creations_of_one_record_start_one_builder(stage: Stage) -> None:
    async with stage.service() as executor:
        created = await asyncio.gather(*(make(stage, executor) for _ in range(20)))
        assert sum(is_new for _, is_new in created) == 1
        stage.write(ONE, "here")
        await until_line(executor, "here")
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
    assert stage.starts(ONE) == 1


async def test_creating_a_record_that_has_ended_returns_it_and_starts_no_builder(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        again, is_new = await make(stage, executor)
        assert not is_new
        assert again.state is AttemptState.ENDED
    assert stage.starts(ONE) == 1


async def test_changes_yield_existing_records_then_synced_then_later_changes(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor, "build-a")
        await make(stage, executor, "build-b")
        async with left(executor.changes()) as changes:
            first = [await anext(changes) for _ in range(3)]
            assert {change.attempt.name for change in first[:2] if isinstance(change, Changed)} == {
                "build-a",
                "build-b",
            }
            assert isinstance(first[2], Synced)
            await make(stage, executor, "build-c")
            async for change in changes:
                if isinstance(change, Changed) and change.attempt.name == "build-c":
                    break
            updated = await executor.update_status(AttemptName("build-a"), with_request("request"))
            async for change in changes:
                if isinstance(change, Changed) and change.attempt == updated:
                    break
        for name in ("build-a", "build-b", "build-c"):
            stage.end(name)


async def test_changes_of_an_empty_executor_begin_with_synced(stage: Stage) -> None:
    async with stage.service() as executor, left(executor.changes()) as changes:
        assert isinstance(await anext(changes), Synced)


async def test_concurrent_status_updates_are_all_kept(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        requests = {f"request-{number}" for number in range(50)}
        await asyncio.gather(*(executor.update_status(ONE, with_request(request)) for request in requests))
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert set(attempt.status.requests) == requests
        stage.end(ONE)


async def test_a_status_update_whose_caller_is_cancelled_loses_no_other_update(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        for number in range(10):
            cancelled = asyncio.create_task(executor.update_status(ONE, with_request(f"cancelled-{number}")))
            await asyncio.sleep(0)
            cancelled.cancel()
            await executor.update_status(ONE, with_request(f"kept-{number}"))
            await asyncio.gather(cancelled, return_exceptions=True)
        stage.end(ONE)
    async with stage.service() as executor:
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert {f"kept-{number}" for number in range(10)} <= set(attempt.status.requests)


async def test_calls_for_an_unknown_record_return_none_raise_or_have_no_effect(stage: Stage) -> None:
    unknown = AttemptName("unknown")
    async with stage.service() as executor:
        assert await executor.get(unknown) is None
        with pytest.raises(RecordMissing):
            await executor.update_status(unknown, with_request("request"))
        with pytest.raises(RecordMissing):
            await read_all(executor, name=unknown)
        await executor.cancel(unknown)
        await executor.delete(unknown)


async def test_reading_lines_ends_with_the_attempt(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        reading = asyncio.create_task(read_all(executor))
        stage.write(ONE, "first", "second")
        stage.write(ONE, "third")
        stage.end(ONE)
        lines = flat(await reading)
        assert [(line.n, line.text) for line in lines] == [(0, "first"), (1, "second"), (2, "third")]
        assert all(line.ts for line in lines)
        assert texts(await read_all(executor)) == ["first", "second", "third"]


async def test_lines_arrive_while_the_builder_runs(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        async with left(executor.lines(ONE, after=-1)) as batches:
            for number in range(5):
                stage.write(ONE, f"line {number}")
                batch = await anext(batches)
                assert isinstance(batch, list)
                assert [(line.n, line.text) for line in batch] == [(number, f"line {number}")]
            stage.end(ONE)
            with pytest.raises(StopAsyncIteration):
                await anext(batches)


async def test_reading_resumes_after_any_line(stage: Stage) -> None:
    written = [f"line {number}" for number in range(2500)]
    async with stage.service() as executor:
        await make(stage, executor)
        for start in range(0, len(written), 50):
            stage.write(ONE, *written[start : start + 50])
            await until_line(executor, written[start + 49], after=start - 1)
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        for after in (-1, 0, 1, 999, 1000, 2498, 2499):
            lines = flat(await read_all(executor, after=after))
            assert [line.n for line in lines] == list(range(after + 1, 2500))
            assert [line.text for line in lines] == written[after + 1 :]


async def test_several_readers_see_the_same_lines(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        readers = [asyncio.create_task(read_all(executor, after=number - 1)) for number in range(3)]
        for number in range(20):
            stage.write(ONE, f"line {number}")
            await until_line(executor, f"line {number}")
        stage.end(ONE)
        for number, reader in enumerate(readers):
            assert texts(await reader) == [f"line {count}" for count in range(number, 20)]


async def test_lines_that_the_builder_counted_but_that_are_lost_are_reported_missing(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "first")
        await until_line(executor, "first")
        stage.end(ONE, lines=4)
        batches = await read_all(executor)
        assert texts(batches[:1]) == ["first"]
        assert batches[1:] == [MissingLines(1, 3)]


async def test_an_ended_attempt_has_the_result_that_the_builder_wrote(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.end(
            ONE, "build_step_failed", exit_code=70, message="The step failed.", timings={"building": 2.5}
        )
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert not ended.is_live
        assert ended.ended_at is not None
        assert ended.result is not None
        assert (ended.result.reason, ended.result.exit_code) == ("build_step_failed", 70)
        assert (ended.result.message, ended.result.timings) == ("The step failed.", {"building": 2.5})


async def test_a_killed_builder_ends_the_attempt_without_a_result(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "last words")
        await until_line(executor, "last words")
        stage.kill(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is None
        assert texts(await read_all(executor)) == ["last words"]


async def test_cancel_stops_the_builder(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        await executor.cancel(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is not None
        assert ended.result.reason == "cancelled"
        await executor.cancel(ONE)  # has no effect


async def test_a_deleted_record_stays_deleted_in_the_next_service(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        async with synced(executor) as changes:
            await executor.delete(ONE)
            assert await anext(changes) == Removed(ONE)
        assert await executor.get(ONE) is None
    async with stage.service() as executor:
        assert await executor.get(ONE) is None


async def test_the_name_of_a_deleted_record_can_be_used_again(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "old")
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.delete(ONE)
        _, is_new = await make(stage, executor)
        assert is_new
        stage.write(ONE, "new")
        stage.end(ONE)
        assert texts(await read_all(executor)) == ["new"]


async def test_a_running_attempt_is_not_deleted(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        await executor.delete(ONE)
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert attempt.is_live
        stage.end(ONE)


async def test_a_record_removed_from_outside_is_published_and_ends_its_reader(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        reading = asyncio.create_task(read_all(executor, after=0))
        async with synced(executor) as changes:
            stage.remove(ONE)
            assert await anext(changes) == Removed(ONE)
        with pytest.raises(RecordMissing):
            await reading
        assert await executor.get(ONE) is None


async def test_the_next_service_finds_the_same_records_and_their_later_lines(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor, "build-ended")
        stage.write("build-ended", "a line")
        stage.end("build-ended", digest="sha256:1")
        ended = await in_state(executor, "build-ended", AttemptState.ENDED)
        await make(stage, executor)
        stage.write(ONE, "before")
        await until_line(executor, "before")
        running = await executor.update_status(ONE, with_request("request"))
    stage.write(ONE, "between")
    async with stage.service() as executor:
        assert await executor.get(AttemptName("build-ended")) == ended
        assert texts(await read_all(executor, name=AttemptName("build-ended"))) == ["a line"]
        assert await executor.get(ONE) == running
        assert running.is_live
        stage.write(ONE, "after")
        await until_line(executor, "after")
        stage.end(ONE)
        assert texts(await read_all(executor, after=0)) == ["between", "after"]
        again = await in_state(executor, ONE, AttemptState.ENDED)
        assert again.result is not None
        assert again.result.lines == 3
    assert stage.starts(ONE) == 1


async def test_the_next_service_finds_a_builder_that_ended_between_services(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
    stage.end(ONE)
    async with stage.service() as executor:
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is not None
        assert ended.result.reason == "ok"


async def test_the_next_service_can_cancel_an_attempt_of_the_previous_one(stage: Stage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
    async with stage.service() as executor:
        await executor.cancel(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is not None
        assert ended.result.reason == "cancelled"
