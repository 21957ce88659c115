"""Streams builds to viewers of BinderHub's API."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

from rabbit2docker import metrics
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE, BinderHubStream
from rabbit2docker.hub.web.queue_position import QueuePositions
from rabbit2docker.hub.web.resume import BinderHubCursor, requested_at
from rabbit2docker.hub.web.submissions import Builds, RateCheck, Submissions, no_rate_check
from rabbit2docker_schemas.requests import BuildRequest

T = TypeVar("T")

FIRST_EVENT_SECONDS: Final = 2.0
"""A viewer gets `waiting` after this time if no event has come."""


class Viewers:
    """Opens streams for viewers and renders events and queue positions into them."""

    def __init__(
        self,
        builds: Builds,
        submissions: Submissions,
        queue_positions: QueuePositions,
        *,
        keepalive_seconds: float,
    ) -> None:
        """Take the parts; a silent stream gets a comment every `keepalive_seconds`."""
        self._builds = builds
        self._submissions = submissions
        self._queue_positions = queue_positions
        self._keepalive_seconds = keepalive_seconds

    async def open(
        self,
        request: BuildRequest,
        resumed: BinderHubCursor | None,
        rate_check: RateCheck = no_rate_check,
    ) -> BinderHubStream:
        """Submit the request, or resume at a viewer's position. Raises what submitting raises."""
        if resumed is not None:
            metrics.HUB_REQUESTS.labels(outcome="resumed").inc()
        cursor = resumed or BinderHubCursor(await self._submissions.submit_shared(request, rate_check))
        return BinderHubStream(request.provider, request.spec, cursor)

    async def stream(self, stream: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield the rest of a stream, with comments during silence.

        Without a final event it stops only if this program closes its connection to RabbitMQ; the viewer then reconnects.
        """
        request_id = stream.cursor.request_id
        try:
            async with aclosing(self._chunks(stream)) as chunks:
                async for chunk in chunks:
                    if stream.result:
                        self._submissions.stop_sharing(request_id)
                    if chunk:
                        yield chunk
                    if stream.result:
                        return
        except BrokerUnavailable:
            return
        except TopologyMismatch as error:
            yield stream.fail(f"The builds of this hub cannot be followed: {error}", 500)
            return
        yield stream.fail("The result of this build is unknown. Please try again.", 500)

    async def _chunks(self, stream: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield events, queue positions until the first event, and comments during silence."""
        cursor = stream.cursor
        may_be_queued = (cursor.events, cursor.attempt, cursor.line) == (1, 0, 0)
        since = requested_at(cursor.request_id) if may_be_queued else None

        def timeout() -> float:
            return self._keepalive_seconds if stream.has_begun else FIRST_EVENT_SECONDS

        with self._queue_positions.watch(cursor.request_id, since) as queue:
            items = with_keepalive(self._builds.of_request(cursor.request_id), timeout, queue.changed)
            async with aclosing(items) as events:
                async for event in events:
                    if event is not None:
                        queue.leave()
                        yield stream.render(event)
                    elif (ahead := queue.take()) is not None:
                        yield stream.queued(ahead)
                    else:
                        yield stream.waiting() or KEEPALIVE


def _never() -> None:
    return None


async def with_keepalive(
    items: AsyncGenerator[T, None],
    seconds: Callable[[], float],
    wake: "Callable[[], asyncio.Future[None] | None]" = _never,
) -> AsyncGenerator[T | None, None]:
    """Yield the items; None whenever none has come for `seconds`, or once the future from `wake` is done."""
    pending: asyncio.Task[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(items))
            extra = wake()
            either: set[asyncio.Future[Any]] = {pending} if extra is None else {pending, extra}
            done, _ = await asyncio.wait(either, timeout=seconds(), return_when=asyncio.FIRST_COMPLETED)
            if pending not in done:
                yield None
                continue
            finished, pending = pending, None
            try:
                item = finished.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
        await items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)
