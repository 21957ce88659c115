"""Reader of a stream of events: from any offset or time up to the message that was the last when reading began.

The end of a read is an offset, never silence: RabbitMQ may be silent for minutes while it looks for the next match.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from aio_pika import IncomingMessage
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.abc import DeliveredMessage

from rabbit2docker.amqp.connection import ManagedChannel, translated
from rabbit2docker.errors import AccessRefused, BrokerUnavailable
from rabbit2docker.logs import get_logger
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.cloudevents import (
    STREAM_FILTER_HEADER,
    Event,
    UnreadableEvent,
    event_time,
    read_event,
)
from rabbit2docker_schemas.ids import EventId

log = get_logger()

PREFETCH: Final = 500
"""Ten times faster than 10, as each acknowledgement allows one more message."""
FEW: Final = 10
"""Prefetch for reading one message or a small page: one value for all, as each change costs a call."""
LAST_PREFETCHES: Final = (FEW, 1_000, 65_535)
"""Tried one after the other until the last chunk of a stream fits: it has up to 65,535 messages, most often a few."""
EMPTY_SECONDS: Final = 2.0
"""A stream that has a message sends its last chunk at once, if the machine is not busy: one that has sent nothing for
this long is empty if RabbitMQ counts nothing in it either. The count alone is no proof: it is seconds old."""
SILENT_SECONDS: Final = 10.0
"""How long to wait while RabbitMQ counts messages."""
SEEK_SECONDS: Final = 1.0
"""A time after the last message is a position where nothing comes. After this long an earlier time is tried."""
SEEK_SLACKS: Final = (timedelta(0), timedelta(minutes=10), timedelta(days=1))
"""How far a publisher's clock may be ahead of RabbitMQ's."""

Offset = int | str | datetime
Messages = asyncio.Queue[AbstractIncomingMessage | None]


@dataclass(slots=True)
class _Starter:
    """Starts the consumers of a channel one after the other: its prefetch holds for the next one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    prefetch: int = 0
    tasks: TaskSet = field(default_factory=TaskSet)


_starters: WeakKeyDictionary[AbstractChannel, _Starter] = WeakKeyDictionary()


@asynccontextmanager
async def reading(
    channel: AbstractChannel,
    stream: str,
    *,
    offset: Offset,
    only: Sequence[str] = (),
    unfiltered: bool = False,
    prefetch: int = PREFETCH,
) -> AsyncIterator[Messages]:
    """Open a queue that fills with the messages from `offset` on; None in it: channel closed, or stream deleted.

    `only`: filter values; RabbitMQ leaves out most other messages, but with `unfiltered` none that has no value. It
    sends the first matches once it has found `prefetch` of them or has reached the end of the stream. Acknowledging a
    message allows one more, nothing else. About `prefetch` messages have been sent in vain when reading ends.
    """
    incoming: Messages = asyncio.Queue()

    def on_end(*event: Any) -> None:
        incoming.put_nowait(None)

    async def on_message(message: DeliveredMessage) -> None:
        incoming.put_nowait(IncomingMessage(message, no_ack=False))

    arguments: dict[str, Any] = {"x-stream-offset": offset}
    if only:
        arguments |= {"x-stream-filter": list(only), "x-stream-match-unfiltered": unfiltered}
    channel.close_callbacks.add(on_end)
    # Past the library's queue, whose two tasks for each message may run after an answer that came later.
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(on_end)
    starter = _starters.setdefault(channel, _Starter())
    async with starter.lock:
        if starter.prefetch != prefetch:
            await channel.set_qos(prefetch_count=prefetch)
            starter.prefetch = prefetch
        consumer = await underlay.basic_consume(stream, on_message, arguments=arguments)
    try:
        yield incoming
    finally:
        channel.close_callbacks.discard(on_end)
        underlay.on_consumer_cancel_callbacks.discard(on_end)
        if not channel.is_closed and consumer.consumer_tag is not None:
            # Not waited for: RabbitMQ answers only once it has found its next match or the end of the stream.
            starter.tasks.run(_end(underlay, consumer.consumer_tag, incoming), "end of a consumer")


