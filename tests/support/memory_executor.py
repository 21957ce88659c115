"""An executor in memory. The world holds what outlives a service; tests control the builders through it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    BuilderLine,
    BuilderResult,
    Change,
    Lines,
    Members,
    MissingLines,
)
from rabbit2docker.consumer.executors.change_feed import ChangeFeed
from rabbit2docker.errors import NameTaken, RecordMissing, TransientError
from rabbit2docker_schemas.events import Phase

BATCH_LINES = 1000


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Record:
    spec: AttemptSpec
    status: AttemptStatus
    state: AttemptState = AttemptState.PENDING
    waiting_for: str | None = None
    lines: list[BuilderLine] = field(default_factory=list)
    result: BuilderResult | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    starts: int = 0
    """Number of builders started for the record."""

    def snapshot(self) -> Attempt:
        return Attempt(
            spec=self.spec,
            status=self.status,
            state=self.state,
            result=self.result,
            waiting_for=self.waiting_for,
            node="memory",
            started_at=self.started_at,
            ended_at=self.ended_at,
        )


class MemoryWorld:
    """The records, and their builders, which run independently of any service."""

    def __init__(self, *, starts_at_once: bool = True, obeys_cancel: bool = True) -> None:
        """Builders start with their record unless `starts_at_once` is false; they ignore a cancel unless `obeys_cancel`."""
        self.records: dict[AttemptName, Record] = {}
        self.starts_at_once = starts_at_once
        self.obeys_cancel = obeys_cancel
        self.failure: TransientError | None = None
        """Raised by every call to an executor while it is set."""
        self.engine_problem: str | None = None
        """Why builds would find no engine."""
        self.taken: set[str] = set()
        """Names of objects that are no records."""
        self.cancels: list[AttemptName] = []
        self.feeds: list[ChangeFeed] = []
        """One per executor ever created for this world."""
        self._log_events: set[asyncio.Event] = set()

    def start(self, name: str) -> None:
        record = self.records[AttemptName(name)]
        record.starts += 1
        record.state, record.started_at, record.waiting_for = AttemptState.RUNNING, now(), None
        self.publish(record)

    def wait_for(self, name: str, reason: str) -> None:
        """Set the reason why an attempt is still pending."""
        record = self.records[AttemptName(name)]
        record.waiting_for = reason
        self.publish(record)

    def write(
        self,
        name: str,
        *texts: str,
        phase: Phase = Phase.BUILDING,
        progress: dict[str, int] | None = None,
    ) -> None:
        lines = self.records[AttemptName(name)].lines
        for text in texts:
            number = lines[-1].n + 1 if lines else 0
            lines.append(BuilderLine(number, now(), phase, text, progress))
        self.wake()

    def lose_lines(self, name: str, first: int, last: int) -> None:
        record = self.records[AttemptName(name)]
        record.lines = [line for line in record.lines if not first <= line.n <= last]

    def end(self, name: str, reason: str = "ok", **more: Any) -> None:
        """End the builder with a result."""
        record = self.records[AttemptName(name)]
        count = record.lines[-1].n + 1 if record.lines else 0
        result = {"exit_code": 0 if reason == "ok" else 1, "lines": count, "image": record.spec.image}
        self._finish(record, BuilderResult.model_validate({"reason": reason, **result, **more}))

    def kill(self, name: str) -> None:
        """End the builder without a result."""
        self._finish(self.records[AttemptName(name)], None)

    def _finish(self, record: Record, result: BuilderResult | None) -> None:
        record.state, record.result, record.ended_at = AttemptState.ENDED, result, now()
        record.waiting_for = None
        self.publish(record)
        self.wake()

    def remove(self, name: str) -> None:
        """Remove a record from outside."""
        if self.records.pop(AttemptName(name), None) is not None:
            for feed in self.feeds:
                feed.publish_removed(AttemptName(name))
            self.wake()

    def snapshots(self) -> list[Attempt]:
        return [record.snapshot() for record in self.records.values()]

    def publish(self, record: Record) -> None:
        for feed in self.feeds:
            feed.publish(record.snapshot())

    def wake(self) -> None:
        for event in self._log_events:
            event.set()

    @contextmanager
    def log_events(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._log_events.add(event)
        try:
            yield event
        finally:
            self._log_events.discard(event)


class MemoryExecutor:
    """Implements `Executor` on a world that may outlive it."""

    checkpoint_seconds = 2.0
    engine_check_seconds = 60.0

    def __init__(self, world: MemoryWorld | None = None) -> None:
        """Store the world, or create one."""
        self.world = world or MemoryWorld()
        self._feed = ChangeFeed(self.world.snapshots, ready=self._respond)
        self.world.feeds.append(self._feed)

    async def __aenter__(self) -> Self:
        for record in list(self.world.records.values()):
            self._start(record)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        await self._respond()
        if spec.name in self.world.taken:
            raise NameTaken(f"{spec.name} is something else.")
        record, is_new = self.world.records.get(spec.name), False
        if record is None:
            record, is_new = Record(spec, status), True
            self.world.records[spec.name] = record
            self.world.publish(record)
            self._start(record)
        return record.snapshot(), is_new

    def _start(self, record: Record) -> None:
        if self.world.starts_at_once and record.state is AttemptState.PENDING:
            self.world.start(record.spec.name)

    async def get(self, name: AttemptName) -> Attempt | None:
        await self._respond()
        record = self.world.records.get(name)
        return record.snapshot() if record else None

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        await self._respond()
        record = self._existing(name)
        status = change(record.status)
        if status != record.status:
            record.status = status
            self.world.publish(record)
        return record.snapshot()

    def changes(self) -> AsyncIterator[Change]:
        return self._feed.read()

    async def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        await self._respond()
        record, wanted = self._existing(name), after + 1
        with self.world.log_events() as has_grown:
            while True:
                has_grown.clear()
                is_over = record.state is AttemptState.ENDED
                found = [line for line in record.lines if line.n >= wanted][:BATCH_LINES]
                for lines in _with_gaps(found, wanted):
                    yield lines
                wanted = found[-1].n + 1 if found else wanted
                if self.world.records.get(name) is not record:
                    raise RecordMissing(f"The record {name} is gone.")
                if found:
                    continue
                if is_over:
                    break
                await has_grown.wait()
        if record.result and record.result.lines is not None and record.result.lines > wanted:
            yield MissingLines(wanted, record.result.lines - 1)

    async def cancel(self, name: AttemptName) -> None:
        await self._respond()
        record = self.world.records.get(name)
        if record is None or record.state is AttemptState.ENDED:
            return
        self.world.cancels.append(name)
        if record.state is AttemptState.PENDING:
            self.world.kill(name)
        elif self.world.obeys_cancel:
            self.world.end(name, "cancelled", exit_code=143)

    async def delete(self, name: AttemptName) -> None:
        await self._respond()
        record = self.world.records.get(name)
        if record is not None and record.state is AttemptState.ENDED:
            self.world.remove(name)

    async def members(self) -> AsyncIterator[Members]:
        yield Members("memory", frozenset(["memory"]))
        await asyncio.Event().wait()

    async def state_id(self) -> str:
        return "memory"

    def problems(self) -> Mapping[str, str | None]:
        return {}

    async def engine_problem(self) -> str | None:
        return self.world.engine_problem

    async def sweep(self) -> None:
        pass

    async def _respond(self) -> None:
        """Yield to other tasks, as every real executor does, and raise `world.failure` if it is set."""
        await asyncio.sleep(0)
        if self.world.failure is not None:
            raise self.world.failure

    def _existing(self, name: AttemptName) -> Record:
        if (record := self.world.records.get(name)) is None:
            raise RecordMissing(f"There is no record {name}.")
        return record


def _with_gaps(lines: list[BuilderLine], wanted: int) -> Iterator[Lines]:
    batch: list[BuilderLine] = []
    for line in lines:
        if line.n > wanted:
            if batch:
                yield batch
            yield MissingLines(wanted, line.n - 1)
            batch = []
        batch.append(line)
        wanted = line.n + 1
    if batch:
        yield batch
