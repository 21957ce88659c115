"""The past events of a tenant, read from its stream page by page, so that a slow reader holds up no other."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

from rabbit2docker.amqp.connection import ManagedChannel, connected, is_cancelled
from rabbit2docker.amqp.stream import Last, Offset, Page, StreamReader
from rabbit2docker.client.resequencer import Resequencer
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.retry import retry_forever
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
"""A page stays in memory until its reader is through, and there may be many slow readers."""
CONCURRENT_PAGES: Final = 4
"""Each page takes a consumer on the stream and the memory of a few hundred messages."""
RETRY_PAUSES: Final = (0.3,)
"""Seconds between tries to read from the stream."""
CLOCK_SLACK: Final = timedelta(seconds=10)
"""Difference allowed between the clocks of machines; a stream seeks by time only roughly anyway."""
MAX_BUILD_AGE: Final = timedelta(hours=25)
"""A build that a request joins began at most this long ago: no build may run longer than a day."""


class _TemporaryFailure(Exception):
    """Reading from the stream failed in a way that passes by itself."""


def joined_offset() -> datetime:
    """Return the stream offset from which all of a build can be read that a request has just joined."""
    return datetime.now(UTC) - MAX_BUILD_AGE


class History:
    """The past events of a tenant, over one connection that is restored indefinitely.

    Methods raise TopologyMismatch when the tenant has no stream, and AccessRefused when RabbitMQ denies access.
    """

    def __init__(self, amqp: AmqpSettings, tenant: str, *, wait_seconds: float | None = None) -> None:
        """Take the connection's settings; raises ConfigurationError for an invalid URL."""
        self._connection = ManagedChannel("history", amqp)
        self._stream = StreamReader(self._connection, tenant_stream(tenant))
        self._tenant = tenant
        self._wait_seconds = wait_seconds
        self._slots = asyncio.Semaphore(CONCURRENT_PAGES)
        self._was_read = False
        self._finding_last = asyncio.Lock()
        self._lookups_begun = self._lookups_ended = 0
        self._last: Last | None = None
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect. Raises AccessRefused; BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`."""
        await self._closing.enter_async_context(connected(self._connection, self._wait_seconds))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._closing.aclose()

    async def pages(
        self, *, offset: Offset, only: Sequence[str] = (), small: bool = False
    ) -> AsyncGenerator[Page, None]:
        """Yield the present content of the stream from `offset` on.

        `only`: filter values; most events of other builds are left out. `small`: pages for slow and numerous readers.
        """
        last = await self._find_last()
        while last is not None:
            page = await self._retry(self._next_page(last, offset, only, small=small))
            yield page
            if page.is_last:
                return
            offset = page.next

    async def _find_last(self) -> Last | None:
        """Return the last message of the stream. Concurrent calls share at most two lookups."""
        before = self._lookups_begun
        async with self._finding_last:
            if self._lookups_ended <= before:  # else a lookup has both begun and ended since
                self._lookups_begun += 1
                self._last = await self._retry(self._stream.last)
                self._lookups_ended = self._lookups_begun
            return self._last

    def _next_page(
        self, last: Last, offset: Offset, only: Sequence[str], *, small: bool
    ) -> Callable[[], Awaitable[Page]]:
        size, size_bytes = (SMALL_PAGE_EVENTS, SMALL_PAGE_BYTES) if small else (PAGE_EVENTS, PAGE_BYTES)
        return lambda: self._stream.page(last, offset=offset, only=only, size=size, size_bytes=size_bytes)

    async def _retry(self, read: Callable[[], Awaitable[T]]) -> T:
        return await retry_forever(partial(self._try, read), on=_TemporaryFailure, pauses=RETRY_PAUSES)

    async def _try(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            async with self._slots:
                found = await read()
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise _TemporaryFailure from error
        except BrokerUnavailable as error:
            if self._connection.is_closing:
                raise
            raise _TemporaryFailure from error
        except TopologyMismatch as error:
            # RabbitMQ does not find its own streams for a moment after its start.
            if not self._was_read:
                raise
            raise _TemporaryFailure from error
        self._was_read = True
        return found

    async def so_far(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield the events so far of a build, or of a request and its build, by the id of either."""
        own = build_id_of(self._tenant, id_)
        joined: str | None = None
        async for event in self._ordered([id_, own], "first"):
            if isinstance(event.data, Accepted) and event.data.request_id == id_:
                joined = event.data.build_id if event.data.build_id != own else joined
            yield event
        if joined is not None:
            async for event in self._ordered([joined], "first"):
                yield event

    async def _ordered(self, keys: list[str], offset: Offset) -> AsyncGenerator[Event, None]:
        order = Resequencer()
        async with aclosing(self.pages(offset=offset, only=keys)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.stream_filter in keys:
                        for new in order.push(event):
                            yield new
        for new in order.flush():
            yield new

    async def since(self, moment: datetime) -> AsyncGenerator[Event, None]:
        """Yield all events of the tenant from `moment` until now, repetitions included."""
        async with aclosing(self.pages(offset=moment)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.time >= moment - CLOCK_SLACK:
                        yield event
