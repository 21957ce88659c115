"""The change feed of an executor: a snapshot of every record, then `Synced`, then each change as it happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from rabbit2docker.consumer.executors.base import Attempt, AttemptName, Change, Changed, Removed, Synced


class ChangeFeed:
    """Delivers the changes of an executor's records to the one reader there may be."""

    def __init__(
        self,
        snapshots: Callable[[], Iterable[Attempt]],
        *,
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Store the source of the snapshots; `ready` returns once they are complete."""
        self._snapshots = snapshots
        self._ready = ready
        self._queue: asyncio.Queue[Change | None] | None = None
        self._delivered: dict[AttemptName, Attempt] = {}

    def publish(self, attempt: Attempt) -> None:
        """Deliver a snapshot, unless it equals the last one of the same record. Does nothing without a reader."""
        if self._queue is None or self._delivered.get(attempt.name) == attempt:
            return
        self._delivered[attempt.name] = attempt
        self._queue.put_nowait(Changed(attempt))

    def publish_removed(self, name: AttemptName) -> None:
        """Deliver that a record is gone. Does nothing without a reader."""
        if self._queue is not None:
            self._delivered.pop(name, None)
            self._queue.put_nowait(Removed(name))

    async def read(self) -> AsyncIterator[Change]:
        """Yield every record, then Synced, then each change, until `close`. A second reader ends the first."""
        if self._ready is not None:
            await self._ready()
        self.close()
        queue = self._queue = asyncio.Queue()
        for attempt in self._snapshots():
            self.publish(attempt)
        queue.put_nowait(Synced())
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            if self._queue is queue:
                self._detach()

    def close(self) -> None:
        """End the reader once it has read what was delivered before."""
        if self._queue is not None:
            self._queue.put_nowait(None)
            self._detach()

    def _detach(self) -> None:
        self._queue = None
        self._delivered.clear()
