"""Reading one stream page by page over a connection that is restored: what fails for a while is read again."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from rabbit2docker.amqp.connection import ManagedChannel
from rabbit2docker.amqp.stream import PREFETCH, Last, Offset, Page, StoredEvent, StreamReader
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.retry import Backoff, is_cancelled, retry_forever
from rabbit2docker_schemas.ids import EventId

T = TypeVar("T")

FIRST_PAGE_EVENTS: Final = 32
"""The first page is soon complete, and each further one is larger."""
GROWTH: Final = 4
PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
SMALL_PAGE_EVENTS: Final = 100
SMALL_PAGE_BYTES: Final = 512 * 1024
"""A page stays in memory until its reader is through, and there may be many slow readers."""
CONCURRENT_PAGES: Final = 4
"""Each page takes a consumer on the stream and the memory of a few hundred messages."""
RETRY_PAUSES: Final = (0.3,)
"""Seconds between tries to read from the stream."""


class _TemporaryFailure(Exception):
    """Reading from the stream failed in a way that passes by itself."""


@dataclass(slots=True)
class ReadingConnection:
    """The shared parts of all streams that are read over one connection."""

    channel: ManagedChannel
    reconnect_seconds: float | None = None
    """Limit for a lost connection to come back; None: wait indefinitely."""
    on_progress: Callable[[float], None] = lambda share: None
    """Called with the share of a stream that has been read, from 0 to 1."""
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_PAGES))

    async def wait(self) -> None:
        """Wait for the connection. Raises BrokerUnavailable when it does not come back."""
        try:
            async with asyncio.timeout(self.reconnect_seconds):
                await self.channel.channel()
        except TimeoutError:
            raise BrokerUnavailable(f"The connection to RabbitMQ was lost: {self.channel.problem}.") from None


class StreamPages:
    """The content of one stream.

    Methods raise TopologyMismatch when there is no such stream, AccessRefused when RabbitMQ denies access, and
    BrokerUnavailable when a lost connection does not come back.
    """

    def __init__(self, connection: ReadingConnection, stream: str) -> None:
        """Read this stream over this connection."""
        self._connection = connection
        self._stream = stream
        self._reader = StreamReader(connection.channel, stream)
        self._was_read = False
        self._finding_last = asyncio.Lock()
        self._lookups_begun = self._lookups_ended = 0
        self._last: Last | None = None

    async def last(self) -> Last | None:
        """Return the last message of the stream; None if it is empty. Concurrent calls share at most two lookups."""
        before = self._lookups_begun
        async with self._finding_last:
            if self._lookups_ended <= before:  # else a lookup has both begun and ended since
                self._lookups_begun += 1
                self._last = await self._retry(self._reader.last)
                self._lookups_ended = self._lookups_begun
            return self._last

    async def first(self) -> StoredEvent | None:
        """Return the first message; None if it is no event. The stream must not be empty."""
        return await self._retry(partial(self._reader.event_at, 0))

    async def offset_at(self, moment: datetime, last: Last, *, before: datetime | None = None) -> int:
        """Return an offset as StreamReader.offset_at does."""
        return await self._retry(partial(self._reader.offset_at, moment, last, before=before))

    async def pages(
        self,
        *,
        offset: Offset,
        only: Sequence[str] = (),
        small: bool = False,
        prefetch: int = PREFETCH,
        last: Last | None = None,
        end: EventId | None = None,
    ) -> AsyncGenerator[Page, None]:
        """Yield the content of the stream from `offset` on, up to the present end or to `last` or the event `end`.

        `only`: filter values; most events of other builds are left out. `small`: pages for slow and numerous readers.
        """
        last = last or await self.last()
        if last is None:
            return
        most, size_bytes = (SMALL_PAGE_EVENTS, SMALL_PAGE_BYTES) if small else (PAGE_EVENTS, PAGE_BYTES)
        size = FIRST_PAGE_EVENTS
        start = first = await self._start(offset, last)
        backoff = Backoff(RETRY_PAUSES)
        while True:
            read = partial(
                self._reader.page,
                last,
                offset=start,
                only=only,
                size=size,
                size_bytes=size_bytes,
                prefetch=prefetch,
                end=end,
            )
            try:
                page = await self._try(read)
            except _TemporaryFailure:
                await backoff.sleep()
                await self._check_not_replaced(last)
                continue
            yield page
            if page.is_last:
                return
            start, size = page.next, min(size * GROWTH, most)
            self._connection.on_progress((start - first) / (last.offset + 1 - first))

    async def _start(self, offset: Offset, last: Last) -> int:
        match offset:
            case datetime():
                return await self.offset_at(offset, last)
            case int():
                return offset
            case _:
                return 0

    async def _check_not_replaced(self, last: Last) -> None:
        """Raise TopologyMismatch if the stream is another one by now, in which `last` may never come."""
        found = await self.last()
        if found is None or found.offset < last.offset:
            raise TopologyMismatch(
                f"The stream {self._stream} was deleted and declared again while it was read: its content is gone."
            )

    async def _retry(self, read: Callable[[], Awaitable[T]]) -> T:
        return await retry_forever(partial(self._try, read), on=_TemporaryFailure, pauses=RETRY_PAUSES)

    async def _try(self, read: Callable[[], Awaitable[T]]) -> T:
        await self._connection.wait()
        try:
            async with self._connection.slots:
                found = await read()
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise _TemporaryFailure from error
        except BrokerUnavailable as error:
            if self._connection.channel.is_closing:
                raise
            raise _TemporaryFailure from error
        except TopologyMismatch as error:
            # RabbitMQ does not find its own streams for a moment after its start.
            if not self._was_read:
                raise
            raise _TemporaryFailure from error
        self._was_read = True
        return found
