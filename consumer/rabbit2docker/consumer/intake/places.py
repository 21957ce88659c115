"""Announces to the requesters who wait for a slot how many requests are before theirs, and when it may start.

One replica announces; the others know from the log what it has announced, and one of them goes on when it is gone.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from rabbit2docker.amqp.ports import WaitingLog
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.waiting_line import WaitingLine, WaitingRequest
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.errors import BrokerUnavailable, StreamUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Phase, Progress, ProgressDetail
from rabbit2docker_schemas.ids import BuildId

log = structlog.get_logger()

OWNER_KEY: Final = "places in the line"
TICK_SECONDS: Final = 0.25
UNANNOUNCED_SECONDS: Final = 0.3
"""Age from which a request counts as waiting: most are started before."""
STARTING_SECONDS: Final = 30.0
"""The same while there is a free slot for it, so that it waits for nothing but its turn in this program: the next that is
said of it is its acceptance."""
AGAIN_SECONDS: Final = 30.0
"""Time after which a place is announced again if it has changed, though not by half."""
FIRST_PER_TICK: Final = 100
AGAIN_PER_TICK: Final = 5
"""At most so many further announcements, the first in the line before the others: 20 a second, however many wait."""
PUBLISHED_AT_ONCE: Final = 20


def place_text(ahead: int, expected_start: datetime | None) -> str:
    """Return a place in words."""
    if not ahead:
        before = "this build is the next"
    else:
        before = "1 build is before this one" if ahead == 1 else f"{ahead} builds are before this one"
    expected = f" It is expected to start at about {expected_start:%H:%M} UTC." if expected_start else ""
    return f"Waiting for a free build slot: {before}.{expected}"


def due_places(
    order: Sequence[WaitingRequest], now: float, *, free: int = 0
) -> list[tuple[WaitingRequest, int]]:
    """Return the requests whose place is to be announced now, and the number of requests before each.

    `free`: slots in which nothing is built.
    """
    first: list[tuple[WaitingRequest, int]] = []
    again: list[tuple[WaitingRequest, int]] = []
    for ahead, request in enumerate(order):
        if request.announced is None:
            if now - request.since >= (STARTING_SECONDS if ahead < free else UNANNOUNCED_SECONDS):
                first.append((request, ahead))
        elif ahead < request.announced and (
            ahead <= request.announced // 2 or now - request.announced_at >= AGAIN_SECONDS
        ):
            again.append((request, ahead))
    return first[:FIRST_PER_TICK] + again[:AGAIN_PER_TICK]


class PlaceAnnouncer:
    """Publishes places while this replica is the one that does."""

    def __init__(
        self,
        line: WaitingLine,
        log_: WaitingLog,
        events: EventPublisher,
        ownership: Ownership,
        capacity: Capacity,
        settings: Settings,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Publish with `events`, and write what was announced into `log_`."""
        self._line = line
        self._log = log_
        self._events = events
        self._ownership = ownership
        self._capacity = capacity
        self._slots = settings.limits.concurrent_builds
        self._now = now
        self._begun = asyncio.Event()
        """Set when a request has begun to wait."""

    async def run(self) -> None:
        """Announce places until cancelled."""
        self._line.subscribe(self._begun.set)
        await self._log.caught_up.wait()
        pause, clock = TICK_SECONDS, asyncio.get_running_loop().time
        while True:
            if not self._line:
                self._begun.clear()
                await self._begun.wait()
            await asyncio.sleep(pause)
            pause = TICK_SECONDS
            if not self._line or not self._ownership.is_mine(OWNER_KEY):
                continue
            began = clock()
            running = self._capacity.running()
            order = self._line.in_order(running, self._slots)
            pause = max(TICK_SECONDS, 10 * (clock() - began))
            await self._announce(due_places(order, self._now(), free=self._slots - running.total()))

    async def _announce(self, due: Sequence[tuple[WaitingRequest, int]]) -> None:
        if not due:
            return
        at_once = asyncio.Semaphore(PUBLISHED_AT_ONCE)
        pace = self._line.seconds_per_start()
        try:
            async with asyncio.TaskGroup() as group:
                for request, ahead in due:
                    group.create_task(self._announce_one(request, ahead, pace, at_once))
            await self._log.record(self._line.announced({each.build_id: ahead for each, ahead in due}))
        except* BrokerUnavailable as error:
            log.info("places not announced", reason=str(error.exceptions[0]))

    async def _announce_one(
        self, request: WaitingRequest, ahead: int, pace: float | None, at_once: asyncio.Semaphore
    ) -> None:
        async with at_once:
            if request.build_id not in self._line:  # taken in the meantime
                return
            expected = None
            if pace is not None:
                seconds = round(pace * (ahead + 1))
                expected = datetime.fromtimestamp(self._now(), UTC) + timedelta(seconds=seconds)
            progress = Progress(
                build_id=BuildId(request.build_id),
                attempt=0,
                phase=Phase.WAITING,
                message=place_text(ahead, expected),
                detail=ProgressDetail(ahead=ahead, expected_start=expected),
            )
            try:
                await self._events.publish_place(
                    request.tenant, progress, since=request.since, is_first=request.announced is None
                )
            except StreamUnavailable as error:
                log.info("place not announced", tenant=request.tenant, reason=error.message)
