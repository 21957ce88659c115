"""A service that a fork server starts is like one that the console script starts."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rabbit2docker.settings import AmqpSettings
from tests.support import programs
from tests.support.consumer import Consumer
from tests.support.ports import free_port
from tests.support.waiting import eventually_blocking

MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeConsumer]:
    """Start consumers whose RabbitMQ is away."""
    made: list[Consumer] = []

    def start(*, fork: bool, **variables: str) -> Consumer:
        directory = tmp_path / f"{len(made)}"
        directory.mkdir()
        amqp = AmqpSettings.model_validate({"url": f"amqp://127.0.0.1:{free_port()}"})
        consumer = Consumer(directory, amqp, real=False, **variables)
        consumer.fork = fork
        consumer.start()
        made.append(consumer)
        return consumer

    yield start
    for consumer in made:
        consumer.end_everything()


def files_of(pid: int | str) -> dict[str, str]:
    """Return what the open files of a process are, by number."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it may be closed by now
            found[path.name] = os.readlink(path)
    return found


def lives(consumer: Consumer) -> bool:
    try:
        return consumer.get("/health/live")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize("fork", [True, False])
def test_a_program_has_its_own_session_files_and_directory_and_ends_by_signals(
    make: MakeConsumer, fork: bool
) -> None:
    consumer = make(fork=fork)
    eventually_blocking(lambda: lives(consumer))
    process = consumer.process
    assert process is not None
    assert process.poll() is None
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert os.readlink(f"/proc/{process.pid}/cwd") == str(Path.cwd())
    files = files_of(process.pid)
    assert [files[number] for number in "012"] == [os.devnull, str(consumer.log), str(consumer.log)]
    assert "anon_inode:[pidfd]" not in files.values()
    parent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[1]
    shared = set(files.values()) & set(files_of(parent).values())
    assert not {name for name in shared if name.startswith("socket:")}
    assert consumer.stop() == 0
    consumer.start()
    eventually_blocking(lambda: lives(consumer))
    consumer.kill()
    assert consumer.process is not None
    assert consumer.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("fork", [True, False])
def test_a_program_has_its_own_environment_and_exit_code(make: MakeConsumer, fork: bool) -> None:
    consumer = make(fork=fork, RABBIT2DOCKER_AMQPS__URL="x")
    assert consumer.process is not None
    assert consumer.process.wait(100) == 78
    assert "RABBIT2DOCKER_AMQPS__URL" in consumer.log.read_text()
    consumer = make(fork=fork)
    assert consumer.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        consumer.process.wait(0)


def test_a_run_of_tests_that_is_killed_leaves_no_program_behind(
    make: MakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as directory, subprocess.Popen(["sleep", "600"]) as run:
        monkeypatch.setattr(programs, "run_directory", lambda: Path(directory))
        monkeypatch.setattr(programs, "run_process", lambda: run.pid)
        consumer = make(fork=True)
        eventually_blocking(lambda: lives(consumer))
        run.kill()
        eventually_blocking(lambda: not lives(consumer))
