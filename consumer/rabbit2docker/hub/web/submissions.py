"""Requests of viewers: who wants the same at the same moment shares one."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import structlog

from rabbit2docker import metrics
from rabbit2docker.errors import (
    BrokerUnavailable,
    Rabbit2DockerError,
    StoreRefused,
    StoreUnavailable,
    TopologyMismatch,
)
from rabbit2docker.hub.store.models import BuildRecords
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE, BinderHubStream
from rabbit2docker.hub.web.queue_position import QueuePositions
from rabbit2docker.hub.web.resume import BinderHubCursor, asked_at, new_request_id
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Rejected
from rabbit2docker_schemas.ids import RequestId, request_event_id
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest

log = structlog.get_logger()

T = TypeVar("T")

RECORD_SECONDS: Final = 5.0
"""A build is asked for without a record of it when the database takes longer than this."""
ASK_SECONDS: Final = 20.0
"""RabbitMQ may take this long to confirm a request."""
NOTICE_SECONDS: Final = 2.0
"""Without an answer, a viewer is told after this long that the build waits."""


RateCheck = Callable[[], Awaitable[None]]
"""Raises what stands against a further request."""


async def _anybody() -> None:
    return


class Builds(Protocol):
    """What this needs of `BuildEvents`; tests have one in memory."""

    async def submit(self, request: BuildRequest) -> RequestId:
        """Ask for a build. Raises BrokerUnavailable."""

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """End a build, or take back a request, by the id of either. Raises BrokerUnavailable.

        `spare_joined`: a build of others that the request has joined goes on.
        """

    def of_request(self, request_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens to a request, which was made at `since`, and its build, to the end."""

    def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens to a build, which was asked for at `since`, from its beginning to its end."""


@dataclass(slots=True)
class _Shared:
    request_id: str
    until: float
    asking: "asyncio.Task[RequestId]"
    requesters: set[str | None]


class Submissions:
    """Asks for builds, and tells viewers what becomes of them."""

    def __init__(
        self,
        builds: Builds,
        records: BuildRecords,
        queueing: QueuePositions,
        *,
        tenant: str,
        share_seconds: float,
        keepalive_seconds: float,
    ) -> None:
        """Let requests for the same that come within `share_seconds` be one; a comment every `keepalive_seconds`."""
        self.queueing = queueing
        self._builds = builds
        self._records = records
        self._deciding: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._tenant = tenant
        self._share_seconds = share_seconds
        self._keepalive_seconds = keepalive_seconds
        self._shared: dict[tuple[str, str], _Shared] = {}

    async def submit_shared(self, request: BuildRequest, permit: RateCheck = _anybody) -> str:
        """Return the id of a request for this, one that another viewer has just made, or else an own if it is permitted.

        Raises BrokerUnavailable, AccessRefused, TopologyMismatch, or what `permit` raises.
        """
        key = (request.provider, request.spec)
        # One at a time, so that of all who come at once, one has to be permitted and the others share.
        async with self._deciding.setdefault(key, asyncio.Lock()):
            self._forget_old(asyncio.get_running_loop().time())
            shared = self._shared.get(key)
            if shared is None:
                await permit()
                shared = self._shared[key] = self._begin(request)
            else:
                metrics.HUB_REQUESTS.labels(outcome="shared").inc()
        try:
            # The viewer who came first may leave while others wait for the same answer.
            await asyncio.shield(shared.asking)
        except Rabbit2DockerError:
            self._forget(shared)
            raise
        if request.requester is not None and request.requester not in shared.requesters:
            shared.requesters.add(request.requester)
            await self._recorded(self._records.record_share(shared.request_id, request.requester))
        return shared.request_id

    def _begin(self, request: BuildRequest) -> _Shared:
        request_id = new_request_id(request.provider, request.spec)
        named = request.model_copy(update={"request_id": request_id})
        asking = asyncio.create_task(self.submit(named), name=f"asking for {request_id}")
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        until = asyncio.get_running_loop().time() + self._share_seconds
        return _Shared(request_id, until, asking, {request.requester})

    async def submit(self, request: BuildRequest, *, at: datetime | None = None) -> RequestId:
        """Ask for this under its own id, and remember who did. Raises BrokerUnavailable and what asking raises."""
        await self._recorded(self._records.record_request(request, at=at or datetime.now(UTC)))
        outcome, request_id = "unavailable", str(request.request_id)
        self.queueing.asked(request_id)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                asked = await self._builds.submit(request)
            outcome = "asked"
            return asked
        except TimeoutError as error:
            await self._untaken(request)
            raise BrokerUnavailable("RabbitMQ does not answer.") from error
        except Rabbit2DockerError:
            await self._untaken(request)
            raise
        finally:
            metrics.HUB_REQUESTS.labels(outcome=outcome).inc()
            if outcome != "asked":
                self.queueing.answered(request_id)

    async def _untaken(self, request: BuildRequest) -> None:
        """Remember that RabbitMQ did not confirm a request, so that nobody waits for it.

        Should it have taken it all the same, a build is accepted, and that counts.
        """
        kind = Rejected(
            request_id=str(request.request_id),
            reason=RejectReason.UNAVAILABLE,
            message="RabbitMQ did not take the request. Ask again in a minute.",
            retryable=True,
        )
        event_id = request_event_id(self._tenant, kind.request_id, kind.kind)
        event = Event(event_id, self._tenant, datetime.now(UTC), kind)
        await self._recorded(self._records.put([event]))

    async def _recorded(self, recording: Awaitable[None]) -> None:
        """Wait until it is remembered, but not for a database that is away.

        A build is worth more than its record: it is asked for all the same, and what happens to it waits in the hub's
        queue until the database is back; `accepted` says who has asked.
        """
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                await recording
        except (StoreUnavailable, StoreRefused, TimeoutError) as error:
            log.warning("a request is made without a record of it", why=str(error) or "no answer in time")

    def _forget_old(self, now: float) -> None:
        for key in [key for key, shared in self._shared.items() if shared.until <= now]:
            del self._shared[key]

    def _forget(self, shared: _Shared) -> None:
        for key in [key for key, other in self._shared.items() if other is shared]:
            del self._shared[key]

    def forget(self, request_id: str) -> None:
        """Share it no longer: who asks after its end wants another try."""
        for shared in [each for each in self._shared.values() if each.request_id == request_id]:
            self._forget(shared)

    async def follow(self, telling: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield what a viewer is to get, to the end; comments in between when nothing happens.

        Without an end of its own it stops only when the connection to RabbitMQ is closed by us: the viewer comes back.
        """
        request_id = telling.cursor.request_id
        try:
            async with aclosing(self._chunks(telling)) as chunks:
                async for chunk in chunks:
                    if telling.result:
                        self.forget(request_id)
                    if chunk:
                        yield chunk
                    if telling.result:
                        return
        except BrokerUnavailable:
            return
        except TopologyMismatch as error:
            yield telling.fail(f"The builds of this hub cannot be followed: {error}", 500)
            return
        yield telling.fail("It is not known how this build has ended. Please try again.", 500)

    async def _chunks(self, telling: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield what there is to be told: events, places in the queue until the first one, comments in silence."""
        cursor = telling.cursor
        has_only_waited = (cursor.told, cursor.attempt, cursor.line) == (1, 0, 0)
        since = asked_at(cursor.request_id) if has_only_waited else None

        def patience() -> float:
            return self._keepalive_seconds if telling.has_begun else NOTICE_SECONDS

        with self.queueing.watching(cursor.request_id, since) as place:
            items = with_keepalive(self._builds.of_request(cursor.request_id), patience, place.news)
            async with aclosing(items) as events:
                async for event in events:
                    if event is not None:
                        place.answered()
                        yield telling.tell(event)
                    elif (ahead := place.take()) is not None:
                        yield telling.queued(ahead)
                    else:
                        yield telling.waiting() or KEEPALIVE


async def start(
    submissions: Submissions,
    request: BuildRequest,
    resumed: BinderHubCursor | None,
    permit: RateCheck = _anybody,
) -> BinderHubStream:
    """Ask for a build if that is permitted, or go on where a viewer has stopped. Raises what asking raises."""
    if resumed is not None:
        metrics.HUB_REQUESTS.labels(outcome="resumed").inc()
    cursor = resumed or BinderHubCursor(await submissions.submit_shared(request, permit))
    return BinderHubStream(request.provider, request.spec, cursor)


def _no_news() -> None:
    return None


async def with_keepalive(
    items: AsyncGenerator[T, None],
    seconds: Callable[[], float],
    news: "Callable[[], asyncio.Future[None] | None]" = _no_news,
) -> AsyncGenerator[T | None, None]:
    """Yield the items, and None whenever none has come for `seconds`, or what `news` returns is done."""
    waiting: asyncio.Task[T] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(items))
            beside = news()
            either: set[asyncio.Future[Any]] = {waiting} if beside is None else {waiting, beside}
            done, _ = await asyncio.wait(either, timeout=seconds(), return_when=asyncio.FIRST_COMPLETED)
            if waiting not in done:
                yield None
                continue
            finished, waiting = waiting, None
            try:
                item = finished.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)
