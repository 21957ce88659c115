"""The supervisor of the builders: starts their processes, observes their ends, and stops them."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from rabbit2docker.consumer.executors.base import AttemptState
from rabbit2docker.consumer.executors.local import process, state_directory
from rabbit2docker.consumer.executors.local.records import Record, Records
from rabbit2docker.consumer.executors.local.threads import StateThreads
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()


class BuilderSupervisor:
    """Keeps at most one builder per record, and its record up to date."""

    def __init__(
        self,
        records: Records,
        threads: StateThreads,
        tasks: TaskSet,
        *,
        command: Sequence[str],
        kill_after: float,
    ) -> None:
        """Store the builder's command, and the seconds between SIGTERM and SIGKILL."""
        self._records = records
        self._threads = threads
        self._tasks = tasks
        self._command = command
        self._kill_after = kill_after
        self.environment: Mapping[str, str] = {}
        """Environment of the builders to start."""
        self.docker_configs: Mapping[str, str] = {}
        """Directories with registry accounts of tenants, by tenant."""

    async def adopt(self, record: Record) -> bool:
        """Attach to the builder that an earlier service started for the record; False if there was none."""
        observed = await self._threads.call("look for a builder", process.observe, record.path)
        if observed.started:
            await self._attach(record, observed)
        return observed.started

    async def start(self, record: Record) -> None:
        """Start the builder of a pending record. If the machine refuses, publish why and try again later."""
        async with record.starting:
            if record.state is not AttemptState.PENDING or record.removed:
                return
            try:
                observed = await self._threads.run(
                    process.start, record.path, self._arguments(record), self._environment_of(record)
                )
            except OSError as error:
                self._start_later(record, error)
            else:
                await self._attach(record, observed)

    def _environment_of(self, record: Record) -> Mapping[str, str]:
        trace, config = record.spec.trace, self.docker_configs.get(record.spec.tenant)
        return {
            **self.environment,
            **(trace.environment() if trace else {}),
            **({"DOCKER_CONFIG": config} if config else {}),
        }

    async def stop(self, record: Record) -> None:
        """Send SIGTERM now and SIGKILL after the grace period; end an attempt that has no builder yet."""
        async with record.starting:
            if record.state is AttemptState.PENDING and await self._threads.call(
                "cancel an attempt", process.prevent_start, record.path
            ):
                await self._end(record)
        if record.state is AttemptState.RUNNING:
            await self._terminate(record)

    async def abandon(self, record: Record) -> None:
        """Send SIGTERM to the builder of a record whose folder is gone: its result would reach no one."""
        if record.process is not None and not record.over.is_set():
            await self._threads.run(process.send_signal, record.path, record.process, signal.SIGTERM)

    def detach(self, record: Record) -> None:
        """Stop observing the builder, which continues to run."""
        if record.pipe is not None:
            asyncio.get_running_loop().remove_reader(record.pipe)
            os.close(record.pipe)
            record.pipe = None

    def _arguments(self, record: Record) -> list[str]:
        options = {
            "--spec": state_directory.BUILDER_SPEC,
            "--log": state_directory.LINES,
            "--result": state_directory.RESULT,
        }
        paths = [part for option, file in options.items() for part in (option, str(record.path / file))]
        return [*self._command, *paths]

    def _start_later(self, record: Record, error: OSError) -> None:
        record.waiting_for = f"The builder cannot be started: {error.strerror or error}."
        self._records.publish(record)
        seconds = record.start_backoff.next()
        log.warning(
            "builder start failed", name=record.name, error=str(error), delay_seconds=round(seconds, 1)
        )

        async def start_after_pause() -> None:
            await asyncio.sleep(seconds)
            await self.start(record)

        self._tasks.run_in_background(start_after_pause(), f"restart {record.name}")

    async def _attach(self, record: Record, observed: process.Observed) -> None:
        """Record a builder that was started, and wait for its end unless it has ended already."""
        record.process, record.waiting_for = observed.process, None
        if observed.pipe is None:
            await self._end(record)
            return
        record.state, record.pipe = AttemptState.RUNNING, observed.pipe
        asyncio.get_running_loop().add_reader(observed.pipe, self._on_pipe, record)
        self._records.publish(record)

    def _on_pipe(self, record: Record) -> None:
        if record.pipe is not None and process.has_ended(record.pipe):
            self.detach(record)
            self._tasks.run(self._end(record), f"end of {record.name}")

    async def _end(self, record: Record) -> None:
        """Read the result. The builder writes it before it exits: if there is none now, there will never be."""
        if record.process is not None:
            await self._threads.run(process.reap, record.process)
        await self._threads.run(state_directory.remove_credentials, record.path)
        record.result, record.ended_at = await self._threads.run(state_directory.read_result, record.path)
        if record.over.is_set():
            return
        record.state, record.waiting_for = AttemptState.ENDED, None
        record.finish()
        self._records.publish(record)

    async def _terminate(self, record: Record) -> None:
        await self._threads.call(
            "stop a builder", process.send_signal, record.path, record.process, signal.SIGTERM
        )
        if not record.kill_scheduled:
            record.kill_scheduled = True
            self._tasks.run_in_background(self._kill_later(record), f"kill {record.name}")

    async def _kill_later(self, record: Record) -> None:
        """Send SIGKILL unless the builder ends within the grace period."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._kill_after):
                await record.over.wait()
        if not record.over.is_set():
            log.warning("builder killed", name=record.name, reason="grace period exceeded")
            await self._threads.run(process.send_signal, record.path, record.process, signal.SIGKILL)
