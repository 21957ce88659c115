"""Events that a hub's queue has refused: kept in memory, and offered to the hubs of their tenant until they are taken.

RabbitMQ refuses a message as a whole if one of its queues is full or without a majority, and does not say which one.
Offering goes on beside everything else, and under a routing key that the streams are not bound to: those have the
events already, so what is lost here, at a restart or beyond the limit, can be read from there.
"""

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Final

from rabbit2docker import metrics
from rabbit2docker.amqp.outgoing import OutgoingMessage
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff
from rabbit2docker.tasks import TaskSet

log = get_logger()

OFFER_PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Between offers of the oldest refused event. The other hubs of its tenant get another copy with each of them."""
OFFERED_AT_ONCE: Final = 50
OTHER_TENANTS: Final = "other"


class Answer(Enum):
    """The outcome of an offer."""

    TAKEN = auto()
    REFUSED = auto()
    MISSED = auto()
    """Refused, and it cannot be offered again."""


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """An event for the hubs of a tenant."""

    number: int
    """Order in which the events of this program began to be published."""
    routing_key: str
    message: Callable[[], OutgoingMessage]
    size: int
    """Bytes of its body."""
    may_repeat: bool
    """False once the stream may have two copies."""


class HubBacklog:
    """The events of one tenant that not all of its hubs have taken, of `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self._limit = limit
        self._bytes = 0
        self._expected = 0
        self._changed = asyncio.Event()
        self._fresh: deque[HeldEvent] = deque()
        self._refused: list[HeldEvent] = []
        self.missed = 0
        """Events that are left to the stream, because they are beyond the limit or cannot be offered again."""

    def __len__(self) -> int:
        """Return how many events it holds."""
        return len(self._fresh) + len(self._refused)

    @property
    def is_needed(self) -> bool:
        """True while it holds events or expects one."""
        return bool(self._expected or self._fresh or self._refused)

    @property
    def oldest_refused(self) -> HeldEvent | None:
        """The first event that has been offered in vain."""
        return self._refused[0] if self._refused else None

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Keep it open for an event that is on its way."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._changed.set()

    def add(self, event: HeldEvent, *, is_refused: bool) -> None:
        """Hold an event, and drop the oldest ones beyond the limit; `is_refused`: the hubs were offered it already."""
        self._bytes += event.size
        if is_refused:
            self._insert_refused(event)
        else:
            self._fresh.append(event)
        while self._bytes > self._limit and len(self) > 1:
            oldest = self._refused.pop(0) if self._refused else self._fresh.popleft()
            self._bytes -= oldest.size
            self.missed += 1
        self._changed.set()

    def take_fresh(self, count: int) -> list[HeldEvent]:
        """Remove and return up to `count` events that were not offered yet."""
        taken = [self._fresh.popleft() for _ in range(min(count, len(self._fresh)))]
        self._bytes -= sum(event.size for event in taken)
        return taken

    def remove(self, event: HeldEvent) -> None:
        """Forget a refused event, if it was not dropped in the meantime."""
        with suppress(ValueError):
            self._refused.remove(event)
            self._bytes -= event.size

    async def wait(self, *, until: float | None) -> None:
        """Return after a change, or at a time of the loop."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._changed.wait()
        self._changed.clear()

    def _insert_refused(self, event: HeldEvent) -> None:
        insort(self._refused, event, key=attrgetter("number"))


class HubBacklogs:
    """The backlogs of the tenants that have one, each offered by a task of its own."""

    def __init__(
        self,
        offer: Callable[[HeldEvent, bool], Awaitable[Answer]],
        *,
        limit: int,
        tenants: tuple[str, ...] = (),
    ) -> None:
        """Take the limit in bytes of each backlog; `offer` takes an event, and whether it was refused before.

        `tenants`: those with metrics of their own.
        """
        self._offer = offer
        self._limit = limit
        self._tenants = frozenset(tenants)
        self._backlogs: dict[str, HubBacklog] = {}
        self._tasks = TaskSet()

    def __contains__(self, tenant: str) -> bool:
        """Return whether a hub of the tenant is behind."""
        return tenant in self._backlogs

    def items(self) -> list[tuple[str, HubBacklog]]:
        """Return the tenants with their backlogs."""
        return sorted(self._backlogs.items())

    def open(self, tenant: str) -> HubBacklog:
        """Return the tenant's backlog, a new one if no hub of it was behind."""
        if tenant not in self._backlogs:
            backlog = self._backlogs[tenant] = HubBacklog(self._limit)
            self._tasks.run_in_background(self._run(tenant, backlog), f"backlog of {tenant}")
            log.warning("events refused: a hub's queue is full or has no majority", tenant=tenant)
        return self._backlogs[tenant]

    async def close(self) -> None:
        """End all offers. The streams have the events."""
        await self._tasks.close()

    async def _run(self, tenant: str, backlog: HubBacklog) -> None:
        label = tenant if tenant in self._tenants else OTHER_TENANTS
        began = asyncio.get_running_loop().time()
        try:
            await self._offer_all(backlog, label)
        finally:
            del self._backlogs[tenant]
            metrics.HUB_EVENTS_HELD.labels(tenant=label).set(0)
        seconds = round(asyncio.get_running_loop().time() - began)
        log.info("events taken by all hubs again", tenant=tenant, seconds=seconds, missed=backlog.missed)

    async def _offer_all(self, backlog: HubBacklog, label: str) -> None:
        """Offer events until the hubs have all of them: new ones at once, the oldest refused one from time to time."""
        clock, pauses = asyncio.get_running_loop().time, Backoff(OFFER_PAUSES)
        due, missed = clock() + pauses.next(), 0
        while backlog.is_needed:
            refused = backlog.oldest_refused
            if refused is not None and clock() >= due:
                if await self._offer_again(backlog, refused):
                    pauses.reset()
                else:
                    due = clock() + pauses.next()
            elif fresh := backlog.take_fresh(OFFERED_AT_ONCE):
                await self._offer_first(backlog, fresh)
            else:
                await backlog.wait(until=due if refused else None)
            metrics.HUB_EVENTS_HELD.labels(tenant=label).set(len(backlog))
            metrics.HUB_EVENTS_MISSED.labels(tenant=label).inc(backlog.missed - missed)
            missed = backlog.missed

    async def _offer_first(self, backlog: HubBacklog, fresh: list[HeldEvent]) -> None:
        answers = await asyncio.gather(*[self._offer(event, False) for event in fresh])
        for event, answer in zip(fresh, answers, strict=True):
            if answer is not Answer.TAKEN:
                backlog.add(event, is_refused=True)

    async def _offer_again(self, backlog: HubBacklog, refused: HeldEvent) -> bool:
        """Offer an event that was refused; return whether the hubs took it."""
        answer = await self._offer(refused, True)
        if answer is not Answer.REFUSED:
            backlog.remove(refused)
        backlog.missed += answer is Answer.MISSED
        return answer is Answer.TAKEN
