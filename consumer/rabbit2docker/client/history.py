"""What a tenant's stream holds: read by anybody who comes late, page by page, so that nobody who is slow holds it up."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self, TypeVar

from rabbit2docker.amqp.connection import ManagedChannel, connected, is_cancelled
from rabbit2docker.amqp.stream import Last, Offset, Page, StreamReader
from rabbit2docker.client.resequencer import Resequencer
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.routing import tenant_stream

T = TypeVar("T")

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
SMALL_PAGE_EVENTS: Final = 100
SMALL_PAGE_BYTES: Final = 512 * 1024
"""A page is kept until whoever reads it has read it, and there may be many of them, who are slow."""
AT_ONCE: Final = 4
"""Pages read at the same time; each takes a consumer on the stream and the memory of a few hundred messages."""
PAUSE_SECONDS: Final = 0.3
CLOCK_SLACK: Final = timedelta(seconds=10)
"""Clocks of different machines may differ; a stream's beginning is rough anyway."""
JOINED_SINCE: Final = timedelta(hours=25)
"""A build that a request joins began at most this long ago: no build may run longer than a day."""


def joined_offset() -> datetime:
    """Return from where to read all of a build that a request has joined just now."""
    return datetime.now(UTC) - JOINED_SINCE


class History:
    """The past of a tenant's builds, over one connection. A connection that is lost is made again, for ever.

    Methods raise TopologyMismatch when the tenant has no stream, and AccessRefused when RabbitMQ refuses us.
    """

    def __init__(self, amqp: AmqpSettings, tenant: str, *, wait_seconds: float | None = None) -> None:
        """Take the connection's settings; raises ConfigurationError for a URL that cannot be one."""
        self._link = ManagedChannel("history", amqp)
        self._stream = StreamReader(self._link, tenant_stream(tenant))
        self._tenant = tenant
        self._wait_seconds = wait_seconds
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._was_read = False
        self._looking = asyncio.Lock()
        self._looks = self._last_look = 0
        self._last: Last | None = None
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect. Raises AccessRefused; BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`."""
        await self._closing.enter_async_context(connected(self._link, self._wait_seconds))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._closing.aclose()

    async def pages(
        self, *, offset: Offset, only: Sequence[str] = (), small: bool = False
    ) -> AsyncGenerator[Page, None]:
        """Yield what there is now, from `offset` on; `only` leaves out most of what is about other builds.

        `small`: for those who may take their time over a page, and may be many.
        """
        last = await self._last_now()
        while last is not None:
            page = await self._insist(self._next_page(last, offset, only, small=small))
            yield page
            if page.is_last:
                return
            offset = page.next

    async def _last_now(self) -> Last | None:
        """Return the last message there is; all who ask at about the same time share two looks at the stream."""
        before = self._looks
        async with self._looking:
            if self._last_look <= before:  # else somebody has begun and ended one since
                self._looks += 1
                self._last = await self._insist(self._stream.last)
                self._last_look = self._looks
            return self._last

    def _next_page(
        self, last: Last, offset: Offset, only: Sequence[str], *, small: bool
    ) -> Callable[[], Awaitable[Page]]:
        size, size_bytes = (SMALL_PAGE_EVENTS, SMALL_PAGE_BYTES) if small else (PAGE_EVENTS, PAGE_BYTES)
        return lambda: self._stream.page(last, offset=offset, only=only, size=size, size_bytes=size_bytes)

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                async with self._slots:
                    found = await work()
                self._was_read = True
                return found
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
            except BrokerUnavailable:
                if self._link.is_closing:
                    raise
            except TopologyMismatch:
                # RabbitMQ does not know its own streams for a moment after it has started.
                if not self._was_read:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)

    async def so_far(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield what is known by now of a build, or of the build of a request, by the id of either."""
        own = build_id_of(self._tenant, id_)
        joined: str | None = None
        async for event in self._whole([id_, own], "first"):
            if isinstance(event.data, Accepted) and event.data.request_id == id_:
                joined = event.data.build_id if event.data.build_id != own else joined
            yield event
        if joined is not None:
            async for event in self._whole([joined], "first"):
                yield event

    async def _whole(self, keys: list[str], offset: Offset) -> AsyncGenerator[Event, None]:
        order = Resequencer()
        async with aclosing(self.pages(offset=offset, only=keys)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.stream_filter in keys:
                        for new in order.take(event):
                            yield new
        for new in order.give_up():
            yield new

    async def since(self, moment: datetime) -> AsyncGenerator[Event, None]:
        """Yield all events of the tenant from `moment` until now, repetitions included."""
        async with aclosing(self.pages(offset=moment)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.time >= moment - CLOCK_SLACK:
                        yield event
