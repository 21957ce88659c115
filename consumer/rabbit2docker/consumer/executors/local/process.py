"""The builder as a process: started at most once for a record, outliving the service, known again by the next one.

Everything here blocks and is called in threads. Two facts are left to the kernel, so that no crash can make
them wrong:

- **started**: the new process creates `builder.err` exclusively before it becomes the builder. Whoever comes second
  cannot start.
- **alive**: the builder holds the record's named pipe open as its fd 3. A pipe that nobody holds means that it ended,
  whatever became of its number, and the reading end tells the moment.
"""

import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rabbit2docker.consumer.executors.local.state_directory import OUTPUT, PROCESS, RUNNING, write_whole

_PIPE_FD: Final = 3
_REAP_MILLISECONDS: Final = 5000
_RESET: Final = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Process:
    """Which process: the number alone may be another's by now, with its start it cannot."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process, as in /proc/<pid>/stat."""
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of a record's builder."""

    started: bool
    """A builder was started, or may no longer be."""
    process: Process | None = None
    pipe: int | None = None
    """Reading end of the pipe while the builder lives: readable at its end. The caller closes it."""


def start(path: Path, command: Sequence[str], environment: Mapping[str, str]) -> Observed:
    """Start the builder of the record in `path` unless one was started, and observe it.

    Raises OSError when no process can be made; then the record has none and this can be repeated.
    """
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        # The pipe first: from the moment that the builder counts as started, it counts as alive.
        (os.POSIX_SPAWN_OPEN, _PIPE_FD, str(path / RUNNING), os.O_RDWR, 0),
        (
            os.POSIX_SPAWN_OPEN,
            1,
            str(path / OUTPUT),
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL,
            0o600,
        ),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        pid = os.posix_spawnp(
            command[0], list(command), dict(environment), file_actions=actions, setsid=True, setsigdef=_RESET
        )
    except FileExistsError:
        return observe(path)
    except OSError:
        # The claim is made before the program is found missing or not executable.
        (path / OUTPUT).unlink(missing_ok=True)
        raise
    if (ticks := _start_ticks(pid)) is not None:
        _write_process(path, Process(pid, ticks, datetime.now(UTC)))
    return observe(path)


def claim(path: Path) -> bool:
    """Make sure that no builder will be started for the record any more; False when one was."""
    try:
        os.close(os.open(path / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def observe(path: Path) -> Observed:
    """Tell whether the builder of the record was started, and whether it lives."""
    pipe = _open_pipe(path)
    if pipe is None:
        # Looked at after the pipe: a builder that starts in between is seen as started.
        return Observed((path / OUTPUT).exists(), _read_process(path))
    try:
        process = _read_process(path) or _find_process(path)
    except BaseException:
        os.close(pipe)
        raise
    return Observed(True, process, pipe)


def has_ended(pipe: int) -> bool:
    """Tell whether nobody holds the pipe any more."""
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return False
    return True


def send(path: Path, process: Process | None, number: signal.Signals) -> bool:
    """Send a signal to the builder and to nobody else; False when it is not there."""
    process = process or _find_process(path)
    if process is None:
        return False
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if _start_ticks(process.pid) != process.start_ticks:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def reap(process: Process) -> None:
    """Collect the builder after its end if it is a child of this service, so that no zombie stays."""
    if _start_ticks(process.pid) != process.start_ticks:
        return
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # The pipe is closed a moment before the process can be collected.
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll(_REAP_MILLISECONDS)
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        pass
    finally:
        os.close(handle)


def _open_pipe(path: Path) -> int | None:
    try:
        pipe = os.open(path / RUNNING, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if has_ended(pipe):
        os.close(pipe)
        return None
    return pipe


def _write_process(path: Path, process: Process) -> None:
    data = {
        "pid": process.pid,
        "start_ticks": process.start_ticks,
        "started_at": process.started_at.isoformat(),
    }
    # On a full disk it is not written: the process is then found by its pipe.
    with suppress(OSError):
        write_whole(path / PROCESS, json.dumps(data), durable=False)


def _read_process(path: Path) -> Process | None:
    try:
        data = json.loads((path / PROCESS).read_bytes())
        return Process(int(data["pid"]), int(data["start_ticks"]), datetime.fromisoformat(data["started_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The program's name is in brackets and may itself hold blanks and brackets.
    return int(stat.rpartition(")")[2].split()[19])


def _find_process(path: Path) -> Process | None:
    """Find the builder by the pipe it holds: for a service that died before it wrote down whom it had started."""
    pipe = (path / RUNNING).stat()
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            held = os.stat(f"/proc/{entry.name}/fd/{_PIPE_FD}")
        except OSError:
            continue
        ticks = _start_ticks(int(entry.name))
        if (held.st_dev, held.st_ino) == (pipe.st_dev, pipe.st_ino) and ticks is not None:
            found.append(Process(int(entry.name), ticks, _time_of(ticks)))
    # A child of the builder holds the pipe too for the moment between fork and exec.
    return min(found, key=lambda process: process.start_ticks, default=None)


def _time_of(ticks: int) -> datetime:
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return datetime.fromtimestamp(time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK"), UTC)
