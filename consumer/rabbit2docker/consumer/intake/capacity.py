"""Capacity: the prefetch of the request queues follows the free build slots, so that no request is taken in vain.

RabbitMQ counts a delivery that is put back towards the delivery limit, and a request held until a slot is free
would be held for as long as a build. So the prefetch shrinks before the acknowledgement that would let another
delivery through.
"""

import asyncio
from collections import Counter
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.ports import RequestSource
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.ownership import Ownership, Slots
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import BULK_QUEUE, CANCEL_QUEUE, DROPPED_QUEUE, REQUESTS_QUEUE

log = structlog.get_logger()

QUIET_SECONDS: Final = 1.0
"""A queue with prefetch from which nothing was delivered for this long is empty."""


def split_prefetch(
    free: int, *, limit: int, prefetch: int, reserved: int, is_quiet: bool = False
) -> dict[str, int]:
    """Split free slots among the queues: bulk gets up to half of those above the reserved ones.

    Where all slots are reserved, bulk gets one while nothing is built and no request waits (`is_quiet`); otherwise
    it would wait indefinitely.
    """
    if limit <= max(1, reserved):
        bulk = int(is_quiet and free == limit)
        return {REQUESTS_QUEUE: min(prefetch, max(0, free)), BULK_QUEUE: bulk}
    # The last free slot is always interactive: a slot that only bulk may take stays empty when there is no bulk.
    bulk = min(prefetch, max(0, free - max(1, reserved) + 1) // 2)
    return {REQUESTS_QUEUE: min(prefetch, max(0, free - bulk)), BULK_QUEUE: bulk}


class Capacity:
    """Keeps the prefetch of the request queues equal to the free slots."""

    def __init__(
        self, source: RequestSource, attempts: AttemptCache, ownership: Ownership, settings: Settings
    ) -> None:
        """Take the limits from the settings; nothing is consumed before `run`."""
        self._source = source
        self._attempts = attempts
        self._ownership = ownership
        self._limits = settings.limits
        self._slots = Slots(0, 0, 0)
        self._max_prefetch = settings.amqp.prefetch
        self._prefetch = {REQUESTS_QUEUE: 0, BULK_QUEUE: 0}
        self._in_hand: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._full = False

    @property
    def is_paused(self) -> bool:
        """True while no slot is free and so no request is consumed."""
        return self._full

    def take(self, queue: str) -> None:
        """Count a delivery of `queue` as in hand."""
        self._in_hand[queue] += 1

    def release(self, queue: str) -> None:
        """Count a delivery of `queue` as settled."""
        self._in_hand[queue] -= 1
        self._changed.set()

    async def before_ack(self) -> None:
        """Pause the queues whose prefetch exceeds the free slots; call it before acknowledging a new build."""
        for queue, target in self._target().items():
            if target < self._prefetch[queue]:
                await self._set_prefetch(queue, 0)
        self._changed.set()

    async def run(self) -> None:
        """Adjust the prefetch whenever a slot is taken or freed, until cancelled."""
        self._attempts.subscribe(lambda _: self._changed.set())
        self._ownership.subscribe(self._changed.set)
        for queue in (CANCEL_QUEUE, DROPPED_QUEUE):  # neither starts builds
            await self._source.set_prefetch(queue, self._max_prefetch)
        self._changed.set()
        while True:
            is_quiet = await self._wait_for_change()
            self._changed.clear()
            await self._adjust(is_quiet=is_quiet)

    def _target(self, *, is_quiet: bool = False) -> dict[str, int]:
        metrics.BUILDS_LIVE.set(self._attempts.live_count())
        self._slots = slots = self._ownership.slots(self._limits, self._attempts)
        return split_prefetch(
            slots.free,
            limit=slots.share,
            prefetch=self._max_prefetch,
            reserved=slots.reserved,
            is_quiet=is_quiet,
        )

    async def _wait_for_change(self) -> bool:
        """Wait for a change or, where all slots are reserved, for quiet; return True if it is quiet."""
        slots = self._slots
        may_hand_over = slots.share <= max(1, slots.reserved) and not self._prefetch[BULK_QUEUE]
        try:
            async with asyncio.timeout(QUIET_SECONDS if may_hand_over and not self._full else None):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    async def _adjust(self, *, is_quiet: bool) -> None:
        targets = self._target(is_quiet=is_quiet and not any(self._in_hand.values()))
        self._log_transition(is_full=not any(targets.values()))
        for queue, target in targets.items():
            if target == self._prefetch[queue]:
                continue
            if self._prefetch[queue]:
                await self._set_prefetch(queue, 0)
            # A new consumer's prefetch does not count what an older one holds: wait until that is settled.
            if target and not self._in_hand[queue]:
                await self._set_prefetch(queue, target)

    async def _set_prefetch(self, queue: str, prefetch: int) -> None:
        self._prefetch[queue] = prefetch
        await self._source.set_prefetch(queue, prefetch)

    def _log_transition(self, *, is_full: bool) -> None:
        if is_full == self._full:
            return
        self._full = is_full
        event = "intake paused" if is_full else "intake resumed"
        reason = "all slots are taken" if is_full else "slots are free"
        log.info(event, reason=reason, limit=self._limits.concurrent_builds)
