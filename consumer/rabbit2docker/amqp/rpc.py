"""Single calls to RabbitMQ, such as declarations, on a connection of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from rabbit2docker.amqp.connection import BROKEN, close, is_down, open_connection
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.retry import is_cancelled

T = TypeVar("T")

_ANSWERS: Final = (ChannelNotFoundEntity, ChannelAccessRefused, ChannelPreconditionFailed)


class Rpc:
    """Calls on a channel of its own. An answer that closes the channel costs a new channel, not the connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Take the addresses; the first call connects."""
        self._endpoint = endpoint
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._channels = 0

    async def call(self, work: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        """Run one call and return its result. Raises the library's errors of `_ANSWERS`, AccessRefused, BrokerUnavailable."""
        try:
            return await work(await self._open_channel())
        except _ANSWERS as error:
            if isinstance(error, ChannelNotFoundEntity) and is_down(error):
                raise BrokerUnavailable(str(error)) from error
            raise
        except BROKEN as error:
            raise BrokerUnavailable(f"RabbitMQ did not answer: {error}") from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise BrokerUnavailable("The connection to RabbitMQ was stuck.") from None

    async def _open_channel(self) -> AbstractChannel:
        if self._connection is None or self._connection.is_closed:
            self._connection, self._channel, self._channels = await open_connection(self._endpoint), None, 0
        if self._channel is None or self._channel.is_closed:
            opened = await self._connection.channel(publisher_confirms=False)
            self._channel = await opened.get_underlay_channel()
            self._channels += 1
        return self._channel

    async def close_if_worn(self) -> None:
        """Close the connection if it has had several channels: the library frees what they hold only with it."""
        if self._channels > 1:
            await self.close()

    async def close(self) -> None:
        """Close the connection; the next call opens another one."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await close(connection)
