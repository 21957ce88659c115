"""A tenant's builds, for any number of readers over one connection and one queue."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

from cachetools import LRUCache
from pydantic import SecretStr

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.event_consumer import EventConsumer
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.client.feed import SETTLE_SECONDS, BuildFeed, TenantFeed
from rabbit2docker.client.history import CLOCK_SLACK, History
from rabbit2docker.client.recent_events import RecentBuild, RecentEvents
from rabbit2docker.settings import AmqpSettings
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import Priority

MEMORY_BYTES: Final = 64 * 1024 * 1024
"""Memory that the buffers of all builds share."""
MAX_FEED_BYTES: Final = 2 * 1024 * 1024
MIN_FEED_BYTES: Final = 128 * 1024
RECENT_BYTES: Final = 32 * 1024 * 1024
"""Memory for the past of builds, from which readers that join are served."""
SUBMITTED_REQUESTS: Final = 10_000
"""Own requests whose time is remembered; most are followed at once."""


class BuildEvents:
    """The events of a tenant's builds, and a way to request builds. Use it with `async with`.

    A lost connection is restored indefinitely; events missed in the meantime are read from the tenant's stream, and
    lines that are lost for good appear as a `Gap`. There is no limit on readers or their pace: what a slow reader has
    not read yet is not buffered for it, but read from the stream again.
    """

    def __init__(
        self,
        url: str | AmqpSettings,
        tenant: str = "default",
        name: str | None = None,
        *,
        wait_seconds: float | None = None,
        recent_bytes: int = RECENT_BYTES,
    ) -> None:
        """Take RabbitMQ's URL, and a `name` for the hub if its events shall be queued while it is away.

        One program at a time can use a name; a second one waits until the first has closed. `wait_seconds`: limit for
        the first connection; without it, entering the context waits for RabbitMQ indefinitely. `recent_bytes`: memory
        for recent events, which spare readers of a running build the tenant's stream; 0 if there are no such readers.
        Raises ConfigurationError for an invalid URL.
        """
        self._amqp = url if isinstance(url, AmqpSettings) else AmqpSettings(url=SecretStr(url))
        self._tenant = tenant
        self._name = name
        self._wait_seconds = wait_seconds
        self.history = History(self._amqp, tenant, wait_seconds=wait_seconds)
        """Past events: of one build so far, or of all builds since a moment."""
        self._feeds: dict[tuple[str, float | None], BuildFeed] = {}
        self._feeds_by_key: defaultdict[str, set[BuildFeed]] = defaultdict(set)
        self._tenant_feeds: set[TenantFeed] = set()
        self._queued_feed: TenantFeed | None = None
        """With a name: everything since entering, including what had waited in the hub's queue."""
        self._submitted_at: LRUCache[str, float] = LRUCache(SUBMITTED_REQUESTS)
        self._recent = RecentEvents(limit=recent_bytes)
        self._requester: RequestPublisher | None = None
        self._consuming: ManagedChannel | None = None
        self._connecting = asyncio.Lock()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect and start to receive; no event is missed from now on.

        Raises AccessRefused; TopologyMismatch when the exchange or the queue is missing or differs; BrokerUnavailable
        when RabbitMQ does not answer within `wait_seconds`.
        """
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(self.history)
            consumer = EventConsumer(self._amqp, self._name, self._tenant)
            self._consuming = consumer.connection
            if self._name is not None:
                self._queued_feed = self._new_tenant_feed(datetime.now(UTC), read_first=False)
                opening.push_async_callback(self._close_tenant_feed, self._queued_feed)
            tasks = TaskSet()
            opening.push_async_callback(tasks.close)
            tasks.run_in_background(self._dispatch(consumer), "dispatching events")
            await opening.enter_async_context(
                connected(consumer.connection, self._wait_seconds, consumer.mismatch)
            )
            opening.push_async_callback(self._close_feeds)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. Readers get BrokerUnavailable."""
        await self._open.aclose()

    @property
    def problem(self) -> str:
        """Return the reason why no events arrive from RabbitMQ now, as a text; empty while they do."""
        return "not connected" if self._consuming is None else self._consuming.problem

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Request a build and return the request's id, a new one if the request has none.

        Raises BrokerUnavailable when RabbitMQ does not confirm; submitting again with the same id builds once.
        """
        named = request.model_copy(update={"request_id": request.request_id or uuid.uuid4().hex})
        requester = await self._connect_requester()
        self._submitted_at[str(named.request_id)] = asyncio.get_running_loop().time()
        return await requester.request(named, priority)

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """End a build for all of its requesters, or withdraw a request, by the id of either.

        `spare_joined`: a build that others started and the request has joined goes on.
        """
        request = (
            CancelRequest(build_id=id_, requester=by)
            if _is_build_id(id_)
            else CancelRequest(request_id=id_, requester=by, spare_joined=spare_joined)
        )
        await (await self._connect_requester()).cancel(request)

    async def of(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield the events of a build or a request, depending on the id."""
        events = self.of_build(id_) if _is_build_id(id_) else self.of_request(id_)
        async with aclosing(events):
            async for event in events:
                yield event

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a request and its build, from the answer to the end. A rejection is an end, too.

        An unknown id is waited for. A request submitted here starts with its submission: an older request with the
        same id is another one. `since`: the time of a request submitted elsewhere, if known; without it the index
        is searched. Raises TopologyMismatch when the tenant has no stream.
        """
        own = build_id_of(self._tenant, request_id)
        submitted_at = self._submitted_at.get(request_id)
        if submitted_at is not None and not self._recent.is_complete_since(own, submitted_at):
            submitted_at = None
        elif submitted_at is not None and since is None:
            ago = timedelta(seconds=asyncio.get_running_loop().time() - submitted_at)
            since = datetime.now(UTC) - ago
        joined: str | None = None
        async with self._feed(own, since, submitted_at) as feed, aclosing(feed.read()) as events:
            async for event in events:
                yield event
                data = event.data
                if isinstance(data, Accepted) and data.request_id == request_id and data.build_id != own:
                    joined = data.build_id
                    break
        if joined is not None:
            async with self._feed(joined, None) as feed, aclosing(feed.read()) as events:
                async for event in events:
                    yield event

    async def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a build from its beginning to its end. An unknown id is waited for.

        `since`: the time of the build's request, if known; it spares looking for the beginning in the index.
        Raises TopologyMismatch when the tenant has no stream.
        """
        async with self._feed(build_id, since) as feed, aclosing(feed.read()) as events:
            async for event in events:
                yield event

    async def all(self, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield all events of the tenant indefinitely, each id once; lines may be repeated under other ids.

        Starts with the content of the hub's queue if there is a `name`, otherwise with now. `since`: start with the
        stream from that moment on. Raises TopologyMismatch when the tenant has no stream.
        """
        queued = self._queued_feed if since is None else None
        from_now = queued is None and since is None
        feed = queued or self._new_tenant_feed(since or datetime.now(UTC), read_first=since is not None)
        if since is not None:
            # The stream may store an event after it was read, although the queue delivered it before this feed began.
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, feed.mark_gap_possible)
        feed.readers += 1
        try:
            async with aclosing(feed.read(from_now=from_now)) as events:
                async for event in events:
                    yield event
        finally:
            feed.readers -= 1
            if feed is not self._queued_feed:
                await self._close_tenant_feed(feed)

    async def _dispatch(self, consumer: EventConsumer) -> None:
        now = asyncio.get_running_loop().time
        connections = 0
        async with aclosing(consumer.events()) as events:
            async for received in events:
                if received is None:
                    connections += 1
                    self._recent.mark_gap_possible(now())
                    if connections > 1:
                        for feed in [*self._feeds.values(), *self._tenant_feeds]:
                            feed.mark_gap_possible()
                    continue
                event, body = received
                self._recent.add(event, body, now())
                for feed in (*self._feeds_by_key.get(event.stream_filter, ()), *self._tenant_feeds):
                    feed.push(event)

    @asynccontextmanager
    async def _feed(
        self, build_id: str, since: datetime | None, submitted_at: float | None = None
    ) -> AsyncIterator[BuildFeed]:
        """Share the feed of a build among its readers; it begins at `submitted_at` if that is given."""
        key = (build_id, submitted_at)
        feed = self._feeds.get(key)
        if feed is None or feed.failed:
            now = asyncio.get_running_loop().time()
            since = None if since is None else since - CLOCK_SLACK
            recent = RecentBuild(self._recent, build_id, submitted_at or _at(since, now))
            feed = BuildFeed(self.history, build_id, since=since, recent=recent, limit=self._feed_limit)
            for event in recent.newest(now):
                feed.push(event)
            self._feeds[key] = feed
            self._feeds_by_key[build_id].add(feed)
        feed.readers += 1
        try:
            yield feed
        finally:
            feed.readers -= 1
            if not feed.readers:
                await self._drop(key, feed)

    async def _drop(self, key: tuple[str, float | None], feed: BuildFeed) -> None:
        if self._feeds.get(key) is feed:
            del self._feeds[key]
        self._feeds_by_key[feed.key].discard(feed)
        if not self._feeds_by_key[feed.key]:
            del self._feeds_by_key[feed.key]
        await feed.close()

    def _new_tenant_feed(self, beginning: datetime, *, read_first: bool) -> TenantFeed:
        feed = TenantFeed(
            self.history,
            self._tenant,
            since=beginning - CLOCK_SLACK,
            read_first=read_first,
            limit=lambda: MAX_FEED_BYTES,
        )
        self._tenant_feeds.add(feed)
        return feed

    async def _close_tenant_feed(self, feed: TenantFeed) -> None:
        self._tenant_feeds.discard(feed)
        await feed.close()

    async def _close_feeds(self) -> None:
        for feed in [*self._feeds.values(), *self._tenant_feeds]:
            await feed.close()

    def _feed_limit(self) -> int:
        return max(MIN_FEED_BYTES, min(MAX_FEED_BYTES, MEMORY_BYTES // max(1, len(self._feeds))))

    async def _connect_requester(self) -> RequestPublisher:
        """Connect on the first request, separately: during an alarm RabbitMQ stops reading from publishers."""
        async with self._connecting:
            if self._requester is None:
                connection = ManagedChannel("requester", self._amqp)
                await self._open.enter_async_context(connected(connection, self._wait_seconds))
                publisher = ConfirmedPublisher(connection, self._amqp)
                self._requester = RequestPublisher(publisher, self._tenant)
        return self._requester


def _at(moment: datetime | None, now: float) -> float | None:
    """Return a moment as a time of the event loop, which is `now` now."""
    return None if moment is None else now - (datetime.now(UTC) - moment).total_seconds()


def _is_build_id(text: str) -> bool:
    try:
        return uuid.UUID(text).version == 5
    except ValueError:
        return False
