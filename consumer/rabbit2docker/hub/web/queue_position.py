"""How many builds are before one that waits for a free slot: RabbitMQ is asked once for all who want to know.

Requests wait in RabbitMQ, first come, first served, and the queue's length is all that can be known of it. Whoever asked
after us stands behind us: of our own requests that is known, of those of others it is not, so the number may be too
high, and is never told higher than before. One task asks, and only for as long as anybody waits.
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

Depth = Callable[[], Awaitable[int]]
Looking = Callable[[], AbstractAsyncContextManager[Depth]]
"""Opens what is needed to ask for the queue's length; raises what asking raises."""

PATIENCE_SECONDS: Final = 2.0
"""A request that is answered within this time has not waited."""
LOOK_SECONDS: Final = 3.0
"""Between two questions for the queue's length."""
RETRY_SECONDS: Final = 15.0
"""RabbitMQ does not answer: nobody hears a number meanwhile."""
ASKED: Final = 20_000
"""Requests of our own that are remembered; more than the queue takes."""


@dataclass(slots=True)
class _Waiting:
    """A request that nobody has answered."""

    asked_at: float
    """Seconds since 1970."""
    ahead: int | None = None
    watched: int = 0
    changed: "asyncio.Future[None] | None" = None

    def put(self, ahead: int) -> None:
        """Note what is known now; a number that has grown says only that others came later."""
        ahead = max(0, ahead if self.ahead is None else min(ahead, self.ahead))
        if ahead == self.ahead:
            return
        self.ahead = ahead
        if self.changed is not None:
            self.changed.set_result(None)
            self.changed = None


@dataclass(slots=True)
class QueueView:
    """One viewer's view on a request that waits."""

    request_id: str
    _queueing: "QueuePositions"
    told: int | None = None
    """What the viewer knows."""

    @property
    def ahead(self) -> int | None:
        """Return how many builds are before this one; None when that is not known, or it waits no longer."""
        waiting = self._queueing.find(self.request_id)
        return None if waiting is None else waiting.ahead

    def take(self) -> int | None:
        """Return the number if the viewer does not know it yet, else None."""
        ahead = self.ahead
        if ahead is None or ahead == self.told:
            return None
        self.told = ahead
        return ahead

    def news(self) -> "asyncio.Future[None] | None":
        """Return what is done when there is something to take; None when there will be nothing more."""
        waiting = self._queueing.find(self.request_id)
        if waiting is None:
            return None
        if waiting.changed is None:
            waiting.changed = asyncio.get_running_loop().create_future()
        if waiting.ahead is not None and waiting.ahead != self.told:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return waiting.changed

    def answered(self) -> None:
        """Note that somebody has taken the request, so that it waits no longer."""
        self._queueing.answered(self.request_id)


@dataclass(slots=True)
class QueuePositions:
    """Knows the requests that wait. `looking` None: nothing is ever known of the queue."""

    looking: Looking | None
    clock: Callable[[], float] = time.time
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _watched: set[str] = field(default_factory=set)
    """Those of them that somebody watches."""
    _task: "asyncio.Task[None] | None" = None

    def find(self, request_id: str) -> _Waiting | None:
        """Return what is known of a request that waits."""
        return self._waiting.get(request_id)

    def asked(self, request_id: str, asked_at: float | None = None) -> None:
        """Note that a request is about to be made here: whatever was asked for before stands before it."""
        self._waiting[request_id] = _Waiting(self.clock() if asked_at is None else asked_at)
        while len(self._waiting) > ASKED:
            oldest = min(self._waiting, key=lambda each: self._waiting[each].asked_at)
            self.answered(oldest)

    def answered(self, request_id: str) -> None:
        """Note that a request waits no longer."""
        self._waiting.pop(request_id, None)
        self._watched.discard(request_id)

    @contextmanager
    def watching(self, request_id: str, asked_at: float | None = None) -> Iterator[QueueView]:
        """Give one viewer's view of a request that was made here, or elsewhere at `asked_at` and may wait still."""
        if asked_at is not None and request_id not in self._waiting:
            self.asked(request_id, asked_at)
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            waiting.watched += 1
            self._watched.add(request_id)
            self._look()
        try:
            yield QueueView(request_id, self)
        finally:
            if waiting is not None:
                waiting.watched -= 1
                if not waiting.watched and self._waiting.get(request_id) is waiting:
                    self._watched.discard(request_id)
            if self._task is not None and not self._watched:
                self._task.cancel()
                self._task = None

    def _look(self) -> None:
        if self.looking is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._keep_looking(self.looking), name="queue position")

    async def _keep_looking(self, looking: Looking) -> None:
        """Ask for as long as somebody waits who wants to know."""
        await asyncio.sleep(PATIENCE_SECONDS)
        while self._watched:
            try:
                async with looking() as depth:
                    while self._watched:
                        metrics.HUB_QUEUE_LOOKS.inc()
                        self.put(await depth())
                        await asyncio.sleep(LOOK_SECONDS)
            except AccessRefused as error:
                log.warning("positions in the queue are not told until the next start", why=str(error))
                self.looking = None
                return
            except (BrokerUnavailable, TopologyMismatch) as error:
                log.info("positions in the queue cannot be told for now", why=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def put(self, depth: int) -> None:
        """Take note of how many messages wait: the requests that were made last."""
        newest_first = sorted(self._waiting.items(), key=lambda item: item[1].asked_at, reverse=True)
        for behind, (request_id, waiting) in enumerate(newest_first):
            if behind >= depth and not waiting.watched:
                # It has left the queue, and nobody was there to hear that it was answered.
                self.answered(request_id)
            else:
                waiting.put(depth - behind - 1)
