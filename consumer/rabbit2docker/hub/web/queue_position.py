"""Positions of waiting requests in RabbitMQ's queue, from one periodic look at its length for all viewers.

Requests wait in RabbitMQ, first in, first out, and only the queue's length can be observed. Requests made after ours are
behind it; those of this program are known and subtracted, those of others are not. So a number can be too high, and it
is never raised once a viewer has seen it. One task polls, and only while a viewer waits.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch

log = structlog.get_logger()

ReadDepth = Callable[[], Awaitable[int]]
"""Returns the number of messages that wait in the queue."""
OpenDepthReader = Callable[[], AbstractAsyncContextManager[ReadDepth]]
"""Connects for reading the queue's length; entering and reading raise AccessRefused, BrokerUnavailable, TopologyMismatch."""

FIRST_POLL_SECONDS: Final = 2.0
"""A request that is answered within this time has not waited."""
POLL_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 15.0
"""Between attempts to reach RabbitMQ; no positions are known in the meantime."""
MAX_REQUESTS: Final = 20_000
"""Requests of this program that are remembered; more than the queue takes."""


@dataclass(slots=True)
class _Waiting:
    """A request without an answer."""

    requested_at: float
    """Seconds since 1970."""
    ahead: int | None = None
    viewers: int = 0
    changed: "asyncio.Future[None] | None" = None

    def set_ahead(self, ahead: int) -> None:
        """Set the number of requests ahead; it never grows, since that would mean only that others came later."""
        ahead = max(0, ahead if self.ahead is None else min(ahead, self.ahead))
        if ahead == self.ahead:
            return
        self.ahead = ahead
        if self.changed is not None:
            self.changed.set_result(None)
            self.changed = None


@dataclass(slots=True)
class QueueView:
    """One viewer's view of a waiting request."""

    request_id: str
    _positions: "QueuePositions"
    shown: int | None = None
    """The number that the viewer has received."""

    @property
    def ahead(self) -> int | None:
        """Return the number of builds ahead; None if it is unknown or the request waits no longer."""
        waiting = self._positions.find(self.request_id)
        return None if waiting is None else waiting.ahead

    def take(self) -> int | None:
        """Return the number if it is new to the viewer, else None."""
        ahead = self.ahead
        if ahead is None or ahead == self.shown:
            return None
        self.shown = ahead
        return ahead

    def changed(self) -> "asyncio.Future[None] | None":
        """Return a future that is done once `take` has a number; None if the request waits no longer."""
        waiting = self._positions.find(self.request_id)
        if waiting is None:
            return None
        if waiting.changed is None:
            waiting.changed = asyncio.get_running_loop().create_future()
        if waiting.ahead is not None and waiting.ahead != self.shown:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return waiting.changed

    def leave(self) -> None:
        """Note that the request has been answered and waits no longer."""
        self._positions.remove(self.request_id)


@dataclass(slots=True)
class QueuePositions:
    """The waiting requests of this program. Without `open_reader` no position is ever known."""

    open_reader: OpenDepthReader | None
    clock: Callable[[], float] = time.time
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _watched: set[str] = field(default_factory=set)
    """Waiting requests that have a viewer."""
    _task: "asyncio.Task[None] | None" = None

    def find(self, request_id: str) -> _Waiting | None:
        """Return a waiting request; None if it does not wait."""
        return self._waiting.get(request_id)

    def add(self, request_id: str, requested_at: float | None = None) -> None:
        """Add a request that is about to be published; all earlier requests are ahead of it."""
        self._waiting[request_id] = _Waiting(self.clock() if requested_at is None else requested_at)
        while len(self._waiting) > MAX_REQUESTS:
            oldest = min(self._waiting, key=lambda each: self._waiting[each].requested_at)
            self.remove(oldest)

    def remove(self, request_id: str) -> None:
        """Remove a request that waits no longer."""
        self._waiting.pop(request_id, None)
        self._watched.discard(request_id)

    @contextmanager
    def watch(self, request_id: str, requested_at: float | None = None) -> Iterator[QueueView]:
        """Give one viewer's view of a request of this program, or of one made elsewhere at `requested_at`."""
        if requested_at is not None and request_id not in self._waiting:
            self.add(request_id, requested_at)
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            waiting.viewers += 1
            self._watched.add(request_id)
            self._start_polling()
        try:
            yield QueueView(request_id, self)
        finally:
            if waiting is not None:
                waiting.viewers -= 1
                if not waiting.viewers and self._waiting.get(request_id) is waiting:
                    self._watched.discard(request_id)
            if self._task is not None and not self._watched:
                self._task.cancel()
                self._task = None

    def update(self, depth: int) -> None:
        """Derive all positions from the queue's length: the newest requests are still in it."""
        newest_first = sorted(self._waiting.items(), key=lambda item: item[1].requested_at, reverse=True)
        for behind, (request_id, waiting) in enumerate(newest_first):
            if behind >= depth and not waiting.viewers:
                # It has left the queue, and without a viewer its answer was not seen here.
                self.remove(request_id)
            else:
                waiting.set_ahead(depth - behind - 1)

    def _start_polling(self) -> None:
        if self.open_reader is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._poll(self.open_reader), name="queue position")

    async def _poll(self, open_reader: OpenDepthReader) -> None:
        """Read the queue's length for as long as a viewer waits."""
        await asyncio.sleep(FIRST_POLL_SECONDS)
        while self._watched:
            try:
                async with open_reader() as depth:
                    while self._watched:
                        metrics.HUB_QUEUE_DEPTH_CHECKS.inc()
                        self.update(await depth())
                        await asyncio.sleep(POLL_SECONDS)
            except AccessRefused as error:
                log.warning("queue positions disabled until restart", reason=str(error))
                self.open_reader = None
                return
            except (BrokerUnavailable, TopologyMismatch) as error:
                log.info("queue positions unavailable", reason=str(error), retry_seconds=RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
