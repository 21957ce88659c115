"""Containers that tests start, and those that all workers of a parallel run share.

A run has a directory, named by an environment variable that its workers inherit. Every container carries the name
of that directory as a label; the process that began the run removes what carries it, also when a worker crashed.
"""

import fcntl
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import docker

from tests.support.ports import free_port

_RUN = "RABBIT2DOCKER_TEST_RUN"
_LABEL = "rabbit2docker-test-run"
_USED = "used"
_PROCESS = "process"


@cache
def _engine() -> docker.DockerClient:
    return docker.from_env(timeout=180)


def disconnect() -> None:
    """Close this process's connections to the engine."""
    if _engine.cache_info().currsize:
        _engine().close()
        _engine.cache_clear()


def run_directory() -> Path:
    """Return the directory of this run."""
    return Path(os.environ[_RUN])


def run_process() -> int:
    """Return the number of the process that began this run."""
    return int((run_directory() / _PROCESS).read_text())


def begin_run() -> Callable[[], None]:
    """Begin a run in this process and its children; return what ends it."""
    directory = Path(tempfile.mkdtemp(prefix="rabbit2docker-tests-"))
    os.environ[_RUN] = str(directory)
    (directory / _PROCESS).write_text(str(os.getpid()))

    def end() -> None:
        if (directory / _USED).exists():
            for container in _engine().containers.list(
                all=True, filters={"label": f"{_LABEL}={directory.name}"}
            ):
                container.remove(force=True, v=True)
        shutil.rmtree(directory)

    return end


@dataclass(frozen=True, slots=True)
class Container:
    """One container. Its ports are fixed, so that it is found again after a restart."""

    id: str
    ports: dict[int, int] = field(default_factory=dict)
    """Ports inside, and those of loopback they are published at."""

    @classmethod
    def start(
        cls,
        image: str,
        ports: Sequence[int],
        *,
        command: str | None = None,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        on_host_network: bool = False,
        in_memory: str | None = None,
    ) -> "Container":
        """Start one with these files in it; return before it is ready. On the host's network it publishes no ports.

        A directory `in_memory` is empty again after a restart.
        """
        published = {inside: free_port() for inside in ports}
        engine, run = _engine(), run_directory()
        (run / _USED).touch()
        made = engine.containers.create(
            image,
            command,
            environment=dict(environment or {}),
            labels={_LABEL: run.name},
            tmpfs={in_memory: "mode=1777"} if in_memory else None,
            network_mode="host" if on_host_network else None,
            ports={f"{inside}/tcp": ("127.0.0.1", outside) for inside, outside in published.items()},
        )
        if files:
            made.put_archive("/", _archive(files))
        made.start()
        return cls(str(made.id), published)

    @property
    def _container(self) -> Any:
        return _engine().containers.get(self.id)

    def execute(self, *command: str) -> tuple[int, bytes]:
        """Run a command in it; return the exit code and the output."""
        exit_code, output = self._container.exec_run(list(command))
        return exit_code, output

    def kill(self) -> None:
        """Kill it; `restart` starts it again with what it has on disk."""
        self._container.kill()

    def restart(self) -> None:
        """Start it again after `kill`."""
        self._container.start()

    def remove(self) -> None:
        """Remove it with its data."""
        self._container.remove(force=True, v=True)


def _archive(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep the other workers of a run out, who would make the same thing."""
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def shared(name: str, start: Callable[[], Container]) -> Container:
    """Return the run's container of that name; the first worker that asks starts it and the others wait.

    `start` returns once the container is ready. It must not be stopped before the run ends.
    """
    note = run_directory() / f"{name}.json"
    with exclusive(note):
        if not note.exists():
            note.write_text(json.dumps(asdict(start())))
        data = json.loads(note.read_text())
    return Container(data["id"], {int(inside): outside for inside, outside in data["ports"].items()})
