"""Reading a tenant's stream of events: from any time, to its end or on and on, for one build or all."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from rabbit2docker.broker.link import BROKEN, Link, translated
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event

PREFETCH: Final = 500
"""Ten times faster than 10: each acknowledgement gives back one credit."""
FIRST_SECONDS: Final = 2.0
"""A stream that has sent nothing for this long after the beginning holds nothing of what was asked for."""
QUIET_SECONDS: Final = 1.0
"""A stream read through a filter ends silently: this long without a message is its end."""

Offset = int | str | datetime
Messages = asyncio.Queue[AbstractIncomingMessage | None]


@asynccontextmanager
async def reading(
    channel: AbstractChannel, stream: str, *, offset: Offset, only: Sequence[str] = ()
) -> AsyncIterator[Messages]:
    """Give a queue that fills with the messages from `offset` on; None in it means that the channel has ended.

    `only` has RabbitMQ leave out most of the others. Acknowledging gives back credit, nothing else.
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
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.get_queue(stream, ensure=False)
    tag = await queue.consume(on_message, arguments=arguments)
    try:
        yield incoming
    finally:
        channel.close_callbacks.discard(on_close)
        if not channel.is_closed:
            with suppress(*BROKEN):
                await queue.cancel(tag)


async def _take(incoming: Messages) -> tuple[int, Event | None]:
    """Return the next message's offset, and its event if it is one of this version. Raises BrokerUnavailable."""
    message = await incoming.get()
    if message is None:
        raise BrokerUnavailable("The connection to RabbitMQ was lost.")
    await message.ack()
    number = message.headers.get("x-stream-offset")
    event = None
    with suppress(UnreadableEvent):
        event = read_event(message.headers, message.body)
    return (number if isinstance(number, int) else 0), event


class StreamReader:
    """Reads events of one stream over a link; goes on behind the last one after the link was renewed."""

    def __init__(self, link: Link, stream: str) -> None:
        """Use the link's connection."""
        self._link = link
        self._stream = stream

    async def follow(self, *, offset: Offset, only: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        """Yield events for ever. Raises TopologyMismatch when there is no such stream, AccessRefused."""
        while True:
            channel = await self._link.channel()
            try:
                with translated(self._link.url):
                    async with reading(channel, self._stream, offset=offset, only=only) as incoming:
                        while True:
                            number, event = await _take(incoming)
                            offset = number + 1
                            if event is not None:
                                yield event
            except BrokerUnavailable:
                if self._link.is_closing:
                    raise
                await asyncio.sleep(0.1)  # the link may learn of it a moment later than we did

    async def to_the_end(self, *, offset: Offset, only: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        """Yield the events that are there now. Raises BrokerUnavailable, TopologyMismatch, AccessRefused."""
        channel = await self._link.channel()
        with translated(self._link.url):
            last = await self._last_offset(channel)
            if last is None:
                return
            number, patience = -1, FIRST_SECONDS
            async with reading(channel, self._stream, offset=offset, only=only) as incoming:
                while number < last:
                    try:
                        # Waiting in a queue may be interrupted; a call to RabbitMQ would close the channel.
                        number, event = await asyncio.wait_for(_take(incoming), patience)
                    except TimeoutError:
                        return
                    patience = QUIET_SECONDS
                    if event is not None:
                        yield event

    async def _last_offset(self, channel: AbstractChannel) -> int | None:
        last: int | None = None
        async with reading(channel, self._stream, offset="last") as incoming:
            with suppress(TimeoutError):
                while True:
                    patience = FIRST_SECONDS if last is None else 0.1
                    last, _ = await asyncio.wait_for(_take(incoming), patience)
        return last
