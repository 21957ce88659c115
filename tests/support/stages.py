"""One interface to control builders under any executor."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Protocol

from rabbit2docker.consumer.executors.base import AttemptName, Executor
from rabbit2docker.consumer.executors.local import LocalExecutor
from rabbit2docker.settings import LocalSettings, Settings
from tests.support.memory_executor import MemoryExecutor, MemoryWorld

SCRIPTED_BUILDER = Path(__file__).with_name("scripted_builder.py")


class Stage(Protocol):
    """A sequence of executors on the same records, and control over their builders."""

    def service(self) -> Executor:
        """Return an executor that is not open yet; only one may be open at a time."""

    def prepare(self, *names: str) -> None:
        """Prepare for the builders of these records, before the records are created."""

    def write(self, name: str, *texts: str) -> None:
        """Make the builder write lines."""

    def end(self, name: str, reason: str = "ok", **more: object) -> None:
        """Make the builder end with a result."""

    def kill(self, name: str) -> None:
        """Send SIGKILL to the running builder."""

    def remove(self, name: str) -> None:
        """Remove the record from outside."""

    def starts(self, name: str) -> int:
        """Return how many builders were started for the record; each has written a line or ended."""


class MemoryStage:
    def __init__(self) -> None:
        self.world = MemoryWorld()

    def service(self) -> Executor:
        return MemoryExecutor(self.world)

    def prepare(self, *names: str) -> None:
        pass

    def write(self, name: str, *texts: str) -> None:
        self.world.write(name, *texts)

    def end(self, name: str, reason: str = "ok", **more: object) -> None:
        self.world.end(name, reason, **more)

    def kill(self, name: str) -> None:
        self.world.kill(name)

    def remove(self, name: str) -> None:
        self.world.remove(name)

    def starts(self, name: str) -> int:
        return self.world.records[AttemptName(name)].starts


class LocalStage:
    """Processes that wait for commands on a pipe; set SCRIPTED_BUILDER_DIR to `directory / "pipes"`."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.pipes = directory / "pipes"
        self.pipes.mkdir()
        self._open: dict[str, int] = {}

    def service(self, *, kill_after: float = 20.0) -> LocalExecutor:
        settings = Settings(local=LocalSettings(state_dir=self.state))
        return LocalExecutor(
            settings, builder_command=[sys.executable, str(SCRIPTED_BUILDER)], kill_after=kill_after
        )

    def folder(self, name: str) -> Path:
        return self.state / "attempts" / name

    def command(self, name: str, command: dict[str, object]) -> None:
        os.write(self._pipe(name), json.dumps(command).encode() + b"\n")

    def _pipe(self, name: str) -> int:
        if name not in self._open:
            path = self.pipes / name
            if not path.exists():
                os.mkfifo(path)
            # Open for reading and writing: commands sent before the builder reads are kept.
            self._open[name] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        return self._open[name]

    def prepare(self, *names: str) -> None:
        for name in names:
            self._pipe(name)

    def write(self, name: str, *texts: str) -> None:
        self.command(name, {"write": texts})

    def end(self, name: str, reason: str = "ok", **more: object) -> None:
        self.command(name, {"end": {"reason": reason, **more}})

    def pid(self, name: str) -> int:
        pid = json.loads((self.folder(name) / "process.json").read_text())["pid"]
        assert isinstance(pid, int)
        return pid

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder(name))

    def starts(self, name: str) -> int:
        return len((self.pipes / f"{name}.starts").read_text().splitlines())

    def close(self) -> None:
        """Close the pipes, which ends every builder that still runs."""
        for pipe in self._open.values():
            os.close(pipe)
