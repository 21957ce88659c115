"""A tenant's builds, for any number of readers over one connection and one queue."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from cachetools import LRUCache
from pydantic import SecretStr

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.event_consumer import EventConsumer
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.amqp.stream import Offset
from rabbit2docker.client.buffers import RecentEvents
from rabbit2docker.client.feed import SETTLE_SECONDS, BuildFeed, TenantFeed
from rabbit2docker.client.history import CLOCK_SLACK, History, joined_offset
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import Priority

MEMORY_BYTES: Final = 64 * 1024 * 1024
"""What all builds that are read may keep in memory together."""
STORY_BYTES: Final = 2 * 1024 * 1024
LEAST_BYTES: Final = 128 * 1024
RECENT_BYTES: Final = 8 * 1024 * 1024
ASKED: Final = 10_000
"""Requests of our own that are remembered; most are followed at once."""


class BuildEvents:
    """What happens to a tenant's builds, and a way to ask for them. Use it with `async with`.

    A connection that is lost is made again, for ever, and what was missed meanwhile is read from the tenant's stream;
    lines that are nowhere any more are told as a `Gap`. Readers may be as many and as slow as they like: what they
    have not read yet is not kept for them, but read again from the stream.
    """

    def __init__(
        self,
        url: str | AmqpSettings,
        tenant: str = "default",
        name: str | None = None,
        *,
        wait_seconds: float | None = None,
    ) -> None:
        """Take RabbitMQ's URL, and the hub's `name` if its events are to wait for it while it is away.

        A name belongs to one program at a time: a second one waits until the first has gone. `wait_seconds`: give up
        when RabbitMQ does not answer at the beginning; without it that is waited for, too.
        Raises ConfigurationError for a URL that cannot be one.
        """
        self._amqp = url if isinstance(url, AmqpSettings) else AmqpSettings(url=SecretStr(url))
        self._tenant = tenant
        self._name = name
        self._wait_seconds = wait_seconds
        self.history = History(self._amqp, tenant, wait_seconds=wait_seconds)
        """The past: what is known by now of one build, or of all since a moment."""
        self._stories: dict[tuple[str, float | None], BuildFeed] = {}
        self._by_key: defaultdict[str, set[BuildFeed]] = defaultdict(set)
        self._tenants: set[TenantFeed] = set()
        self._from_entry: TenantFeed | None = None
        self._asked: LRUCache[str, float] = LRUCache(ASKED)
        self._recent = RecentEvents(0.0, limit=RECENT_BYTES)
        self._requester: RequestPublisher | None = None
        self._listening: ManagedChannel | None = None
        self._connecting = asyncio.Lock()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to listen: from now on nothing is missed.

        Raises AccessRefused; TopologyMismatch when exchange or queue are missing or differ; BrokerUnavailable when
        RabbitMQ does not answer within `wait_seconds`.
        """
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(self.history)
            queue = EventConsumer(self._amqp, self._name, self._tenant)
            self._listening = queue.link
            if self._name is not None:
                self._from_entry = self._new_tenant_story(datetime.now(UTC), read_first=False)
                opening.push_async_callback(self._leave, self._from_entry)
            dispatching = asyncio.create_task(self._dispatch(queue), name="dispatching events")
            opening.push_async_callback(_end, dispatching)
            await opening.enter_async_context(connected(queue.link, self._wait_seconds, queue.mismatch))
            opening.push_async_callback(self._close_stories)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. Who still reads gets BrokerUnavailable."""
        await self._open.aclose()

    @property
    def problem(self) -> str:
        """Return why no events come from RabbitMQ now, for people; empty while they do."""
        return "not connected" if self._listening is None else self._listening.problem

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Ask for a build and return the request's id, a fresh one if it names none.

        Raises BrokerUnavailable when RabbitMQ does not confirm: asking again with the same id builds once.
        """
        named = request.model_copy(update={"request_id": request.request_id or uuid.uuid4().hex})
        requester = await self._connected_requester()
        self._asked[str(named.request_id)] = asyncio.get_running_loop().time()
        return await requester.request(named, priority)

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """End a build, for everybody who shares it, or take back a request, by the id of either.

        `spare_joined`: a build of others that the request has joined goes on.
        """
        wish = (
            CancelRequest(build_id=id_, requester=by)
            if _is_build_id(id_)
            else CancelRequest(request_id=id_, requester=by, spare_joined=spare_joined)
        )
        await (await self._connected_requester()).cancel(wish)

    async def of(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield the events of a build or of a request, whichever the id is of."""
        events = self.of_build(id_) if _is_build_id(id_) else self.of_request(id_)
        async with aclosing(events):
            async for event in events:
                yield event

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield what happens to a request and its build, from the answer to the end; a rejection is an end, too.

        An id that nobody knows is waited for. Of a request that was asked for here, it begins with asking: an older
        request that had the same id is not meant. `since`: when it was asked for elsewhere, if that is known; without
        it the whole stream is looked through. Raises TopologyMismatch when the tenant has no stream.
        """
        own = build_id_of(self._tenant, request_id)
        asked = self._asked.get(request_id)
        if asked is not None and not self._recent.has_all_since(asked):
            asked = None
        joined: str | None = None
        offset: Offset = "first" if since is None else since - CLOCK_SLACK
        async with self._story(own, offset, asked) as story, aclosing(story.read()) as events:
            async for event in events:
                yield event
                data = event.data
                if isinstance(data, Accepted) and data.request_id == request_id and data.build_id != own:
                    joined = data.build_id
                    break
        if joined is not None:
            async with self._story(joined, joined_offset()) as story, aclosing(story.read()) as events:
                async for event in events:
                    yield event

    async def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens to a build, from its beginning to its end; one that nobody knows is waited for.

        `since`: when it was asked for, where that is known; without it the whole stream is looked through.
        Raises TopologyMismatch when the tenant has no stream.
        """
        offset: Offset = "first" if since is None else since - CLOCK_SLACK
        async with self._story(build_id, offset) as story, aclosing(story.read()) as events:
            async for event in events:
                yield event

    async def all(self, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield all events of the tenant, for ever, each id once; repeated lines may come under other ids.

        With a `name` it begins with what has waited in the hub's queue, otherwise with now. `since`: read the stream
        from that moment first. Raises TopologyMismatch when the tenant has no stream.
        """
        story = self._from_entry if since is None else None
        from_now = story is None and since is None
        story = story or self._new_tenant_story(since or datetime.now(UTC), read_first=since is not None)
        if since is not None:
            # What our queue has given before the story began may have reached the stream after it was read.
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, story.interrupted)
        story.readers += 1
        try:
            async with aclosing(story.read(from_now=from_now)) as events:
                async for event in events:
                    yield event
        finally:
            story.readers -= 1
            if story is not self._from_entry:
                await self._leave(story)

    async def _dispatch(self, queue: EventConsumer) -> None:
        now = asyncio.get_running_loop().time
        connections = 0
        async with aclosing(queue.events()) as arrivals:
            async for event in arrivals:
                if event is None:
                    connections += 1
                    self._recent.interrupted(now())
                    if connections > 1:
                        for each in [*self._stories.values(), *self._tenants]:
                            each.interrupted()
                    continue
                self._recent.add(event, now())
                for story in (*self._by_key.get(event.stream_filter, ()), *self._tenants):
                    story.hear(event)

    @asynccontextmanager
    async def _story(
        self, build_id: str, offset: Offset, asked: float | None = None
    ) -> AsyncIterator[BuildFeed]:
        """Give the story of a build, which all share who read it; from `asked` on where that is given."""
        key = (build_id, asked)
        story = self._stories.get(key)
        if story is None or story.failed:
            story = BuildFeed(
                self.history, build_id, offset=offset, read_first=asked is None, limit=self._story_limit
            )
            for event in self._recent.about(build_id, since=asked or 0.0):
                story.hear(event)
            self._stories[key] = story
            self._by_key[build_id].add(story)
        story.readers += 1
        try:
            yield story
        finally:
            story.readers -= 1
            if not story.readers:
                await self._forget(key, story)

    async def _forget(self, key: tuple[str, float | None], story: BuildFeed) -> None:
        if self._stories.get(key) is story:
            del self._stories[key]
        self._by_key[story.key].discard(story)
        if not self._by_key[story.key]:
            del self._by_key[story.key]
        await story.close()

    def _new_tenant_story(self, beginning: datetime, *, read_first: bool) -> TenantFeed:
        offset = beginning - CLOCK_SLACK
        story = TenantFeed(
            self.history, self._tenant, offset=offset, read_first=read_first, limit=lambda: STORY_BYTES
        )
        self._tenants.add(story)
        return story

    async def _leave(self, story: TenantFeed) -> None:
        self._tenants.discard(story)
        await story.close()

    async def _close_stories(self) -> None:
        for story in [*self._stories.values(), *self._tenants]:
            await story.close()

    def _story_limit(self) -> int:
        return max(LEAST_BYTES, min(STORY_BYTES, MEMORY_BYTES // max(1, len(self._stories))))

    async def _connected_requester(self) -> RequestPublisher:
        """Connect at the first wish: RabbitMQ does not read from who publishes during an alarm, so not with the rest."""
        async with self._connecting:
            if self._requester is None:
                link = ManagedChannel("requester", self._amqp)
                await self._open.enter_async_context(connected(link, self._wait_seconds))
                self._requester = RequestPublisher(ConfirmedPublisher(link, self._amqp), self._tenant)
        return self._requester


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _is_build_id(text: str) -> bool:
    try:
        return uuid.UUID(text).version == 5
    except ValueError:
        return False
