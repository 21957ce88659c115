"""Reader of a tenant's stream of events: from any time to its end, for one build or all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, translated
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import STREAM_FILTER_HEADER, Event, UnreadableEvent, read_event

PREFETCH: Final = 500
"""Ten times faster than 10, as each acknowledgement allows one more message."""
FIRST_SECONDS: Final = 2.0
"""A stream that sends nothing for this long after the start has no matching message."""
QUIET_SECONDS: Final = 1.0
"""A filter may leave out the last message, so that the stream ends silently: this long without a message is the end."""
LAST_SECONDS: Final = 0.1
"""The last messages of a stream arrive together; later ones were published after the lookup began."""

Offset = int | str | datetime
Messages = asyncio.Queue[AbstractIncomingMessage | None]


@asynccontextmanager
async def reading(
    channel: AbstractChannel,
    stream: str,
    *,
    offset: Offset,
    only: Sequence[str] = (),
    prefetch: int = PREFETCH,
) -> AsyncIterator[Messages]:
    """Open a queue that fills with the messages from `offset` on; None in it means that the channel has closed.

    `only`: filter values; RabbitMQ leaves out most other messages. Acknowledging a message allows one more, nothing
    else. About `prefetch` messages have been sent in vain when reading ends.
    """
    incoming: Messages = asyncio.Queue()

    def on_close(sender: Any, error: BaseException | None) -> None:
        incoming.put_nowait(None)

    async def on_message(message: AbstractIncomingMessage) -> None:
        incoming.put_nowait(message)

    arguments: dict[str, Any] = {"x-stream-offset": offset}
    if only:
        arguments["x-stream-filter"] = list(only)
    channel.close_callbacks.add(on_close)
    await channel.set_qos(prefetch_count=prefetch)
    queue = await channel.get_queue(stream, ensure=False)
    tag = await queue.consume(on_message, arguments=arguments)
    try:
        yield incoming
    finally:
        channel.close_callbacks.discard(on_close)
        if not channel.is_closed:
            with suppress(*BROKEN):
                await queue.cancel(tag)


async def _take(incoming: Messages) -> AbstractIncomingMessage:
    """Return the next message. Raises BrokerUnavailable."""
    message = await incoming.get()
    if message is None:
        raise BrokerUnavailable("The connection to RabbitMQ was lost.")
    await message.ack()
    return message


@dataclass(frozen=True, slots=True)
class Last:
    """The last message of a stream."""

    offset: int
    filter_value: str | None
    """Its filter value; None: it has none, so that every filter leaves it out."""


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events of a stream."""

    events: list[Event]
    next: Offset
    """Offset of the next page."""
    is_last: bool
    """True once the page reaches the message that was the last of the stream."""


class StreamReader:
    """Reads events of one stream. Methods raise BrokerUnavailable, TopologyMismatch, AccessRefused."""

    def __init__(self, connection: ManagedChannel, stream: str) -> None:
        """Read over this connection."""
        self._connection = connection
        self._stream = stream

    async def last(self) -> Last | None:
        """Return the present last message; None if the stream is empty."""
        found: Last | None = None
        channel = await self._connection.channel()
        with translated(self._connection.url):
            async with reading(channel, self._stream, offset="last") as incoming:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FIRST_SECONDS) as patience:
                        while True:
                            message = await _take(incoming)
                            if found is None:
                                # Not extended for each message: a busy stream never falls silent.
                                patience.reschedule(asyncio.get_running_loop().time() + LAST_SECONDS)
                            value = message.headers.get(STREAM_FILTER_HEADER)
                            found = Last(_offset_of(message), None if value is None else str(value))
        return found

    async def page(
        self, last: Last, *, offset: Offset, only: Sequence[str], size: int, size_bytes: int
    ) -> Page:
        """Return the events from `offset` on, none after `last`; `only`, filter values, leaves out most others.

        A page ends after about `size` messages or `size_bytes`, whichever comes first.
        """
        if isinstance(offset, int) and offset > last.offset:
            return Page([], offset, is_last=True)
        channel = await self._connection.channel()
        # A filter drops messages silently. The last message is let through, so that the end is seen instead of guessed
        # from silence.
        wanted = [*only, last.filter_value] if only and last.filter_value is not None else only
        events: list[Event] = []
        number, taken, taken_bytes, patience = -1, 0, 0, FIRST_SECONDS
        # Messages sent in vain cost small pages most.
        prefetch = min(PREFETCH, max(1, size // 4))
        with translated(self._connection.url):
            async with reading(
                channel, self._stream, offset=offset, only=wanted, prefetch=prefetch
            ) as incoming:
                while number < last.offset and taken < size and taken_bytes < size_bytes:
                    try:
                        # Waiting on a local queue may be interrupted; a cancelled call to RabbitMQ closes the channel.
                        async with asyncio.timeout(patience):
                            message = await _take(incoming)
                    except TimeoutError:
                        return Page(events, offset if number < 0 else number + 1, is_last=True)
                    number, taken, patience = _offset_of(message), taken + 1, QUIET_SECONDS
                    taken_bytes += len(message.body)
                    if number <= last.offset:
                        with suppress(UnreadableEvent):
                            events.append(read_event(message.headers, message.body))
        return Page(events, min(number, last.offset) + 1, is_last=number >= last.offset)


def _offset_of(message: AbstractIncomingMessage) -> int:
    number = message.headers.get("x-stream-offset")
    return number if isinstance(number, int) else 0