async def _end(channel: UnderlayChannel, consumer_tag: str, incoming: Messages) -> None:
    """Cancel a consumer and acknowledge what it has received in vain, which RabbitMQ would remember."""
    with suppress(Exception):  # the client raises that class itself when its channel closes in between
        await channel.basic_cancel(consumer_tag)
        while not incoming.empty() and (message := incoming.get_nowait()) is not None:
            await message.ack()


async def _take(incoming: Messages) -> AbstractIncomingMessage:
    """Return the next message, and allow one more. Raises BrokerUnavailable."""
    message = received(await incoming.get())
    await message.ack()
    return message


async def _receive_within(seconds: float, incoming: Messages) -> AbstractIncomingMessage | None:
    """Return the next message, or None if there is none after `seconds`. Raises BrokerUnavailable."""
    try:
        # Waiting on a local queue may be interrupted; a cancelled call to RabbitMQ closes the channel.
        async with asyncio.timeout(seconds):
            message = await incoming.get()
    except TimeoutError:
        return None
    return received(message)


def received(message: AbstractIncomingMessage | None) -> AbstractIncomingMessage:
    """Return what was taken from `Messages`. Raises BrokerUnavailable if it says that the channel has closed."""
    if message is None:
        raise BrokerUnavailable("The connection to RabbitMQ was lost.")
    return message


async def _wait_for_answer(channel: AbstractChannel) -> None:
    """Wait until RabbitMQ has worked off what the channel was sent so far, with a call that changes nothing."""
    await (await channel.get_underlay_channel()).confirm_delivery()


