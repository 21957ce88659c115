"""Capacity: a request is taken from a queue once a slot is free for it, and never in vain.

RabbitMQ counts a delivery that is put back towards the delivery limit, and a request held until a slot is free would be
held for as long as a build. So each is taken on its own, from the queue whose turn it is.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.ports import Delivery, RequestSource, WaitingLog
from rabbit2docker.amqp.topology import waiting_queues
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.consumer.ownership import Ownership, Slots
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.retry import Backoff, doubling
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    CANCEL_QUEUE,
    DROPPED_QUEUE,
    REQUESTS_QUEUE,
    parse_waiting_queue,
)

log = structlog.get_logger()

OPEN_QUEUES: Final = (REQUESTS_QUEUE, BULK_QUEUE, CANCEL_QUEUE, DROPPED_QUEUE)
"""Consumed at all times: what comes from them starts no build, or waits in another queue for it."""
LOOK_SECONDS: Final = 10.0
"""Pause between looks into all queues, for requests that the log does not name."""
BLIND_LOOK_SECONDS: Final = 1.0
"""The same while the log cannot be read."""
MISSED_PAUSES: Final = doubling(0.02, BLIND_LOOK_SECONDS)
"""Pauses before another look into queues that were empty although the log names a request in them.

The log is written first: another replica's request may be on its way to the queue.
"""


def may_take_bulk(slots: Slots, in_hand: int) -> bool:
    """Return whether a bulk request may take one of the free slots, when no other request waits.

    The last free slot, and those that are reserved, are for people. Where all slots are reserved, bulk gets one while
    nothing is built; otherwise it would wait indefinitely.
    """
    kept = max(1, slots.reserved)
    free = slots.free - in_hand
    return free > kept if slots.share > kept else not in_hand and slots.free == slots.share


class Capacity:
    """Takes requests for the free slots of this replica."""

    def __init__(
        self,
        source: RequestSource,
        attempts: AttemptCache,
        ownership: Ownership,
        line: WaitingLine,
        shares: Shares,
        waiting_log: WaitingLog,
        settings: Settings,
    ) -> None:
        """Take the limits from the settings; nothing is consumed before `run`.

        While `waiting_log` cannot be read, all queues are looked into.
        """
        self._source = source
        self._attempts = attempts
        self._ownership = ownership
        self._line = line
        self._shares = shares
        self._waiting_log = waiting_log
        self._limits = settings.limits
        self._max_prefetch = settings.amqp.prefetch
        self._all_queues = waiting_queues(settings.tenants)
        self._in_hand: Counter[str] = Counter()
        """Deliveries that may become builds, by the tenant whose share they use."""
        self._changed = asyncio.Event()
        self._missed = Backoff(MISSED_PAUSES)
        self._is_missing = False
        self._slot_changes = 0
        self._full = False

    @property
    def is_paused(self) -> bool:
        """True while no slot is free and so no request is started."""
        return self._full

    def take(self, queue: str) -> None:
        """Count a delivery of `queue` as in hand."""
        if parsed := parse_waiting_queue(queue):
            self._in_hand[parsed[0]] += 1

    def release(self, queue: str) -> None:
        """Count a delivery of `queue` as settled."""
        if parsed := parse_waiting_queue(queue):
            self._in_hand[parsed[0]] -= 1
            self._changed.set()

    def running(self) -> Counter[str]:
        """Return how many builds each tenant's share has, those included that are about to be."""
        live = (attempt.spec.tenant for attempt in self._attempts.live())
        return Counter(map(self._line.share_of, live)) + self._in_hand

    def running_of(self, tenant: str, requester: str) -> int:
        """Return how many builds a requester has."""
        return sum(
            attempt.spec.tenant == tenant and (attempt.spec.request.requester or "") == requester
            for attempt in self._attempts.live()
        )

    async def run(self, start: Callable[[Delivery], None]) -> None:
        """Take requests whenever a slot is free, and give them to `start`, until cancelled."""
        self._attempts.subscribe(lambda _: self._note_slot_changes())
        self._ownership.subscribe(self._changed.set)
        self._line.subscribe(self._changed.set)
        for queue in OPEN_QUEUES:
            await self._source.set_prefetch(queue, self._max_prefetch)
        looked_at = -LOOK_SECONDS
        while True:
            now = asyncio.get_running_loop().time()
            is_due = now - looked_at >= (BLIND_LOOK_SECONDS if self._waiting_log.problem else LOOK_SECONDS)
            if await self._fill(start, everywhere=is_due) and is_due:
                looked_at = now
            await self._wait_for_change()

    def _note_slot_changes(self) -> None:
        """Count again if slots were taken or left: most changes of attempts are of how far they are."""
        if self._slot_changes != self._attempts.slot_changes:
            self._slot_changes = self._attempts.slot_changes
            self._changed.set()

    async def _wait_for_change(self) -> None:
        if not self._is_missing:
            self._missed.reset()
        try:
            async with asyncio.timeout(self._missed.next() if self._is_missing else BLIND_LOOK_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    async def _fill(self, start: Callable[[Delivery], None], *, everywhere: bool) -> bool:
        """Take requests until no slot is free or no queue has any; return True if all queues were looked into."""
        known = self._line.counts()
        unknown = dict.fromkeys(self._all_queues, 1) if everywhere else {}
        waiting = Counter(unknown | known)
        self._is_missing = False
        while (slots := self._free_slots()) is not None:
            with_bulk = may_take_bulk(slots, self._in_hand.total())
            queue = self._shares.choose(
                +waiting, self.running(), self._limits.concurrent_builds, with_bulk=with_bulk
            )
            if queue is None:
                return everywhere
            try:
                delivery = await self._source.take(queue)
            except BrokerUnavailable as error:
                log.debug("no request taken", queue=queue, reason=str(error))
                return False
            if delivery is None:
                del waiting[queue]
                self._line.mark_empty(queue)
                self._is_missing |= queue in known
                continue
            self._shares.count(queue, +waiting)
            waiting[queue] -= queue in known
            start(delivery)
        return False

    def _free_slots(self) -> Slots | None:
        """Return the slots of this replica; None if none is free for a further delivery."""
        live = self._attempts.live()
        metrics.BUILDS_LIVE.set(len(live))
        slots = self._ownership.slots(self._limits, live)
        in_hand = self._in_hand.total()
        self._log_transition(is_full=slots.free <= 0)
        return slots if in_hand < min(slots.free, self._max_prefetch) else None

    def _log_transition(self, *, is_full: bool) -> None:
        if is_full == self._full:
            return
        self._full = is_full
        event = "intake paused" if is_full else "intake resumed"
        reason = "all slots are taken" if is_full else "slots are free"
        log.info(event, reason=reason, limit=self._limits.concurrent_builds)
