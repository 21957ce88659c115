"""Starts `rabbit2docker` as a process of its own: the console script, or a fork of a process that has imported it.

A fork is a real process with its own session, environment and files; only its imports are done. One server for each
command serves all workers of a run, and ends with the process that began the run.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from tests.support import fork_server
from tests.support.containers import exclusive, run_directory, run_process

COMMAND: Final = Path(sys.executable).with_name("rabbit2docker")


class Forked:
    """A process that a fork server has started, with what tests use of `subprocess.Popen`."""

    def __init__(self, command: str, environment: Mapping[str, str], output: IO[bytes]) -> None:
        """Start `rabbit2docker` with this command; return once the process is in its own session."""
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_server(command))
        request = {
            "command": [str(COMMAND), command],
            "environment": dict(environment),
            "directory": os.getcwd(),
        }
        with open(os.devnull, "rb") as nothing:
            files = [nothing.fileno(), output.fileno(), output.fileno()]
            socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        answer, ours, _, _ = socket.recv_fds(self._connection, 1024, 1)
        self.pid = int(json.loads(answer))
        [self._pidfd] = ours

    def __del__(self) -> None:
        """Close the files; the process goes on."""
        self._connection.close()
        if (pidfd := getattr(self, "_pidfd", None)) is not None:
            os.close(pidfd)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended. Raises TimeoutExpired."""
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([str(COMMAND)], timeout or 0)
        return code

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            code = self._connection.recv(1024)
            # A server that has ended has ended its processes.
            self.returncode = int(json.loads(code)) if code else -signal.SIGTERM
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


Program = Forked | subprocess.Popen[bytes]


def start(command: str, environment: Mapping[str, str], output: IO[bytes], *, fork: bool) -> Program:
    """Start `rabbit2docker` in a session of its own, without standard input; both outputs go to `output`."""
    if fork:
        return Forked(command, environment, output)
    return subprocess.Popen(
        [COMMAND, command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(environment),
        start_new_session=True,
    )


def _server(command: str) -> str:
    """Return the socket of the run's server for a command; the first worker that asks starts it."""
    path = run_directory() / f"{command}.socket"
    with exclusive(path):
        if not path.exists():
            _start_server(path, command)
    return str(path)


def _start_server(path: Path, command: str) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(("RABBIT2DOCKER_", "JUPYTERHUB_"))
    }
    with path.with_suffix(".log").open("wb") as log:
        # It returns once a server listens.
        subprocess.run(
            [sys.executable, fork_server.__file__, str(path), str(run_process()), command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            check=True,
        )
