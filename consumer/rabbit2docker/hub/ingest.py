"""Ingest: the store's copy of everything that happens to a tenant's builds.

Events come from the hub's own queue and, where that may not have all of them, from the tenant's stream. The queue's
events are acknowledged before they are stored. What a crash loses is read again from the stream: each transaction also
stores how far the store has come, and reading begins there the next time, with some slack.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.event_consumer import QUEUE_IN_USE
from rabbit2docker.client.build_events import BuildEvents
from rabbit2docker.errors import BrokerUnavailable, StoreRefused, StoreUnavailable, TopologyMismatch
from rabbit2docker.hub.store.store import Store
from rabbit2docker.retry import retry_forever
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import run_together
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Log

log = structlog.get_logger()
T = TypeVar("T")

BATCH_EVENTS: Final = 500
BATCH_SECONDS: Final = 0.1
"""An event waits this long for others, so that a busy log costs few transactions."""
LINES_SECONDS: Final = 0.5
"""The same for log lines, while nothing else comes: a transaction costs as much as a hundred lines in it."""
COUNT_SECONDS: Final = 1.0
"""Between two counts of the running builds."""
RETRY_SECONDS: Final = 2.0
CLEAN_UP_SECONDS: Final = 3600.0
LIMIT_SECONDS: Final = 60.0
"""Between looks at the size of all logs; logs may exceed the limit in the meantime."""
SLACK: Final = timedelta(minutes=2)
"""By how much the consumers' clocks may differ from RabbitMQ's, and the queue's order from the stream's."""
BEFORE_ANY_STREAM: Final = datetime(2000, 1, 1, tzinfo=UTC)


def queue_name(settings: Settings) -> str:
    """Return the name of the hub, which its durable queue carries."""
    return settings.hub.name or f"{settings.tenant}.service"


class Ingester:
    """Writes a tenant's events to the store. Of several programs on one queue, one writes and the others stand by."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Take the store to write to, and the settings of RabbitMQ, tenant, queue and retention."""
        self._store = store
        self._settings = settings
        self._events: BuildEvents | None = None
        self._trouble = ""
        self._waiting_since: datetime | None = None
        self._running_builds = 0
        self._count_is_old = asyncio.Event()

    @property
    def is_standby(self) -> bool:
        """True while another program writes to the store."""
        return self._events is not None and self._events.problem.startswith(QUEUE_IN_USE)

    @property
    def problem(self) -> str:
        """The reason why the store gets no events, as text for people; empty while any program writes to it."""
        if self._trouble or self.is_standby:
            return self._trouble
        return "not connected yet" if self._events is None else self._events.problem

    @property
    def behind_seconds(self) -> float:
        """Age in seconds of the oldest received event that is not stored yet; 0 if there is none."""
        since = self._waiting_since
        return 0.0 if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())

    async def run(self) -> None:
        """Ingest until cancelled, through outages of RabbitMQ and database. Raises AccessRefused."""
        # Evaluated when metrics are scraped: of several instances, only the one that writes reports running builds.
        metrics.BINDERHUB_IN_PROGRESS.set_function(lambda: 0 if self.is_standby else self._running_builds)
        metrics.HUB_STORE_BEHIND.set_function(lambda: self.behind_seconds)
        await run_together(self._ingest_forever(), self._delete_expired_forever(), self._limit_logs_forever())

    async def _ingest_forever(self) -> None:
        while True:
            self._events = BuildEvents(
                self._settings.amqp, self._settings.tenant, queue_name(self._settings), recent_bytes=0
            )
            try:
                async with self._events:
                    await self._ingest(self._events)
            except (TopologyMismatch, BrokerUnavailable) as error:
                # A consumer that starts for the first time declares what is missing.
                self._trouble = str(error)
                log.warning("ingest interrupted", reason=str(error), delay_seconds=RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
            self._trouble = ""

    async def _ingest(self, events: BuildEvents) -> None:
        # Read only now: until a moment ago another instance may have written to the store.
        position = await self._retried(self._store.position)
        since = BEFORE_ANY_STREAM if position is None else position - SLACK
        self._store.metrics.begin(datetime.now(UTC) if position is None else None)
        self._running_builds = await self._retried(self._store.running_count)
        log.info("ingest started", since=since.isoformat(), store=self._store.address)
        inbox: asyncio.Queue[Event] = asyncio.Queue(BATCH_EVENTS)
        await run_together(self._read(events, since, inbox), self._write(inbox), self._count_forever())

    async def _read(self, events: BuildEvents, since: datetime, inbox: asyncio.Queue[Event]) -> None:
        async with aclosing(events.all(since=since)) as everything:
            async for event in everything:
                await inbox.put(event)

    async def _write(self, inbox: asyncio.Queue[Event]) -> None:
        while True:
            batch = [await inbox.get()]
            self._waiting_since = self._waiting_since or batch[0].time
            await self._collect(batch, inbox)
            await self._store_batch(batch)
            if any(event.is_terminal or isinstance(event.data, Accepted) for event in batch):
                self._count_is_old.set()
            self._waiting_since = None if inbox.empty() else batch[-1].time

    async def _collect(self, batch: list[Event], inbox: asyncio.Queue[Event]) -> None:
        """Add the events that come before it is time to store the batch."""
        now = asyncio.get_running_loop().time
        began, ends = now(), now() + LINES_SECONDS
        while True:
            while len(batch) < BATCH_EVENTS and not inbox.empty():
                batch.append(inbox.get_nowait())
            if not all(isinstance(event.data, Log) for event in batch):
                ends = min(ends, began + BATCH_SECONDS)
            if len(batch) == BATCH_EVENTS or now() >= ends:
                return
            await asyncio.sleep(min(BATCH_SECONDS, ends - now()))

    async def _count_forever(self) -> None:
        while True:
            await self._count_is_old.wait()
            self._count_is_old.clear()
            self._running_builds = await self._retried(self._store.running_count)
            await asyncio.sleep(COUNT_SECONDS)

    async def _store_batch(self, batch: list[Event]) -> None:
        # The earliest time: a consumer's clock that is ahead must not make us skip what others publish in the meantime.
        position = min([datetime.now(UTC), *(event.time for event in batch)])
        try:
            await self._retried(lambda: self._store.put(batch, position=position))
        except StoreRefused:
            for event in batch:
                await self._store_alone(event)

    async def _store_alone(self, event: Event) -> None:
        """Store one event of a batch that the database has refused as a whole; skip it if it is the culprit."""
        try:
            await self._retried(lambda: self._store.put([event]))
        except StoreRefused as error:
            log.error("event skipped", reason=str(error), event_id=event.id, build_id=event.subject)

    async def _retried(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the step's result, as soon as the database answers."""

        def report(error: Exception, delay_seconds: float) -> None:
            if str(error) != self._trouble:
                log.warning("store unavailable", reason=str(error), delay_seconds=round(delay_seconds, 1))
            self._trouble = str(error)

        result = await retry_forever(step, on=StoreUnavailable, pauses=(RETRY_SECONDS,), report=report)
        self._trouble = ""
        return result

    async def _delete_expired_forever(self) -> None:
        days = timedelta(days=self._settings.hub.store_days)
        while True:
            now = datetime.now(UTC)
            with suppress(StoreUnavailable):  # then there is more to delete the next time
                if number := await self._store.delete_expired(ended_before=now - days, now=now):
                    log.info("old builds deleted", builds=number)
            await asyncio.sleep(CLEAN_UP_SECONDS)

    async def _limit_logs_forever(self) -> None:
        limit = self._settings.hub.store_bytes
        while limit:
            with suppress(StoreUnavailable):
                if (deleted := await self._store.limit_logs(limit)).logs:
                    log.info("old logs deleted", builds=len(deleted.logs), bytes=deleted.log_bytes)
            await asyncio.sleep(LIMIT_SECONDS)
