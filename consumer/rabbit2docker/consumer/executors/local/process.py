"""The builder as a process: started at most once per record, outliving the service, recognized by the next one.

Everything here blocks and is called in threads. The kernel keeps two facts, so that no crash can make them wrong:

- **started**: the new process creates `builder.err` exclusively before it becomes the builder. A second start fails.
- **alive**: the builder holds the record's named pipe open as its fd 3. The pipe is closed once the builder has
  ended, whatever process has its number by then, and the reading end becomes readable at that moment.
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

from rabbit2docker.consumer.executors.local.state_directory import OUTPUT, PROCESS, RUNNING, write_atomically

_PIPE_FD: Final = 3
_REAP_MILLISECONDS: Final = 5000
_RESET: Final = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Process:
    """Identity of a process. The kernel reuses numbers, but not a number together with a start time."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process, as in /proc/<pid>/stat."""
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Observed:
    """The observed state of a record's builder."""

    started: bool
    """True once a builder was started, or its start was prevented."""
    process: Process | None = None
    pipe: int | None = None
    """Reading end of the pipe while the builder lives; readable once it has ended. The caller closes it."""


def start(path: Path, command: Sequence[str], environment: Mapping[str, str]) -> Observed:
    """Start the builder of the record in `path` unless one was started already, and observe it.

    Raises OSError if no process can be created; the call can then be repeated.
    """
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        # The pipe comes first, so that a builder that counts as started also counts as alive.
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
        # builder.err is created before the program turns out to be missing or not executable.
        (path / OUTPUT).unlink(missing_ok=True)
        raise
    if (ticks := _start_ticks(pid)) is not None:
        _write_process(path, Process(pid, ticks, datetime.now(UTC)))
    return observe(path)


def prevent_start(path: Path) -> bool:
    """Make any later start of a builder fail; False if one was started already."""
    try:
        os.close(os.open(path / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def observe(path: Path) -> Observed:
    """Return whether the builder of the record was started, and its process and pipe while it lives."""
    pipe = _open_pipe(path)
    if pipe is None:
        # Checked after the pipe: a builder that starts in between is seen as started.
        return Observed((path / OUTPUT).exists(), _read_process(path))
    try:
        process = _read_process(path) or _find_process(path)
    except BaseException:
        os.close(pipe)
        raise
    return Observed(True, process, pipe)


def has_ended(pipe: int) -> bool:
    """Return whether the builder has closed the pipe."""
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return False
    return True


def send_signal(path: Path, process: Process | None, number: signal.Signals) -> bool:
    """Send a signal to the builder, never to a process that got its number; False if the builder is gone."""
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
    """Collect the builder after its end if it is a child of this service, to leave no zombie."""
    if _start_ticks(process.pid) != process.start_ticks:
        return
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # The kernel closes the pipe a moment before the process can be collected.
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
    # If the disk is full, the process is found by its pipe instead.
    with suppress(OSError):
        write_atomically(path / PROCESS, json.dumps(data), durable=False)


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
    # The name of the program is in parentheses, and may itself contain blanks and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


def _find_process(path: Path) -> Process | None:
    """Find the builder by the pipe it holds, for when the service died before it wrote process.json."""
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
    # Between fork and exec, a child of the builder holds the pipe, too.
    return min(found, key=lambda process: process.start_ticks, default=None)


def _time_of(ticks: int) -> datetime:
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return datetime.fromtimestamp(time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK"), UTC)
