"""The records of the local executor in memory. Files are written first; what is here follows."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    BuilderResult,
)
from rabbit2docker.consumer.executors.change_feed import ChangeFeed
from rabbit2docker.consumer.executors.local.process import Process
from rabbit2docker.errors import RecordMissing
from rabbit2docker.retry import Backoff

STARTING: Final = "The builder is being started."
START_PAUSES: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds before starting a builder is tried again, after the machine refused to create its process."""


@dataclass(slots=True, eq=False)
class Record:
    """One attempt, its builder's process, and the readers of its log."""

    spec: AttemptSpec
    status: AttemptStatus
    path: Path
    node: str
    state: AttemptState = AttemptState.PENDING
    result: BuilderResult | None = None
    waiting_for: str | None = STARTING
    process: Process | None = None
    pipe: int | None = None
    """Reading end of the builder's pipe while the builder lives."""
    ended_at: datetime | None = None
    removed: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the status is written, or the folder removed."""
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the builder is started, or its start prevented."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the builder has ended or the record is removed."""
    kill_scheduled: bool = False
    start_backoff: Backoff = field(default_factory=lambda: Backoff(START_PAUSES))
    _readers: set[asyncio.Event] = field(default_factory=set)

    @property
    def name(self) -> AttemptName:
        """The name of the record."""
        return self.spec.name

    def snapshot(self) -> Attempt:
        """Return the attempt as it is now."""
        return Attempt(
            spec=self.spec,
            status=self.status,
            state=self.state,
            result=self.result,
            waiting_for=self.waiting_for,
            node=self.node,
            started_at=self.process.started_at if self.process else None,
            ended_at=self.ended_at,
        )

    @contextmanager
    def log_events(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever there may be more to read from the log."""
        event = asyncio.Event()
        self._readers.add(event)
        try:
            yield event
        finally:
            self._readers.discard(event)

    def wake_readers(self) -> None:
        """Set the events of all readers."""
        for event in self._readers:
            event.set()

    def finish(self) -> None:
        """Release all that wait for the end of the attempt."""
        self.over.set()
        self.wake_readers()

    @contextmanager
    def missing_if_gone(self) -> Iterator[None]:
        """Turn FileNotFoundError into RecordMissing: the folder was removed from outside."""
        try:
            yield
        except FileNotFoundError as error:
            raise record_gone(self.name) from error


def record_gone(name: AttemptName) -> RecordMissing:
    """Return the error for a record that was removed while it was in use."""
    return RecordMissing(f"The record {name} is gone.")


class Records:
    """All records by name, and the feed of their changes."""

    def __init__(self, node: str) -> None:
        """Start empty. `node` is the name of this machine."""
        self._node = node
        self._by_name: dict[AttemptName, Record] = {}
        self.feed = ChangeFeed(self._snapshots)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over a copy."""
        return iter(list(self._by_name.values()))

    def get(self, name: AttemptName) -> Record | None:
        """Return the record, or None."""
        return self._by_name.get(name)

    def require(self, name: AttemptName) -> Record:
        """Return the record. Raises RecordMissing."""
        if (record := self._by_name.get(name)) is None:
            raise RecordMissing(f"There is no record {name}.")
        return record

    def add(self, spec: AttemptSpec, status: AttemptStatus, path: Path) -> Record:
        """Add and publish a record whose folder exists."""
        record = Record(spec, status, path, self._node)
        self._by_name[spec.name] = record
        self.publish(record)
        return record

    def publish(self, record: Record) -> None:
        """Publish the record's snapshot to the change feed."""
        if not record.removed:
            self.feed.publish(record.snapshot())

    def remove(self, record: Record) -> None:
        """Remove and publish a record whose folder is gone."""
        record.removed = True
        if self._by_name.get(record.name) is record:
            del self._by_name[record.name]
        record.finish()
        self.feed.publish_removed(record.name)

    def clear(self) -> None:
        """Drop all records from memory, and end the reader of the changes."""
        self._by_name.clear()
        self.feed.close()

    def _snapshots(self) -> Iterator[Attempt]:
        return (record.snapshot() for record in self._by_name.values())
