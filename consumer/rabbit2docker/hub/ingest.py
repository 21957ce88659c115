"""Feeds the store with all events of a tenant.

Events come from the hub's own queue and, where that may not have all, from the tenant's stream. The queue's are acknowledged
as they come, before they are stored: whatever a crash takes with it is read again from the stream, because each
transaction also remembers how far the store has come, and that is where reading begins the next time, with some slack.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.event_consumer import IN_OTHER_HANDS
from rabbit2docker.client.build_events import BuildEvents
from rabbit2docker.errors import BrokerUnavailable, StoreRefused, StoreUnavailable, TopologyMismatch
from rabbit2docker.hub.store.store import Store
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted

log = structlog.get_logger()
T = TypeVar("T")

BATCH_EVENTS: Final = 500
BATCH_SECONDS: Final = 0.1
"""An event waits so long for others, so that a busy log costs few transactions."""
RETRY_SECONDS: Final = 2.0
FORGET_SECONDS: Final = 3600.0
SLACK: Final = timedelta(minutes=2)
"""By how much the clocks of consumers may differ from RabbitMQ's, and the order of the queue from the stream's."""
BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Before any stream."""


def queue_name(settings: Settings) -> str:
    """Return the name of the hub, under which its events wait for it."""
    return settings.hub.name or f"{settings.tenant}.service"


class Ingester:
    """Keeps a store up to date. Of several programs with the same queue one does it, and the others stand by."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Take the store to feed, and the settings of RabbitMQ, tenant, queue and retention."""
        self._store = store
        self._settings = settings
        self._events: BuildEvents | None = None
        self._trouble = ""
        self._waiting_since: datetime | None = None
        self._under_way = 0

    @property
    def is_standby(self) -> bool:
        """Tell whether another program feeds the store now."""
        return self._events is not None and self._events.problem.startswith(IN_OTHER_HANDS)

    @property
    def problem(self) -> str:
        """Return why the store is not fed, for people; empty while it is, by whomever."""
        if self._trouble or self.is_standby:
            return self._trouble
        return "not connected yet" if self._events is None else self._events.problem

    @property
    def behind_seconds(self) -> float:
        """Return the age of the oldest event that has come and is not stored yet; 0 if there is none."""
        since = self._waiting_since
        return 0.0 if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())

    async def run(self) -> None:
        """Feed until cancelled, whatever is away for a time. Raises AccessRefused when RabbitMQ refuses us."""
        # Looked at when the metrics are: of several instances, only the one that feeds says how many builds there are.
        metrics.BINDERHUB_IN_PROGRESS.set_function(lambda: 0 if self.is_standby else self._under_way)
        metrics.HUB_STORE_BEHIND.set_function(lambda: self.behind_seconds)
        await _together(self._feed_for_ever(), self._forget_for_ever())

    async def _feed_for_ever(self) -> None:
        while True:
            self._events = BuildEvents(self._settings.amqp, self._settings.tenant, queue_name(self._settings))
            try:
                async with self._events:
                    await self._feed(self._events)
            except (TopologyMismatch, BrokerUnavailable) as error:
                # A consumer that starts for the first time makes what is missing.
                self._trouble = str(error)
                log.warning("builds cannot be remembered yet", why=str(error), seconds=RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
            self._trouble = ""

    async def _feed(self, events: BuildEvents) -> None:
        # Asked for only now: another instance may have fed the store until a moment ago.
        position = await self._insist(self._store.position)
        since = BEGINNING if position is None else position - SLACK
        self._store.tally.begin(datetime.now(UTC) if position is None else None)
        self._under_way = await self._insist(self._store.running_count)
        log.info("the store is fed", since=since.isoformat(), store=self._store.address)
        inbox: asyncio.Queue[Event] = asyncio.Queue(BATCH_EVENTS)
        await _together(self._read(events, since, inbox), self._write(inbox))

    async def _read(self, events: BuildEvents, since: datetime, inbox: asyncio.Queue[Event]) -> None:
        async with aclosing(events.all(since=since)) as everything:
            async for event in everything:
                await inbox.put(event)

    async def _write(self, inbox: asyncio.Queue[Event]) -> None:
        while True:
            batch = [await inbox.get()]
            self._waiting_since = self._waiting_since or batch[0].time
            if not inbox.full():
                await asyncio.sleep(BATCH_SECONDS)
            while len(batch) < BATCH_EVENTS and not inbox.empty():
                batch.append(inbox.get_nowait())
            await self._keep(batch)
            if any(event.is_terminal or isinstance(event.data, Accepted) for event in batch):
                self._under_way = await self._insist(self._store.running_count)
            self._waiting_since = None if inbox.empty() else batch[-1].time

    async def _keep(self, batch: list[Event]) -> None:
        # The least: a consumer's clock that is ahead must not make us skip what others have published meanwhile.
        position = min([datetime.now(UTC), *(event.time for event in batch)])
        try:
            await self._insist(lambda: self._store.put(batch, position=position))
        except StoreRefused:
            for event in batch:
                try:
                    await self._insist(lambda event=event: self._store.put([event]))  # type: ignore[misc]
                except StoreRefused as error:
                    log.error(
                        "an event cannot be stored", why=str(error), event_id=event.id, build_id=event.subject
                    )

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what the work returns, once the database is there."""
        while True:
            try:
                result = await work()
            except StoreUnavailable as error:
                if str(error) != self._trouble:
                    log.warning("the store is away, waiting for it", why=str(error))
                self._trouble = str(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._trouble = ""
                return result

    async def _forget_for_ever(self) -> None:
        days = timedelta(days=self._settings.hub.store_days)
        while True:
            now = datetime.now(UTC)
            with suppress(StoreUnavailable):  # then it has more to forget the next time
                if number := await self._store.forget(ended_before=now - days, now=now):
                    log.info("old builds were forgotten", builds=number)
            await asyncio.sleep(FORGET_SECONDS)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Do some work at the same time; the first error ends it all, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
