"""The number of messages that wait in a queue."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from rabbit2docker.amqp.connection import close, is_cancelled, open_connection, translated
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.settings import AmqpSettings

ANSWER_SECONDS: Final = 10.0
"""Limit for RabbitMQ's answer."""

Depth = Callable[[], Awaitable[int]]


@asynccontextmanager
async def depth_reader(settings: AmqpSettings, queue: str) -> AsyncIterator[Depth]:
    """Open a connection, and give a function that returns how many messages wait in a queue, unacknowledged ones aside.

    The connection is separate because RabbitMQ closes the channel on which a missing queue is declared passively, and
    stops reading from publishers during an alarm. Up to RabbitMQ 4.2.5 any user may do this; from 4.2.6 and 4.3.0 on
    it takes a permission on the queue, which hubs do not get: it would open the requests of other tenants to them.
    Entering and calling raise AccessRefused, TopologyMismatch when the queue does not exist, or BrokerUnavailable.
    """
    connection = await open_connection(Endpoint(settings, "queue position"))
    try:
        with translated(connection.url):
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()

        async def depth() -> int:
            try:
                with translated(connection.url):
                    # Passive: changes nothing.
                    found = await channel.queue_declare(queue, passive=True, timeout=ANSWER_SECONDS)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise BrokerUnavailable("The connection to RabbitMQ was stuck.") from None
            return found.message_count or 0

        yield depth
    finally:
        await close(connection)
