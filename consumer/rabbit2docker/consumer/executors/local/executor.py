"""The local executor: records in a state directory, builders as processes that outlive the service.

A service manager that ends whole process groups would end the builders too; for systemd, set `KillMode=process`.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import structlog

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    Change,
    Lines,
    Members,
)
from rabbit2docker.consumer.executors.builder_io import builder_spec
from rabbit2docker.consumer.executors.fetch_access import FetchAccess, fetch_files
from rabbit2docker.consumer.executors.lease_directory import create_lease_directory
from rabbit2docker.consumer.executors.local import confinement, state_directory
from rabbit2docker.consumer.executors.local.engine_check import check_engine
from rabbit2docker.consumer.executors.local.inotify import DirectoryWatch
from rabbit2docker.consumer.executors.local.log_reader import LogReader
from rabbit2docker.consumer.executors.local.records import Record, Records, record_gone
from rabbit2docker.consumer.executors.local.supervisor import BuilderSupervisor
from rabbit2docker.consumer.executors.local.threads import StateThreads
from rabbit2docker.consumer.executors.record_format import newer_text, waits_for_newer
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable
from rabbit2docker.settings import ENV_PREFIX, Settings
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()

KILL_AFTER_SECONDS: Final = 20.0
"""Pause between SIGTERM and SIGKILL. A builder needs about eight seconds to end its children."""


class LocalExecutor:
    """Implements `Executor` on a state directory that belongs to one service at a time."""

    checkpoint_seconds = 2.0
    engine_check_seconds = 60.0

    def __init__(
        self,
        settings: Settings,
        *,
        builder_command: Sequence[str] | None = None,
        kill_after: float = KILL_AFTER_SECONDS,
        credentials: GitCredentials | None = None,
    ) -> None:
        """Store the settings.

        `builder_command` replaces the builder, and receives its arguments. `kill_after` is the number of seconds
        between SIGTERM and SIGKILL.
        """
        self._settings = settings
        self._credentials = GitCredentials(settings.tenants) if credentials is None else credentials
        self._own_builder = builder_command is None
        self._node = socket.gethostname()
        self._state = state_directory.StateDirectory(settings.local.state_dir)
        self._threads = StateThreads(self._state)
        self._tasks = TaskSet()
        self._records = Records(self._node)
        self._creating: dict[AttemptName, asyncio.Task[tuple[Attempt, bool]]] = {}
        self._builders = BuilderSupervisor(
            self._records,
            self._threads,
            self._tasks,
            command=builder_command or BUILDER_COMMAND,
            kill_after=kill_after,
        )
        self._watch = DirectoryWatch(on_folder=self._on_folder, on_events_lost=self._check_folders)
        self._repo2docker_version: str | None = None
        self._confinement: confinement.Confinement | None = None

    # -- opening and closing

    async def __aenter__(self) -> Self:
        """Lock the state directory, adopt its records, and start the builders that a crash left out.

        Raises ConfigurationError if another service uses the directory, if it is not writable, or if the `docker`
        command or repo2docker is missing.
        """
        try:
            stored = await self._threads.run(self._open)
            self._watch.open(self._state.attempts)
            self._tasks.run_in_background(self._watch.run(), "inotify")
            for found in stored:
                await self._adopt(found)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish pending writes and release everything. Builders continue to run."""
        await self._close()

    def _open(self) -> list[state_directory.StoredRecord]:
        if self._own_builder:
            self._check_requirements()
            self._confinement = confinement.prepare(self._settings)
        self._builders.environment = self._builder_environment()
        self._builders.docker_configs = {
            name: os.path.abspath(tenant.docker_config)
            for name, tenant in self._settings.tenants.items()
            if tenant.docker_config
        }
        found = self._state.open()
        create_lease_directory(self._settings.engine_leases)
        return found

    def _check_requirements(self) -> None:
        if importlib.util.find_spec("repo2docker") is None:
            raise ConfigurationError(
                "The local executor needs repo2docker, which is not installed beside the service. Run "
                "pip install 'rabbit2docker[local]'."
            )
        if shutil.which("docker") is None:
            raise ConfigurationError(
                "The local executor needs the `docker` command, which is not on PATH. Install Docker's client."
            )
        self._repo2docker_version = importlib.metadata.version("jupyter-repo2docker")

    def _builder_environment(self) -> dict[str, str]:
        """Return the service's environment without its settings, which hold credentials."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        if self._settings.docker.config is not None:
            environment["DOCKER_CONFIG"] = os.path.abspath(self._settings.docker.config)
        return environment

    async def _adopt(self, found: state_directory.StoredRecord) -> Record:
        """Add a record that an earlier service left, with its builder; continue what that service had begun."""
        record = self._add(found.spec, found.status)
        is_started = await self._builders.adopt(record)
        if record.status.cancelled_by is not None:
            await self.cancel(record.name)
        elif not is_started:
            await self._builders.start(record)
        return record

    async def _close(self) -> None:
        await self._tasks.close()
        self._watch.close()
        for record in self._records:
            self._builders.detach(record)
        self._records.clear()
        await self._threads.close()
        await asyncio.to_thread(self._state.close)

    # -- attempts

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Create the record and start the builder, or return the existing record of that name.

        If the builder cannot be started, the attempt stays pending and the start is repeated until it succeeds.
        Raises ExecutorUnavailable if the record cannot be written.
        """
        if (record := self._records.get(spec.name)) is not None:
            return record.snapshot(), False
        if (running := self._creating.get(spec.name)) is not None:
            return (await asyncio.shield(running))[0], False
        task = self._tasks.run(self._create(spec, status), f"create {spec.name}")
        self._creating[spec.name] = task
        task.add_done_callback(lambda _: self._creating.pop(spec.name, None))
        return await asyncio.shield(task)

    async def _create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        directory = self._state.path(spec.name) / state_directory.WORK / state_directory.GIT
        access = await fetch_files(self._credentials, spec, directory)
        is_new = await self._threads.call(
            "create a record",
            self._state.create,
            spec,
            status,
            self._builder_spec(spec, access),
            access.files if access else None,
        )
        if not is_new:
            return await self._existing(spec.name), False
        self._watch.renew()
        record = self._add(spec, status)
        await self._builders.start(record)
        return record.snapshot(), True

    async def _existing(self, name: AttemptName) -> Attempt:
        """Adopt a folder that appeared since the directory was opened, or that was damaged then."""
        found = await self._threads.call("read a record", self._state.load, name)
        if found is None and (version := self._state.newer.get(name)):
            raise ExecutorUnavailable(waits_for_newer(name, version))
        if found is None:
            raise state_directory.unavailable(
                OSError(f"{name} is damaged"), "create a record", self._state.root
            )
        return (await self._adopt(found)).snapshot()

    def _builder_spec(self, spec: AttemptSpec, access: FetchAccess | None) -> dict[str, Any]:
        return {
            **({"git": access.instructions} if access else {}),
            **builder_spec(spec, self._settings),
            "docker_host": self._settings.docker.host,
            "repo2docker_version": self._repo2docker_version,
            "python": sys.executable,
            "workdir": str(self._state.path(spec.name) / state_directory.WORK),
            "confine": self._confinement,
        }

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None."""
        record = self._records.get(name)
        return record.snapshot() if record else None

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status atomically; it is on disk on return. Raises RecordMissing, ExecutorUnavailable."""
        # A write must not be cut short: the next change starts from what is on disk.
        return await asyncio.shield(
            self._tasks.run(self._update_status(name, change), f"update the status of {name}")
        )

    async def _update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        record = self._records.require(name)
        async with record.writing:
            if record.removed:
                raise record_gone(name)
            status = change(record.status)
            if status != record.status:
                await self._threads.call(
                    "write the status of a record", self._state.write_status, name, status, record=record
                )
                record.status = status
                self._records.publish(record)
            return record.snapshot()

    def changes(self) -> AsyncIterator[Change]:
        """Yield every record, then Synced, then each change. A second reader ends the first."""
        return self._records.feed.read()

    async def cancel(self, name: AttemptName) -> None:
        """Stop the builder with SIGTERM, then SIGKILL after the grace period. Raises ExecutorUnavailable."""
        record = self._records.get(name)
        if record is not None and not record.over.is_set():
            await self._builders.stop(record)

    async def delete(self, name: AttemptName) -> None:
        """Remove the folder of an attempt that has ended. Raises ExecutorUnavailable."""
        record = self._records.get(name)
        if record is None:
            return
        if record.state is not AttemptState.ENDED:
            log.warning("record not deleted", name=name, reason="still running")
            return
        await asyncio.shield(self._tasks.run(self._delete_record(record), f"delete {name}"))

    async def _delete_record(self, record: Record) -> None:
        async with record.writing:
            if not record.removed:
                await self._threads.call("remove a record", self._state.remove, record.name)
                self._remove(record)

    async def sweep(self) -> None:
        """Do nothing: opening the state directory removes what crashes left in it."""

    # -- logs

    async def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Yield the lines numbered above `after` as they are written. Raises RecordMissing, ExecutorUnavailable."""
        record = self._records.require(name)
        reader = LogReader(record.path / state_directory.LINES, after=after)
        with record.log_events() as has_grown:
            while True:
                # The order matters: a line written after the read sets the event, and no line follows the end.
                has_grown.clear()
                is_over = record.over.is_set()
                found = await self._read_log(record, reader)
                for lines in found:
                    yield lines
                if record.removed:
                    raise record_gone(name)
                if found:
                    continue
                if is_over:
                    break
                await has_grown.wait()
        if missing := reader.missing_at_end(record.result.lines if record.result else None):
            yield missing

    async def _read_log(self, record: Record, reader: LogReader) -> list[Lines]:
        """Return lines that are there, having arranged for the event of those that follow."""
        with record.missing_if_gone():
            self._watch.notify_once(record.path / state_directory.LINES, record.wake_readers)
        return await self._threads.call("read a log", reader.read, record=record)

    async def engine_problem(self) -> str | None:
        """Have the builder ask the engine, as it would before a build."""
        if not self._own_builder:
            return None
        return await check_engine(self._settings.docker.host, self._builders.environment)

    # -- replicas and readiness

    async def members(self) -> AsyncIterator[Members]:
        """Yield this replica alone: the lock on the state directory excludes others."""
        yield Members(self._node, frozenset([self._node]))
        await asyncio.Event().wait()

    async def state_id(self) -> str:
        """Return the name that the state directory was given when it was created."""
        return self._state.id

    def problems(self) -> Mapping[str, str | None]:
        """Return whether all records are readable; anything else that fails here fails in the call that needs it."""
        return {"records": newer_text(self._state.newer)}

    # -- records

    def _add(self, spec: AttemptSpec, status: AttemptStatus) -> Record:
        return self._records.add(spec, status, self._state.path(spec.name))

    def _remove(self, record: Record) -> None:
        self._builders.detach(record)
        self._records.remove(record)

    def _on_folder(self, name: str) -> None:
        if (record := self._records.get(AttemptName(name))) is not None:
            self._tasks.run(self._check_folder(record), f"check {name}")

    def _check_folders(self) -> None:
        for record in self._records:
            self._tasks.run(self._check_folder(record), f"check {record.name}")

    async def _check_folder(self, record: Record) -> None:
        """Drop a record whose folder was removed from outside, and stop its builder."""
        async with record.writing:
            if record.removed or await self._threads.run(record.path.exists):
                return
            log.warning("record removed from outside", name=record.name)
            await self._builders.abandon(record)
            self._remove(record)
