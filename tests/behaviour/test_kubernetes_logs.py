"""Logs of build pods: each line is read once and in order, or reported as missing, under failures of the streams."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.consumer.executors.base import (
    AttemptName,
    AttemptState,
    AttemptStatus,
    Lines,
    MissingLines,
)
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor, logs, pod_status
from rabbit2docker_schemas.reasons import FailureReason
from tests.behaviour.test_executors import ONE, flat, in_state, left, read_all, texts, until_line
from tests.support.kube.replicas import Replicas
from tests.support.records import a_spec
from tests.support.waiting import eventually

BEGINNING = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PAUSES", (0.01, 0.05))
    monkeypatch.setattr(logs, "END_DELAY_SECONDS", 0.1)
    monkeypatch.setattr(logs, "AFTER_END_SECONDS", 0.3)


class Writer:
    """A builder whose clock the test sets."""

    def __init__(self, kube: Replicas, name: str = ONE) -> None:
        self.kube = kube
        self.name = name
        self.now = BEGINNING
        self.count = 0

    def write(self, count: int = 1, *, seconds: float = 0.4) -> None:
        """Write lines at intervals of `seconds`."""
        for _ in range(count):
            self.raw(self.line(self.count))
            self.count += 1
            self.now += timedelta(seconds=seconds)

    def raw(self, data: bytes) -> None:
        self.kube.cluster.write(self.name, data, at=self.now)

    def line(self, number: int) -> bytes:
        text = f"line {number} {'é' * (number % 7 * 10)}"
        line = {"n": number, "ts": self.now.isoformat(), "phase": "building", "text": text}
        return json.dumps(line, ensure_ascii=False).encode()

    def end(self, lines: int | None = None) -> None:
        result = {"reason": "ok", "exit_code": 0, "lines": self.count if lines is None else lines}
        self.kube.cluster.terminate(self.name, 0, message=json.dumps(result))

    def numbers(self, first: int = 0) -> list[int]:
        return list(range(first, self.count))


async def running(kube: Replicas, executor: KubernetesExecutor, name: AttemptName = ONE) -> Writer:
    await executor.create(a_spec(name), AttemptStatus())
    await in_state(executor, name, AttemptState.RUNNING)
    return Writer(kube, name)


def numbers(batches: list[Lines]) -> list[int]:
    return [line.n for line in flat(batches)]


async def next_lines(batches: "asyncio.Queue[Lines]", until: int) -> list[Lines]:
    """Return the batches up to the line of that number."""
    found: list[Lines] = []
    while not (found and isinstance(found[-1], list) and found[-1][-1].n >= until):
        found.append(await batches.get())
    return found


async def follow(executor: KubernetesExecutor, into: "asyncio.Queue[Lines]", name: AttemptName = ONE) -> None:
    async with left(executor.lines(name, after=-1)) as batches:
        async for batch in batches:
            into.put_nowait(batch)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_streams_cut_at_any_byte_lose_or_repeat_no_line(
    kube: Replicas, seed: int, is_killed: bool
) -> None:
    rng = random.Random(seed)
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        for clean in (False, True):
            kube.server.faults.cut(
                lambda: rng.choice([rng.randint(0, 500), rng.randint(0, 5000), 1 << 30]),
                clean=clean,
                verb="log",
                times=rng.randint(5, 30),
            )
        reading = asyncio.create_task(read_all(executor))
        for _ in range(rng.randint(1, 80)):
            writer.write(rng.randint(0, 8), seconds=rng.choice([0.01, 0.4, 0.4, 2]))
            await asyncio.sleep(rng.choice([0, 0, 0.01]))
        if is_killed:
            kube.cluster.kill(ONE)
        else:
            writer.end()
        assert numbers(await reading) == writer.numbers()


@pytest.mark.parametrize("seed", range(4))
async def test_a_read_from_any_line_survives_cuts(kube: Replicas, seed: int) -> None:
    rng = random.Random(seed)
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(200)
        after = rng.randint(0, 199)
        kube.server.faults.cut(lambda: rng.randint(0, 30_000), verb="log", times=10)
        reading = asyncio.create_task(read_all(executor, after=after))
        await asyncio.sleep(rng.random() * 0.1)
        writer.write(50)
        writer.end()
        assert numbers(await reading) == writer.numbers(after + 1)


KUBELET = (
    b"unable to retrieve container logs for containerd://5e5e",
    b"failed to create fsnotify watcher: too many open files",
    b'failed to try resolving symlinks in path "/var/log/pods/x/builder/0.log": no such file or directory\n',
)


@pytest.mark.parametrize("text", KUBELET)
@pytest.mark.parametrize("after", [0, 100, 2000])
async def test_an_error_message_of_the_kubelet_is_neither_a_line_nor_the_end(
    kube: Replicas, text: bytes, after: int
) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(30)
        fault = kube.server.faults.say(text, after=after, times=3)
        reading = asyncio.create_task(read_all(executor))
        await eventually(lambda: fault.hits == 3)
        writer.write(2)
        writer.end()
        assert numbers(await reading) == writer.numbers()


async def test_an_error_message_of_the_kubelet_after_the_end_does_not_end_the_log(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(30)
        writer.end()
        await in_state(executor, ONE, AttemptState.ENDED)
        kube.server.faults.say(KUBELET[1], after=300, times=3)
        assert numbers(await read_all(executor)) == writer.numbers()


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
async def test_a_log_that_is_rejected_while_the_build_runs_is_retried(kube: Replicas, status: int) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(3)
        why = 'container "builder" in pod "build-one" is waiting to start: ContainerCreating'
        fault = kube.server.faults.answer(status, message=why, verb="log", times=logs.TRIES_AFTER_END + 4)
        reading = asyncio.create_task(read_all(executor))
        await eventually(lambda: fault.times == 0)
        await until_line(executor, "line 2 " + "é" * 20)
        writer.end()
        assert numbers(await reading) == writer.numbers()


async def test_no_log_is_requested_before_the_container_starts(kube: Replicas) -> None:
    kube.cluster.automatic = False
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        reading = asyncio.create_task(read_all(executor))
        kube.cluster.schedule(ONE)
        kube.cluster.waiting(ONE, "ImagePullBackOff", "Back-off pulling image")
        await in_state(executor, ONE, AttemptState.PENDING)
        kube.cluster.run(ONE)
        kube.write(ONE, "here")
        await until_line(executor, "here")
        kube.end(ONE)
        assert texts(await reading) == ["here"]
    assert all("terminated" not in seen.query for seen in kube.server.calls(verb="log"))
    assert len(kube.server.calls(verb="log")) == 2


async def test_the_log_of_a_pod_that_never_ran_is_empty_without_a_call(kube: Replicas) -> None:
    kube.cluster.automatic = False
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        kube.cluster.schedule(ONE)
        kube.cluster.fail(ONE, "OutOfcpu", "Node didn't have enough resource: cpu")
        await in_state(executor, ONE, AttemptState.ENDED)
        assert await read_all(executor) == []
    assert kube.server.calls(verb="log") == []


async def test_bytes_that_are_no_line_of_the_builder_are_skipped(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        strange = (
            b"\xff\xfe\x00\x80",
            b"",
            b"{}",
            b'{"n": "x"}',
            b"[" * 5000,
            b"\r\n\x1b[0m",
            b"null",
            b"\xe2\x82",
        )
        for data in strange:
            writer.write()
            writer.raw(data)
        writer.write()
        writer.end()
        assert numbers(await read_all(executor)) == writer.numbers()


async def test_an_invalid_line_is_reported_as_missing(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(2)
        writer.raw(writer.line(2).replace(b"line", b"li\xff\xfe"))
        writer.count += 1
        writer.write(2)
        writer.end()
        first, missing, second = await read_all(executor)
        assert (numbers([first]), missing, numbers([second])) == ([0, 1], MissingLines(2, 2), [3, 4])


async def test_an_oversized_line_is_skipped(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(2)
        writer.raw(b"x" * (5 << 20))
        writer.write(2)
        writer.end()
        assert numbers(await read_all(executor)) == writer.numbers()


async def test_lines_rotated_away_while_the_stream_was_broken_are_one_gap(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write(10)
        assert numbers(await next_lines(into, 9)) == list(range(10))
        fault = kube.server.faults.answer(500, verb="log", times=None)
        for stream in kube.server.streams("log"):
            stream.abort()
        await eventually(lambda: fault.hits)
        writer.write(40)
        kube.cluster.rotate(ONE, keep=5)
        fault.remove()
        found = await next_lines(into, 49)
        assert found[0] == MissingLines(10, 44)
        assert numbers(found[1:]) == list(range(45, 50))
        writer.write(3)
        writer.end()
        assert numbers(await next_lines(into, 52)) == [50, 51, 52]
        await reading
        assert into.empty()


async def test_lines_rotated_away_before_the_first_read_are_one_gap(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(40)
        kube.cluster.rotate(ONE, keep=5)
        writer.end()
        missing, *rest = await read_all(executor)
        assert missing == MissingLines(0, 34)
        assert numbers(rest) == list(range(35, 40))
        assert (await read_all(executor, after=20))[0] == MissingLines(21, 34)
        assert numbers(await read_all(executor, after=37)) == [38, 39]


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_clock_set_back_hides_no_line(kube: Replicas, is_killed: bool) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write(10)
        await next_lines(into, 9)
        fault = kube.server.faults.answer(500, verb="log", times=None)
        for stream in kube.server.streams("log"):
            stream.abort()
        await eventually(lambda: fault.hits)
        writer.now -= timedelta(hours=1)
        writer.write(5)
        if is_killed:
            kube.cluster.kill(ONE)
        else:
            writer.end()
        fault.remove()
        assert numbers(await next_lines(into, 14)) == [10, 11, 12, 13, 14]
        await reading
        assert into.empty()


async def test_a_clock_set_back_causes_no_gap_and_no_repetition(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write(10, seconds=1)
        await next_lines(into, 9)
        fault = kube.server.faults.answer(500, verb="log", times=None)
        for stream in kube.server.streams("log"):
            stream.abort()
        await eventually(lambda: fault.hits)
        writer.now -= timedelta(seconds=4)
        writer.write(20, seconds=1)
        fault.remove()
        assert numbers(await next_lines(into, 29)) == list(range(10, 30))
        writer.end()
        await reading
        assert into.empty()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_dead_stream_does_not_block_the_end_of_the_log(kube: Replicas, is_killed: bool) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write(3)
        await next_lines(into, 2)
        for stream in kube.server.streams("log"):
            stream.silence()
        writer.write(3)
        if is_killed:
            kube.cluster.kill(ONE)
        else:
            writer.end()
        assert numbers(await next_lines(into, 5)) == [3, 4, 5]
        await reading


async def test_a_stream_without_a_response_does_not_block_the_end_of_the_log(kube: Replicas) -> None:
    fault = kube.server.faults.hang(verb="log")
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        reading = asyncio.create_task(read_all(executor))
        await eventually(lambda: fault.hits)
        writer.write(3)
        writer.end()
        assert numbers(await reading) == writer.numbers()


async def test_a_silent_log_stream_is_reopened(kube: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "READ_TIMEOUT_SECONDS", 0.3)
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write()
        await next_lines(into, 0)
        for stream in kube.server.streams("log"):
            stream.silence()
        writer.write(2)
        assert numbers(await next_lines(into, 2)) == [1, 2]
        writer.end()
        await reading


async def test_a_log_that_is_gone_after_the_end_is_a_gap(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(7)
        writer.end()
        kube.cluster.lose_log(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        assert await read_all(executor) == [MissingLines(0, 6)]
        assert await read_all(executor, after=4) == [MissingLines(5, 6)]
        assert await read_all(executor, after=6) == []


@pytest.mark.parametrize("is_killed", [False, True])
async def test_the_log_of_a_pod_on_a_lost_node_ends(kube: Replicas, is_killed: bool) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        into: asyncio.Queue[Lines] = asyncio.Queue()
        reading = asyncio.create_task(follow(executor, into))
        writer.write(4)
        await next_lines(into, 3)
        kube.cluster.lose_node("node-1")
        for stream in kube.server.streams("log"):
            stream.abort()
        if is_killed:
            kube.cluster.kill(ONE)
        else:
            writer.end(lines=6)
        await reading
        assert into.empty() if is_killed else into.get_nowait() == MissingLines(4, 5)


async def test_a_log_is_retried_if_its_node_is_briefly_unreachable_after_the_end(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(4)
        writer.end()
        await in_state(executor, ONE, AttemptState.ENDED)
        kube.server.faults.answer(500, verb="log", times=logs.TRIES_AFTER_END - 1)
        assert numbers(await read_all(executor)) == writer.numbers()


async def test_a_log_is_retried_indefinitely_if_the_api_server_is_away_after_the_end(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(4)
        writer.end()
        await in_state(executor, ONE, AttemptState.ENDED)
        fault = kube.server.faults.drop_before(verb="log", times=3 * logs.TRIES_AFTER_END)
        reading = asyncio.create_task(read_all(executor))
        await eventually(lambda: fault.times == 0)
        assert numbers(await reading) == writer.numbers()


async def test_a_log_is_abandoned_if_its_node_stays_silent_after_the_end(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(4)
        writer.end()
        await in_state(executor, ONE, AttemptState.ENDED)
        fault = kube.server.faults.hang(verb="log", times=None)
        assert await read_all(executor) == [MissingLines(0, 3)]
        assert fault.hits >= logs.TRIES_AFTER_END
        fault.release()


async def test_a_silent_log_is_soon_abandoned_if_its_node_is_lost(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_status, "LOST_SECONDS", 0.0)
    async with kube.executor(termination_seconds=1) as executor:
        writer = await running(kube, executor)
        writer.write(4)
        fault = kube.server.faults.hang(verb="log", times=None)
        kube.cluster.lose_node("node-1")
        kube.cluster.taint_node("node-1")
        assert await read_all(executor) == []
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.external_end is not None
        assert attempt.external_end.reason is FailureReason.NODE_LOST
        # One more is the stream that was open when the node was given up.
        assert fault.hits <= logs.TRIES_OF_LOST_NODE + 1
        fault.release()


async def test_a_log_is_retried_more_often_if_the_api_server_is_busy_than_if_the_node_fails(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(4)
        writer.end()
        await in_state(executor, ONE, AttemptState.ENDED)
        kube.server.faults.answer(503, verb="log", times=2 * logs.TRIES_AFTER_END)
        assert numbers(await read_all(executor)) == writer.numbers()


async def test_the_log_of_a_killed_builder_is_complete_only_after_another_read(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write(5)
        # A load balancer may end a stream without an error.
        kube.server.faults.cut(300, clean=True, verb="log")
        kube.cluster.kill(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        assert numbers(await read_all(executor)) == writer.numbers()
        assert len(kube.server.calls(verb="log")) >= 3


async def test_many_log_streams_do_not_block_calls(kube: Replicas) -> None:
    names = [AttemptName(f"build-{number}") for number in range(130)]
    async with kube.executor() as executor:
        for name in names:
            await executor.create(a_spec(name), AttemptStatus())
        readings = [asyncio.create_task(read_all(executor, name=name)) for name in names]
        await eventually(lambda: len(kube.server.streams("log")) == len(names))
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await executor.cancel(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        for name in names:
            kube.write(name, f"of {name}")
            kube.end(name)
        assert [texts(await reading) for reading in readings] == [[f"of {name}"] for name in names]
    assert kube.server.streams("log") == []


async def test_log_streams_without_a_response_do_not_block_watches_or_other_logs(kube: Replicas) -> None:
    names = [AttemptName(f"build-{number}") for number in range(130)]
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        for name in names:
            await executor.create(a_spec(name), AttemptStatus())
        # As with a node behind a broken network, or builders without a first line, which is when the kubelet responds.
        fault = kube.server.faults.hang(verb="log", times=len(names))
        readings = [asyncio.create_task(read_all(executor, name=name)) for name in names]
        await eventually(lambda: fault.times == 0)
        for stream in kube.server.streams("watch"):
            stream.abort()
        kube.write(ONE, "here")
        await until_line(executor, "here")
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        for reading in readings:
            reading.cancel()


async def test_closing_a_log_reader_closes_its_stream(kube: Replicas) -> None:
    async with kube.executor() as executor:
        writer = await running(kube, executor)
        writer.write()
        await until_line(executor, "line 0 ")
        await eventually(lambda: not kube.server.streams("log"))