@dataclass(frozen=True, slots=True)
class Last:
    """The last message of a stream."""

    offset: int
    filter_value: str | None
    """Its filter value; None: it has none, so that a filter leaves it out unless it includes those."""
    time: datetime | None
    """Time of the event; None if it is none."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event and its place in the stream."""

    offset: int
    event: Event


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events of a stream."""

    stored: list[StoredEvent]
    next: int
    """Offset of the next page."""
    is_last: bool
    """True once the page reaches the message that was the last of the stream, or the event at which reading ends."""

    @property
    def events(self) -> list[Event]:
        """The events without their places."""
        return [stored.event for stored in self.stored]


def report_missing_index(error: Exception) -> None:
    """Log that the builds of a tenant have no index that can be read."""
    log.warning(
        "no index of builds: the whole history is searched, which takes long where it is large",
        reason=str(error),
    )


class StreamReader:
    """Reads events of one stream. Methods raise BrokerUnavailable, TopologyMismatch, AccessRefused."""

    def __init__(self, connection: ManagedChannel, stream: str) -> None:
        """Read over this connection."""
        self._connection = connection
        self._stream = stream

    async def last(self) -> Last | None:
        """Return the last message of the stream, or one that has come since; None if the stream is empty."""
        previous: int | None = None
        chunk: list[AbstractIncomingMessage] = []
        for prefetch in LAST_PREFETCHES:
            chunk = await self._last_chunk(prefetch)
            if not chunk:
                return None
            # A chunk that another one follows is behind: everything in it came before the newer one.
            if len(chunk) < prefetch or previous not in (None, _offset_of(chunk[0])):
                break
            previous = _offset_of(chunk[0])
        return _as_last(chunk[-1])

    async def _last_chunk(self, prefetch: int) -> list[AbstractIncomingMessage]:
        """Return the messages of the last chunk and what follows it at once, at most `prefetch` in all."""
        found: list[AbstractIncomingMessage] = []
        channel = await self._connection.channel()
        with translated(self._connection.url):
            async with reading(channel, self._stream, offset="last", prefetch=prefetch) as incoming:
                if first := await self._first(incoming):
                    found.append(first)
                # RabbitMQ sends all of the chunk that the prefetch allows before it answers.
                await _wait_for_answer(channel)
                while not incoming.empty():
                    found.append(received(incoming.get_nowait()))
                for message in found:
                    await message.ack()
        return found

    async def _first(self, incoming: Messages) -> AbstractIncomingMessage | None:
        """Return the first message; None if the stream is empty. Raises BrokerUnavailable if it sends nothing at all."""
        silent_until = monotonic() + SILENT_SECONDS
        while monotonic() < silent_until:
            if first := await _receive_within(EMPTY_SECONDS, incoming):
                return first
            if not await self._counts_messages():
                return None
        # As of a stream that RabbitMQ is about to find again after a crash: another consumer may be sent something.
        raise BrokerUnavailable(f"The stream {self._stream} has messages, but sends none.")

    async def _counts_messages(self) -> bool:
        """Return whether RabbitMQ knows of messages; False if the user may not look, as in RabbitMQ 4.3 for most."""
        try:
            async with self._connection.further_channel() as channel:
                queue = await channel.declare_queue(self._stream, passive=True)
        except AccessRefused:
            return False
        return bool(queue.declaration_result.message_count)

    async def event_at(self, offset: int) -> StoredEvent | None:
        """Return the message at an offset, or the first of the stream if that is gone; None if it is no event."""
        channel = await self._connection.channel()
        with translated(self._connection.url):
            async with reading(channel, self._stream, offset=offset, prefetch=FEW) as incoming:
                return _as_event(await _take(incoming))

    async def offset_at(self, moment: datetime, last: Last, *, before: datetime | None = None) -> int:
        """Return the offset of the first message that RabbitMQ received at `moment` or later, or of an earlier one.

        It is never later than `last`. `before`: the time of an event that must not be passed by.
        """
        for slack in SEEK_SLACKS:
            start = min(moment, last.time or moment) - slack
            channel = await self._connection.channel()
            with translated(self._connection.url):
                async with reading(channel, self._stream, offset=start, prefetch=FEW) as incoming:
                    message = await _receive_within(SEEK_SECONDS, incoming)
                    if message is not None:
                        await message.ack()
            if message is None or _offset_of(message) > last.offset:
                continue
            found = event_time(message.headers)
            if before is None or (found is not None and found <= before):
                return _offset_of(message)
        return 0

    async def page(
        self,
        last: Last,
        *,
        offset: int,
        only: Sequence[str],
        size: int,
        size_bytes: int,
        prefetch: int = PREFETCH,
        end: EventId | None = None,
    ) -> Page:
        """Return the events from `offset` on, none after `last`; `only`, filter values, leaves out most others.

        A page ends after about `size` messages or `size_bytes` or the event `end`, whichever comes first.
        """
        if offset > last.offset:
            return Page([], offset, is_last=True)
        channel = await self._connection.channel()
        # A filter drops messages silently. The last message is let through, so that the end is seen.
        wanted = [*only, last.filter_value] if only and last.filter_value is not None else only
        stored: list[StoredEvent] = []
        number, taken, taken_bytes = -1, 0, 0
        # Messages sent in vain cost small pages most.
        allowed = min(prefetch, max(FEW, size // 4))
        with translated(self._connection.url):
            async with reading(
                channel,
                self._stream,
                offset=offset,
                only=wanted,
                unfiltered=last.filter_value is None,
                prefetch=allowed,
            ) as incoming:
                while number < last.offset and taken < size and taken_bytes < size_bytes:
                    message = await _take(incoming)
                    number, taken = _offset_of(message), taken + 1
                    taken_bytes += len(message.body)
                    if number <= last.offset and (found := _as_event(message)) is not None:
                        stored.append(found)
                        if found.event.id == end:
                            break
        is_over = number >= last.offset or (end is not None and stored[-1:] and stored[-1].event.id == end)
        return Page(stored, min(number, last.offset) + 1, is_last=bool(is_over))


def _offset_of(message: AbstractIncomingMessage) -> int:
    number = message.headers.get("x-stream-offset")
    return number if isinstance(number, int) else 0


def _as_event(message: AbstractIncomingMessage) -> StoredEvent | None:
    with suppress(UnreadableEvent):
        return StoredEvent(_offset_of(message), read_event(message.headers, message.body))
    return None


def _as_last(message: AbstractIncomingMessage) -> Last:
    value = message.headers.get(STREAM_FILTER_HEADER)
    return Last(_offset_of(message), None if value is None else str(value), event_time(message.headers))
