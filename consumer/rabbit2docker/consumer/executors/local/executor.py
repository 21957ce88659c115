"""The local executor: records in a state directory, builders as processes that outlive the service.

Under a service manager that ends whole process groups, builders outlive only with systemd's `KillMode=process` or
what corresponds to it.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    BuilderResult,
    Change,
    Lines,
    Members,
)
from rabbit2docker.consumer.executors.builder_io import builder_spec
from rabbit2docker.consumer.executors.change_feed import ChangeFeed
from rabbit2docker.consumer.executors.local import process as builder_process
from rabbit2docker.consumer.executors.local import state_directory
from rabbit2docker.consumer.executors.local.inotify import DirectoryWatch
from rabbit2docker.consumer.executors.local.log_reader import LogReader
from rabbit2docker.errors import ConfigurationError, RecordMissing
from rabbit2docker.settings import ENV_PREFIX, Settings
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()
T = TypeVar("T")

KILL_AFTER_SECONDS: Final = 20.0
"""The builder ends its children within about eight seconds of SIGTERM; then it gets SIGKILL."""
START_AGAIN_SECONDS: Final = (1.0, 5.0, 15.0, 60.0)
"""Pauses before a process that could not be made is tried again."""
THREADS: Final = 8
STARTING: Final = "The builder is being started."


@dataclass(slots=True, eq=False)
class _Record:
    """What is known of one attempt; the files are written first, this follows."""

    spec: AttemptSpec
    status: AttemptStatus
    path: Path
    state: AttemptState = AttemptState.PENDING
    result: BuilderResult | None = None
    waiting_for: str | None = STARTING
    process: builder_process.Process | None = None
    pipe: int | None = None
    ended_at: datetime | None = None
    removed: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    readers: set[asyncio.Event] = field(default_factory=set)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """The builder has ended, or the record is removed."""
    is_ending: bool = False
    failed_starts: int = 0

    def wake_readers(self) -> None:
        for reader in self.readers:
            reader.set()


class LocalExecutor:
    """Implements `Executor` on a state directory that belongs to one service at a time."""

    checkpoint_seconds = 2.0

    def __init__(
        self,
        settings: Settings,
        *,
        builder_command: Sequence[str] | None = None,
        kill_after: float = KILL_AFTER_SECONDS,
    ) -> None:
        """Take the settings.

        `builder_command` takes the place of the builder and is given its arguments; `kill_after`: seconds between
        SIGTERM and SIGKILL for a builder.
        """
        self._settings = settings
        self._own_builder = builder_command is None
        # The builder needs the standard library alone: nothing that is installed can get in its way.
        self._command = [*(builder_command or (sys.executable, "-I", "-S", str(BUILDER_PATH)))]
        self._kill_after = kill_after
        self._state = state_directory.StateDirectory(settings.local.state_dir)
        self._records: dict[AttemptName, _Record] = {}
        self._creating: dict[AttemptName, asyncio.Task[tuple[Attempt, bool]]] = {}
        self._feed = ChangeFeed(lambda: map(self._snapshot, self._records.values()))
        self._tasks = TaskSet()
        self._watching = DirectoryWatch(on_folder=self._on_folder, on_everything=self._check_folders)
        self._environment: dict[str, str] = {}
        self._place = socket.gethostname()
        self._version: str | None = None

    # -- opening and closing

    async def __aenter__(self) -> Self:
        """Lock the state directory, adopt what is in it, start builders that a crash left out.

        Raises ConfigurationError: another service has the directory, it cannot be written, Docker's command line or
        repo2docker is missing.
        """
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="state")
        try:
            loaded = await self._in_thread(self._open)
            self._watching.open(self._state.attempts)
            self._tasks.run_in_background(self._watching.run(), "inotify")
            for found in loaded:
                await self._adopt(found)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written, let go of everything; builders run on."""
        await self._close()

    def _open(self) -> list[state_directory.Loaded]:
        if self._own_builder:
            self._check_tools()
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        if self._settings.docker.config is not None:
            self._environment["DOCKER_CONFIG"] = os.path.abspath(self._settings.docker.config)
        return self._state.open()

    def _check_tools(self) -> None:
        if importlib.util.find_spec("repo2docker") is None:
            raise ConfigurationError(
                "The local executor needs repo2docker beside the service: pip install 'rabbit2docker[local]'."
            )
        if shutil.which("docker") is None:
            raise ConfigurationError(
                "The local executor needs the `docker` command on PATH. Install Docker's client."
            )
        self._version = importlib.metadata.version("jupyter-repo2docker")

    async def _adopt(self, found: state_directory.Loaded) -> None:
        record = self._remember(found.spec, found.status)
        observed = await self._guarded("look for a builder", builder_process.observe, record.path)
        if observed.started:
            await self._take_in(record, observed)
        elif record.status.cancelled_by is None:
            await self._start(record)
        if record.status.cancelled_by is not None:
            await self.cancel(record.spec.name)

    async def _close(self) -> None:
        await self._tasks.close()
        self._watching.close()
        for record in self._records.values():
            self._close_pipe(record)
        self._records.clear()
        self._feed.close()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._state.close)

    # -- the protocol

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Make the record and start the builder, or return the record of that name.

        A builder that cannot be started leaves the attempt pending, and is tried again until it can. Raises
        ExecutorUnavailable when the record cannot be written.
        """
        if (record := self._records.get(spec.name)) is not None:
            return self._snapshot(record), False
        if (running := self._creating.get(spec.name)) is not None:
            return (await asyncio.shield(running))[0], False
        task = self._tasks.run(self._create(spec, status), f"create {spec.name}")
        self._creating[spec.name] = task
        task.add_done_callback(lambda _: self._creating.pop(spec.name, None))
        return await asyncio.shield(task)

    async def _create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        is_new = await self._guarded("make a record", self._state.make, spec, status, self._told(spec))
        if not is_new:
            # A folder that appeared behind our back, or one that was damaged when we looked.
            found = await self._guarded("read a record", self._state.load, spec.name)
            if found is None:
                raise state_directory.unavailable(
                    OSError(f"{spec.name} is damaged"), "make a record", self._state.root
                )
            await self._adopt(found)
            return self._snapshot(self._records[spec.name]), False
        self._watching.find_again()
        record = self._remember(spec, status)
        await self._start(record)
        return self._snapshot(record), True

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None."""
        record = self._records.get(name)
        return self._snapshot(record) if record else None

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status as one step, on disk before it returns. Raises RecordMissing, ExecutorUnavailable."""
        # What is being written must not be cut short: the next change starts from what is on disk.
        return await asyncio.shield(
            self._tasks.run(self._update_status(name, change), f"update the status of {name}")
        )

    async def _update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        record = self._existing(name)
        async with record.writing:
            if record.removed:
                raise RecordMissing(f"The record {name} is gone.")
            status = change(record.status)
            if status != record.status:
                await self._guarded(
                    "write the status of a record", self._state.write_status, name, status, record=record
                )
                record.status = status
                self._publish(record)
            return self._snapshot(record)

    def changes(self) -> AsyncIterator[Change]:
        """Yield every record, then Synced, then each change. A second reader ends the first."""
        return self._feed.read()

    async def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Read the lines above number `after` as they are written. Raises RecordMissing, ExecutorUnavailable."""
        record = self._existing(name)
        path = record.path / state_directory.LINES
        reader = LogReader(path, after=after)
        grown = asyncio.Event()
        record.readers.add(grown)
        try:
            while True:
                # In this order: what is written after the reading raises the event, the end is later than all lines.
                grown.clear()
                is_over = record.over.is_set()
                with _missing_when_gone(record):
                    self._watching.arm(path, record.wake_readers)
                found = await self._guarded("read a log", reader.read, record=record)
                for lines in found:
                    yield lines
                if record.removed:
                    raise RecordMissing(f"The record {name} is gone.")
                if found:
                    continue
                if is_over:
                    break
                await grown.wait()
            if missing := reader.missing_at_end(record.result.lines if record.result else None):
                yield missing
        finally:
            record.readers.discard(grown)

    async def cancel(self, name: AttemptName) -> None:
        """End the builder: SIGTERM now, SIGKILL after the grace. An attempt without a builder ends without one."""
        record = self._records.get(name)
        if record is None or record.over.is_set():
            return
        async with record.starting:
            if record.state is AttemptState.PENDING and await self._guarded(
                "cancel an attempt", builder_process.claim, record.path
            ):
                await self._end(record)
        if record.state is AttemptState.RUNNING:
            await self._terminate(record)

    async def delete(self, name: AttemptName) -> None:
        """Remove the folder of an attempt that has ended. Raises ExecutorUnavailable."""
        record = self._records.get(name)
        if record is None:
            return
        if record.state is not AttemptState.ENDED:
            log.warning("record not deleted", name=name, reason="still running")
            return
        await asyncio.shield(self._tasks.run(self._delete_record(record), f"delete {name}"))

    async def _delete_record(self, record: _Record) -> None:
        async with record.writing:
            if not record.removed:
                await self._guarded("remove a record", self._state.remove, record.spec.name)
                self._drop(record)

    async def members(self) -> AsyncIterator[Members]:
        """Tell that this is the only replica: the lock on the state directory says so."""
        yield Members(self._place, frozenset([self._place]))
        await asyncio.Event().wait()

    def problems(self) -> Mapping[str, str | None]:
        """Return nothing: what can go wrong here shows in what is called."""
        return {}

    async def sweep(self) -> None:
        """Do nothing: leftovers of crashes are removed when the state directory is opened."""

    # -- the builder

    def _told(self, spec: AttemptSpec) -> dict[str, Any]:
        """Return what the builder is told."""
        return {
            **builder_spec(spec, self._settings.builder),
            "docker_host": self._settings.docker.host,
            "repo2docker_version": self._version,
            "python": sys.executable,
            "workdir": str(self._state.path(spec.name) / state_directory.WORK),
        }

    async def _start(self, record: _Record) -> None:
        """Give a pending record its builder; where the machine refuses, say so and try again later."""
        async with record.starting:
            if record.state is not AttemptState.PENDING or record.removed:
                return
            command = [*self._command, "--spec", str(record.path / state_directory.TOLD)]
            command += [
                "--log",
                str(record.path / state_directory.LINES),
                "--result",
                str(record.path / state_directory.RESULT),
            ]
            try:
                observed = await self._in_thread(
                    builder_process.start, record.path, command, self._environment
                )
            except OSError as error:
                self._start_later(record, error)
            else:
                await self._take_in(record, observed)

    def _start_later(self, record: _Record, error: OSError) -> None:
        record.waiting_for = f"The builder cannot be started: {error.strerror or error}."
        log.warning("the builder cannot be started, trying again", name=record.spec.name, error=str(error))
        seconds = START_AGAIN_SECONDS[min(record.failed_starts, len(START_AGAIN_SECONDS) - 1)]
        record.failed_starts += 1
        self._publish(record)

        async def start_again() -> None:
            await asyncio.sleep(seconds)
            await self._start(record)

        self._tasks.run_in_background(start_again(), f"start {record.spec.name} again")

    async def _take_in(self, record: _Record, observed: builder_process.Observed) -> None:
        """Note a builder that was started, and wait for its end unless that has come already."""
        record.process, record.waiting_for = observed.process, None
        if observed.pipe is None:
            await self._end(record)
            return
        record.state, record.pipe = AttemptState.RUNNING, observed.pipe
        asyncio.get_running_loop().add_reader(observed.pipe, self._on_pipe, record)
        self._publish(record)

    def _on_pipe(self, record: _Record) -> None:
        if record.pipe is not None and builder_process.has_ended(record.pipe):
            self._close_pipe(record)
            self._tasks.run(self._end(record), f"end of {record.spec.name}")

    async def _end(self, record: _Record) -> None:
        """Note the end: the builder writes its result before it ends, so what is not there now will never be."""
        if record.process is not None:
            await self._in_thread(builder_process.reap, record.process)
        record.result, record.ended_at = await self._in_thread(state_directory.read_result, record.path)
        if record.over.is_set():
            return
        record.state, record.waiting_for = AttemptState.ENDED, None
        record.over.set()
        record.wake_readers()
        self._publish(record)

    async def _terminate(self, record: _Record) -> None:
        """Send SIGTERM, and SIGKILL when that has not ended the builder within the grace."""
        await self._guarded(
            "end a builder", builder_process.send, record.path, record.process, signal.SIGTERM
        )
        if not record.is_ending:
            record.is_ending = True
            self._tasks.run_in_background(self._kill_later(record), f"end {record.spec.name}")

    async def _kill_later(self, record: _Record) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._kill_after):
                await record.over.wait()
        if not record.over.is_set():
            log.warning("a builder does not end and is killed", name=record.spec.name)
            await self._in_thread(builder_process.send, record.path, record.process, signal.SIGKILL)

    # -- records

    def _remember(self, spec: AttemptSpec, status: AttemptStatus) -> _Record:
        record = _Record(spec, status, self._state.path(spec.name))
        self._records[spec.name] = record
        self._publish(record)
        return record

    def _existing(self, name: AttemptName) -> _Record:
        if (record := self._records.get(name)) is None:
            raise RecordMissing(f"There is no record {name}.")
        return record

    def _snapshot(self, record: _Record) -> Attempt:
        return Attempt(
            spec=record.spec,
            status=record.status,
            state=record.state,
            result=record.result,
            waiting_for=record.waiting_for,
            node=self._place,
            started_at=record.process.started_at if record.process else None,
            ended_at=record.ended_at,
        )

    def _publish(self, record: _Record) -> None:
        if not record.removed:
            self._feed.publish(self._snapshot(record))

    def _drop(self, record: _Record) -> None:
        """Take back a record whose folder is gone."""
        record.removed = True
        if self._records.get(record.spec.name) is record:
            del self._records[record.spec.name]
        self._close_pipe(record)
        record.over.set()
        record.wake_readers()
        self._feed.publish_removed(record.spec.name)

    def _on_folder(self, name: str) -> None:
        if (record := self._records.get(AttemptName(name))) is not None:
            self._tasks.run(self._check_folder(record), f"check {name}")

    def _check_folders(self) -> None:
        for record in list(self._records.values()):
            self._tasks.run(self._check_folder(record), f"check {record.spec.name}")

    async def _check_folder(self, record: _Record) -> None:
        """Notice a record that was removed from outside; nobody would hear of its builder, so that is ended."""
        async with record.writing:
            if record.removed or await self._in_thread(record.path.exists):
                return
            log.warning("a record was removed from outside", name=record.spec.name)
            if record.process is not None and not record.over.is_set():
                await self._in_thread(builder_process.send, record.path, record.process, signal.SIGTERM)
            self._drop(record)

    def _close_pipe(self, record: _Record) -> None:
        if record.pipe is not None:
            asyncio.get_running_loop().remove_reader(record.pipe)
            os.close(record.pipe)
            record.pipe = None

    # -- threads and tasks

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))

    async def _guarded(
        self, what: str, function: Callable[..., T], *arguments: Any, record: _Record | None = None
    ) -> T:
        """Run in a thread; OSError becomes ExecutorUnavailable, or RecordMissing when files of `record` are gone."""
        try:
            with _missing_when_gone(record):
                return await self._in_thread(function, *arguments)
        except OSError as error:
            raise state_directory.unavailable(error, what, self._state.root) from error


@contextmanager
def _missing_when_gone(record: _Record | None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if record is None:
            raise
        raise RecordMissing(f"The record {record.spec.name} is gone.") from error
