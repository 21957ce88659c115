"""Publishing on a channel of the client library, with frames encoded here and as many messages in a write as there are.

The library publishes one message after the other: each waits until the one before has been written. Confirms, returns
and the end of the channel are still the library's, which reads them; it learns here which message has which number.
"""

import asyncio
from typing import Final, NamedTuple

import aiormq
from aio_pika.abc import AbstractChannel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError

from rabbit2docker.amqp.outgoing import OutgoingMessage

FULL_SECONDS: Final = 0.01
"""Until the next try where the library has frames to write already, such as a heartbeat."""


class _Confirmation(asyncio.Future[object]):
    """A confirm that may come after its publisher gave up: an error in the library's reader ends the whole channel."""

    def set_exception(self, exception: type | BaseException, /) -> None:
        """Take RabbitMQ's refusal, unless it comes too late."""
        if not self.done():
            super().set_exception(exception)

    def set_result(self, result: object, /) -> None:
        """Take RabbitMQ's confirm, unless it comes too late."""
        if not self.done():
            super().set_result(result)


class _Unsent(NamedTuple):
    frames: bytes
    message_id: str
    confirmation: _Confirmation


async def confirmed_channel(channel: AbstractChannel) -> "ConfirmedChannel":
    """Return what publishes on a channel; nothing else may publish on it."""
    underlay = await channel.get_underlay_channel()
    assert isinstance(underlay, aiormq.Channel)
    return ConfirmedChannel(underlay)


class ConfirmedChannel:
    """Publishes on one channel; has no end of its own."""

    def __init__(self, channel: aiormq.Channel) -> None:
        """Take a channel with confirms, whose returned messages are errors."""
        self._channel = channel
        self._unsent: list[_Unsent] = []
        self._unconfirmed: set[_Confirmation] = set()
        self._is_writing = False
        # The library fails its futures when the channel closes; this one stands for all of ours.
        self._end: asyncio.Future[object] = channel.create_future()
        self._end.add_done_callback(self._fail_all)

    async def publish(self, exchange: str, key: str, message: OutgoingMessage, *, timeout: float) -> None:
        """Return once RabbitMQ has confirmed.

        Raises what the library raises: PublishError for a message without a queue, DeliveryError for a refused one,
        TimeoutError, and the reason why the channel closed. A message that was not written by then is dropped.
        """
        if self._end.done():
            raise ChannelInvalidStateError(f"{self._channel!r} closed")
        channel, confirmation = self._channel, _Confirmation(loop=asyncio.get_running_loop())
        frames = message.frames(channel.number, exchange, key, channel.max_content_size)
        self._unsent.append(_Unsent(frames, message.message_id, confirmation))
        self._unconfirmed.add(confirmation)
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write)
        try:
            async with asyncio.timeout(timeout):
                await confirmation
        finally:
            self._unconfirmed.discard(confirmation)
            channel.message_id_delivery_tag.pop(message.message_id, None)

    def _write(self) -> None:
        """Hand everything to the library's writer; what comes until it is in the socket is written together."""
        loop, queue = asyncio.get_running_loop(), self._channel.write_queue
        if self._end.done():
            return
        if queue.full():
            loop.call_later(FULL_SECONDS, self._write)
            return
        unsent, self._unsent = [one for one in self._unsent if not one.confirmation.done()], []
        self._is_writing = bool(unsent)
        if unsent:
            for one in unsent:
                self._await_confirm(one)
            written: asyncio.Future[None] = loop.create_future()
            written.add_done_callback(lambda _: self._write())
            queue.put_nowait(ChannelFrame(b"".join([one.frames for one in unsent]), False, written))

    def _await_confirm(self, sent: _Unsent) -> None:
        channel = self._channel
        channel.delivery_tag += 1
        channel.confirmations[channel.delivery_tag] = sent.confirmation
        channel.message_id_delivery_tag[sent.message_id] = channel.delivery_tag

    def _fail_all(self, end: "asyncio.Future[object]") -> None:
        reason = None if end.cancelled() else end.exception()
        for confirmation in self._unconfirmed:
            confirmation.set_exception(reason or ChannelInvalidStateError(f"{self._channel!r} closed"))
