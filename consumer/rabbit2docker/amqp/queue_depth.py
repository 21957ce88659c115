"""How many messages wait in a queue, as RabbitMQ tells anybody who knows its name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from rabbit2docker.amqp.connection import close, is_cancelled, open_connection, parse_url, translated
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.settings import AmqpSettings

ANSWER_SECONDS: Final = 10.0
"""RabbitMQ may take this long to answer."""

Depth = Callable[[], Awaitable[int]]


@asynccontextmanager
async def looking(settings: AmqpSettings, queue: str) -> AsyncIterator[Depth]:
    """Give a function that returns how many messages wait in a queue; those in a consumer's hand are not among them.

    It has a connection of its own: RabbitMQ closes the channel of who asks for a queue that is not there, and does not
    read from who publishes during an alarm. Up to RabbitMQ 4.2.5 anybody may ask; from 4.2.6 and 4.3.0 on only who has
    a permission on the queue, and hubs are given none: each of them would open the requests of other tenants.
    Entering and asking raise AccessRefused, TopologyMismatch when there is no such queue, or BrokerUnavailable.
    """
    url = parse_url(settings, "queue position")
    connection = await open_connection(url)
    try:
        with translated(url):
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()

        async def depth() -> int:
            try:
                with translated(url):
                    # Passive: it changes nothing.
                    found = await channel.queue_declare(queue, passive=True, timeout=ANSWER_SECONDS)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise BrokerUnavailable("The connection to RabbitMQ was stuck.") from None
            return found.message_count or 0

        yield depth
    finally:
        await close(connection)
