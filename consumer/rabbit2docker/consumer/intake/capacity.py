"""How many requests may be in hand: as many as there are free slots, so that none is taken only to be put back.

RabbitMQ counts a delivery that is put back towards the delivery limit, and a request that is held until a slot
is free would be held for as long as a build. So the credit of the queues follows the free slots: it shrinks
before the acknowledgement that would let another delivery through.
"""

import asyncio
from collections import Counter

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.ports import RequestSource
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.ownership import Ownership, Slots
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import BULK_QUEUE, CANCEL_QUEUE, REQUESTS_QUEUE

log = structlog.get_logger()


QUIET_SECONDS = 1.0
"""A consumer with credit to which nothing was delivered for this long has an empty queue."""


def split_prefetch(
    free: int, *, limit: int, prefetch: int, reserved: int, is_quiet: bool = False
) -> dict[str, int]:
    """Share free slots among the queues: bulk gets up to half of what is left above the reserved ones.

    Where all slots are reserved, bulk gets one when nothing is built and nobody waits (`is_quiet`); otherwise it would
    wait for ever.
    """
    if limit <= max(1, reserved):
        bulk = int(is_quiet and free == limit)
        return {REQUESTS_QUEUE: min(prefetch, max(0, free)), BULK_QUEUE: bulk}
    # The last free slot is always interactive: a slot that only bulk may take stays empty when there is no bulk.
    bulk = min(prefetch, max(0, free - max(1, reserved) + 1) // 2)
    return {REQUESTS_QUEUE: min(prefetch, max(0, free - bulk)), BULK_QUEUE: bulk}


class Capacity:
    """Keeps the credit of the request queues equal to the slots that are free."""

    def __init__(
        self, source: RequestSource, attempts: AttemptCache, ownership: Ownership, settings: Settings
    ) -> None:
        """Take the limits from the settings; nothing is consumed before `run`."""
        self._source = source
        self._attempts = attempts
        self._ownership = ownership
        self._limits = settings.limits
        self._slots = Slots(0, 0, 0)
        self._prefetch = settings.amqp.prefetch
        self._credit = {REQUESTS_QUEUE: 0, BULK_QUEUE: 0}
        self._in_hand: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._full = False

    @property
    def is_paused(self) -> bool:
        """Tell whether no slot is free, which is why nothing is consumed."""
        return self._full

    def take(self, queue: str) -> None:
        """Note that a delivery of `queue` is in hand."""
        self._in_hand[queue] += 1

    def release(self, queue: str) -> None:
        """Note that it is settled."""
        self._in_hand[queue] -= 1
        self._changed.set()

    def _target(self, *, is_quiet: bool = False) -> dict[str, int]:
        metrics.BUILDS_LIVE.set(self._attempts.live_count())
        self._slots = slots = self._ownership.slots(self._limits, self._attempts)
        return split_prefetch(
            slots.free,
            limit=slots.part,
            prefetch=self._prefetch,
            reserved=slots.reserved,
            is_quiet=is_quiet,
        )

    async def before_ack(self) -> None:
        """Pause the queues whose credit is more than is free now; call it before acknowledging a new build."""
        for queue, target in self._target().items():
            if target < self._credit[queue]:
                self._credit[queue] = 0
                await self._source.set_prefetch(queue, 0)
        self._changed.set()

    async def run(self) -> None:
        """Adjust the credit whenever a slot is taken or freed, until cancelled."""
        self._attempts.subscribe(lambda _: self._changed.set())
        self._ownership.subscribe(self._changed.set)
        await self._source.set_prefetch(CANCEL_QUEUE, self._prefetch)
        self._changed.set()
        while True:
            is_quiet = await self._until_changed()
            self._changed.clear()
            await self._adjust(is_quiet=is_quiet)

    async def _until_changed(self) -> bool:
        """Wait for a change; where all slots are reserved, wait for quiet, too. Tell whether it is quiet."""
        slots = self._slots
        may_hand_over = slots.part <= max(1, slots.reserved) and not self._credit[BULK_QUEUE]
        try:
            async with asyncio.timeout(QUIET_SECONDS if may_hand_over and not self._full else None):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    async def _adjust(self, *, is_quiet: bool) -> None:
        target = self._target(is_quiet=is_quiet and not any(self._in_hand.values()))
        self._report(is_full=not any(target.values()))
        for queue, credit in target.items():
            if credit == self._credit[queue]:
                continue
            if self._credit[queue]:
                self._credit[queue] = 0
                await self._source.set_prefetch(queue, 0)
            # A new consumer's credit does not count what an older one holds: wait until that is settled.
            if credit and not self._in_hand[queue]:
                self._credit[queue] = credit
                await self._source.set_prefetch(queue, credit)

    def _report(self, *, is_full: bool) -> None:
        if is_full != self._full:
            self._full = is_full
            if is_full:
                log.info(
                    "all slots are taken, requests wait in RabbitMQ", limit=self._limits.concurrent_builds
                )
            else:
                log.info("slots are free, taking requests again", limit=self._limits.concurrent_builds)
