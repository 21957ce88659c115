"""The promises of the local executor beyond those of every executor."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from rabbit2docker.consumer.executors.base import AttemptName, AttemptState, AttemptStatus, MissingLines
from rabbit2docker.consumer.executors.local import LocalExecutor, state_directory
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable
from rabbit2docker.settings import DockerSettings, LocalSettings, Settings
from rabbit2docker_schemas.tracing import Trace
from tests.behaviour.test_executors import (
    ONE,
    in_state,
    left,
    make,
    read_all,
    texts,
    until_line,
    with_request,
)
from tests.support.records import a_spec
from tests.support.stages import LocalStage
from tests.support.waiting import eventually


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStage]:
    stage = LocalStage(tmp_path)
    monkeypatch.setenv("SCRIPTED_BUILDER_DIR", str(stage.pipes))
    with blockbuster_ctx("rabbit2docker"):
        yield stage
    stage.close()


async def test_a_second_service_on_the_state_directory_fails_and_names_the_first(stage: LocalStage) -> None:
    async with stage.service():
        with pytest.raises(ConfigurationError, match=f"process {os.getpid()}.*STATE_DIR"):
            await stage.service().__aenter__()
    async with stage.service():
        pass


async def test_the_last_child_of_a_killed_service_is_waited_for(stage: LocalStage) -> None:
    """Between fork and exec, a child holds the lock of its parent, which may have been killed."""
    killed = await asyncio.create_subprocess_exec("true")
    await killed.wait()
    stage.state.mkdir(exist_ok=True)
    child = os.open(stage.state / state_directory.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(child, fcntl.LOCK_EX)
    os.pwrite(child, str(killed.pid).encode(), 0)

    async def start_and_stop() -> None:
        async with stage.service():
            pass

    starting = asyncio.create_task(start_and_stop())
    done, _ = await asyncio.wait([starting], timeout=0.5)
    assert not done
    os.close(child)
    await starting


async def test_a_state_directory_that_cannot_be_created_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(local=LocalSettings(state_dir=tmp_path / "file" / "state"))
    with pytest.raises(ConfigurationError, match="RABBIT2DOCKER_LOCAL__STATE_DIR"):
        await LocalExecutor(settings, builder_command=["true"]).__aenter__()


async def test_a_record_left_without_a_builder_by_a_crash_gets_one(stage: LocalStage) -> None:
    crashed = state_directory.StateDirectory(stage.state)
    await asyncio.to_thread(crashed.open)
    await asyncio.to_thread(crashed.create, a_spec(ONE), AttemptStatus(), {})
    await asyncio.to_thread(crashed.close)
    stage.prepare(ONE)
    async with stage.service() as executor:
        again, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert not is_new
        assert again.is_live
        stage.write(ONE, "here")
        stage.end(ONE)
        assert texts(await read_all(executor)) == ["here"]
    assert stage.starts(ONE) == 1


async def test_folders_left_half_created_or_half_removed_by_a_crash_are_removed(stage: LocalStage) -> None:
    for name in (".new-0123", ".old-0123"):
        (stage.state / "attempts" / name).mkdir(parents=True)
    async with stage.service():
        assert list((stage.state / "attempts").iterdir()) == []


async def test_a_builder_is_found_even_if_the_service_died_before_it_recorded_its_process(
    stage: LocalStage,
) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        pid = stage.pid(ONE)
    (stage.folder(ONE) / "process.json").unlink()
    async with stage.service() as executor:
        running = await in_state(executor, ONE, AttemptState.RUNNING)
        assert running.started_at is not None
        await executor.cancel(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is not None
        assert ended.result.reason == "cancelled"
    assert not _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_that_reuses_the_builders_pid_gets_no_signal(stage: LocalStage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        stage.kill(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
    process = stage.folder(ONE) / "process.json"
    text = process.read_text().replace(str(stage.pid(ONE)), str(os.getpid()))
    process.write_text(text)
    async with stage.service() as executor:
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert attempt.state is AttemptState.ENDED
        await executor.cancel(ONE)


async def test_a_builder_that_ignores_sigterm_is_killed_after_the_grace_period(stage: LocalStage) -> None:
    async with stage.service(kill_after=0.2) as executor:
        await make(stage, executor)
        stage.command(ONE, {"stubborn": True})
        stage.write(ONE, "will not go")
        await until_line(executor, "will not go")
        await executor.cancel(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is None


async def test_the_next_service_completes_a_cancel_that_was_within_its_grace_period(
    stage: LocalStage,
) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.command(ONE, {"stubborn": True})
        stage.write(ONE, "will not go")
        await until_line(executor, "will not go")
        await executor.update_status(ONE, lambda status: status.model_copy(update={"cancelled_by": "ada"}))
        await executor.cancel(ONE)
    async with stage.service(kill_after=0.2) as executor:
        assert (await in_state(executor, ONE, AttemptState.ENDED)).result is None


async def test_an_attempt_whose_builder_cannot_start_says_why_and_can_be_cancelled(stage: LocalStage) -> None:
    settings = Settings(local=LocalSettings(state_dir=stage.state))
    async with LocalExecutor(settings, builder_command=["/nonexistent/builder"]) as executor:
        created, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new
        assert created.state is AttemptState.PENDING
        assert created.waiting_for == "The builder cannot be started: No such file or directory."
        await executor.cancel(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is None
        assert await read_all(executor) == []
    stage.prepare(ONE)
    async with stage.service() as executor:
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert attempt.state is AttemptState.ENDED
    assert not (stage.pipes / f"{ONE}.starts").exists()


async def test_a_pending_record_is_started_by_the_next_service_that_can(stage: LocalStage) -> None:
    settings = Settings(local=LocalSettings(state_dir=stage.state))
    async with LocalExecutor(settings, builder_command=["/nonexistent/builder"]) as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
    stage.prepare(ONE)
    async with stage.service() as executor:
        stage.end(ONE)
        ended = await in_state(executor, ONE, AttemptState.ENDED)
        assert ended.result is not None


async def test_an_incomplete_line_is_not_read_before_it_is_complete(stage: LocalStage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        async with left(executor.lines(ONE, after=-1)) as batches:
            stage.command(ONE, {"raw": '{"n": 0, "ts": "2026-01-01T00:00:00Z", "phase": "buil'})
            reading = asyncio.ensure_future(anext(batches))
            await until_size(stage, 40)
            assert not reading.done()
            stage.command(ONE, {"raw": 'ding", "text": "whole"}\n'})
            assert texts([await reading]) == ["whole"]
        stage.command(ONE, {"raw": '{"n": 1, "ts": "2026'})
        stage.command(ONE, {"stubborn": True})
        await until_size(stage, 90)
        stage.kill(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        assert texts(await read_all(executor)) == ["whole"]


async def until_size(stage: LocalStage, size: int) -> None:
    path = stage.folder(ONE) / "log.jsonl"
    await eventually(lambda: path.stat().st_size >= size)


async def test_damaged_lines_are_reported_missing_and_the_others_are_read(stage: LocalStage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, *(f"line {number}" for number in range(6)))
        stage.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        path = stage.folder(ONE) / "log.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[2] = b"\0" * 20 + b"\n"
        del lines[4]
        path.write_bytes(b"".join(lines))
        before, first, between, second, last = await read_all(executor)
        assert texts([before, between, last]) == ["line 0", "line 1", "line 3", "line 5"]
        assert (first, second) == (MissingLines(2, 2), MissingLines(4, 4))
        assert texts(await read_all(executor, after=4)) == ["line 5"]


async def test_a_full_disk_is_reported_and_recovered_from(
    stage: LocalStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.service() as executor:
        await make(stage, executor)

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(state_directory, "write_atomically", full)
            with pytest.raises(ExecutorUnavailable, match="is full"):
                await make(stage, executor, "build-two")
            with pytest.raises(ExecutorUnavailable, match="is full"):
                await executor.update_status(ONE, with_request("request"))
        attempt = await executor.get(ONE)
        assert attempt is not None
        assert attempt.status == AttemptStatus()
        assert await executor.get(AttemptName("build-two")) is None
        assert (await executor.update_status(ONE, with_request("request"))).status.requests == {
            "request": "digest"
        }
        _, is_new = await make(stage, executor, "build-two")
        assert is_new
        stage.end(ONE)
        stage.end("build-two")


async def test_the_builders_environment_holds_no_settings_of_the_service(
    stage: LocalStage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__URL", "amqp://user:secret@broker/")
    settings = Settings(
        local=LocalSettings(state_dir=stage.state), docker=DockerSettings(config=tmp_path / "docker")
    )
    async with LocalExecutor(settings, builder_command=["sh", "-c", "env >&2"]) as executor:
        trace = Trace(parent="00-1-2-3", state="a=1")
        await executor.create(a_spec(ONE, trace=trace), AttemptStatus())
        await in_state(executor, ONE, AttemptState.ENDED)
    environment = (stage.folder(ONE) / "builder.err").read_text()
    assert f"DOCKER_CONFIG={tmp_path / 'docker'}" in environment
    assert "RABBIT2DOCKER_" not in environment
    assert "TRACEPARENT=00-1-2-3\n" in environment
    assert "TRACESTATE=a=1\n" in environment


async def test_a_builder_runs_in_its_own_session(stage: LocalStage) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        assert os.getsid(stage.pid(ONE)) == stage.pid(ONE)
        stage.end(ONE)


async def test_records_can_be_created_after_the_attempts_folder_was_removed_from_outside(
    stage: LocalStage,
) -> None:
    async with stage.service() as executor:
        await make(stage, executor)
        stage.write(ONE, "here")
        await until_line(executor, "here")
        reading = asyncio.create_task(read_all(executor, after=0))
        stage.remove(ONE)
        (stage.state / "attempts").rmdir()
        await asyncio.wait([reading])
        assert reading.exception() is not None
        _, is_new = await make(stage, executor, "build-two")
        assert is_new
        stage.end("build-two")
        await in_state(executor, "build-two", AttemptState.ENDED)
        assert (stage.state / "attempts" / "build-two").is_dir()
