"""Reading all messages of a stream as fast as RabbitMQ sends them, over a connection that is restored."""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage

from rabbit2docker.amqp.connection import ManagedChannel
from rabbit2docker.amqp.stream import Messages, Offset, StreamReader, reading, received
from rabbit2docker.clock import as_utc
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.retry import Backoff, is_cancelled

PREFETCH: Final = 1_000
BATCH: Final = 250
"""Messages that are handed on together at most."""
ACKNOWLEDGED: Final = PREFETCH // 4
"""Messages that are acknowledged together: each acknowledgement is a packet, and allows as many more messages."""
RETRY_PAUSES: Final = (0.3, 1.0, 2.0)
MISSING_SECONDS = 30.0
"""RabbitMQ does not find its own streams for a moment after its start. One missing for longer has been deleted."""


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message of a stream."""

    offset: int
    routing_key: str
    headers: Mapping[str, Any]
    body: bytes
    content_type: str | None
    message_id: str | None
    timestamp: datetime | None


class StreamScan:
    """Reads one stream from an offset on, each message once."""

    def __init__(
        self,
        connection: ManagedChannel,
        stream: str,
        offset: Offset,
        *,
        last: int | None = None,
        reconnect_seconds: float | None = None,
    ) -> None:
        """Read up to the offset `last`; without it, follow the stream indefinitely.

        `reconnect_seconds`: limit for a lost connection to come back; None: wait indefinitely.
        """
        self._connection = connection
        self._stream = stream
        self._next = offset
        self._last = last
        self._reconnect_seconds = reconnect_seconds
        self._was_read = False

    @property
    def is_over(self) -> bool:
        """Return whether everything up to the last message was read."""
        return self._last is not None and isinstance(self._next, int) and self._next > self._last

    async def batches(self) -> AsyncGenerator[list[StreamMessage], None]:
        """Yield messages in order, as many at a time as are there.

        Raises TopologyMismatch when there is no such stream or it was declared anew, AccessRefused, and
        BrokerUnavailable when a lost connection does not come back.
        """
        backoff = Backoff(RETRY_PAUSES)
        loop, missing_since = asyncio.get_running_loop(), math.inf
        while not self.is_over:
            await self._wait()
            try:
                async for batch in self._read():
                    backoff.reset()
                    missing_since = math.inf
                    yield batch
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
            except BrokerUnavailable:
                if self._connection.is_closing:
                    raise
            except TopologyMismatch:
                missing_since = min(missing_since, loop.time())
                if not self._was_read or loop.time() - missing_since >= MISSING_SECONDS:
                    raise
            else:
                continue
            await backoff.sleep()
            await self._check_not_replaced()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._reconnect_seconds):
                await self._connection.channel()
        except TimeoutError:
            raise BrokerUnavailable(
                f"The connection to RabbitMQ was lost: {self._connection.problem}."
            ) from None

    async def _read(self) -> AsyncGenerator[list[StreamMessage], None]:
        async with (
            self._connection.further_channel() as channel,
            reading(channel, self._stream, offset=self._next, prefetch=PREFETCH) as incoming,
        ):
            self._was_read = True
            unacknowledged = 0
            while not self.is_over:
                found = await _some(incoming)
                unacknowledged += len(found)
                if unacknowledged >= ACKNOWLEDGED:
                    await found[-1].ack(multiple=True)
                    unacknowledged = 0
                batch = [self._as_message(message) for message in found]
                yield [message for message in batch if self._last is None or message.offset <= self._last]

    def _as_message(self, message: AbstractIncomingMessage) -> StreamMessage:
        offset = message.headers.get("x-stream-offset")
        if not isinstance(offset, int):
            # Headers that cannot be decoded. It is at least the one after the last.
            offset = self._next if isinstance(self._next, int) else 0
        self._next = offset + 1
        return StreamMessage(
            offset=offset,
            routing_key=message.routing_key or "",
            headers=message.headers,
            body=message.body,
            content_type=message.content_type,
            message_id=message.message_id,
            timestamp=as_utc(message.timestamp) if message.timestamp else None,
        )

    async def _check_not_replaced(self) -> None:
        """Raise TopologyMismatch if the stream is another one by now, in which the last message may never come."""
        if not self._was_read or self._last is None:
            return
        try:
            found = await StreamReader(self._connection, self._stream).last()
        except (BrokerUnavailable, TopologyMismatch):
            return
        if found is None or found.offset < self._last:
            raise TopologyMismatch(
                f"The stream {self._stream} was deleted and declared again while it was read: its content is gone."
            )


async def _some(incoming: Messages) -> list[AbstractIncomingMessage]:
    """Return the messages that are there, at least one. Raises BrokerUnavailable once the channel has closed."""
    found = [received(await incoming.get())]
    while len(found) < BATCH and not incoming.empty():
        found.append(received(incoming.get_nowait()))
    return found
