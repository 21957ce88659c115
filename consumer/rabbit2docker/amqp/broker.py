"""The two connections of a consumer: one to take requests, one to publish.

RabbitMQ stops reading from a connection that publishes during an alarm; acknowledgements would be stuck behind.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.declare import declare_if_allowed
from rabbit2docker.amqp.publisher import ConfirmedPublisher, record_blocked
from rabbit2docker.amqp.request_consumer import RequestConsumer
from rabbit2docker.logs import get_logger
from rabbit2docker.settings import Settings

log = get_logger()


class Broker:
    """The service's view of RabbitMQ: requests in, events out."""

    def __init__(self, settings: Settings) -> None:
        """Create the parts; nothing connects before `run`. Raises ConfigurationError for an invalid URL."""
        self._settings = settings
        self._publishing = ManagedChannel("publish", settings.amqp, probe=record_blocked)
        self.publisher = ConfirmedPublisher(self._publishing, settings.amqp)
        self.source = RequestConsumer(settings.amqp, self.publisher)

    async def run(self) -> None:
        """Stay connected until cancelled. Raises AccessRefused or TopologyMismatch at the start."""
        if self._settings.amqp.declare:
            await declare_if_allowed(self._settings)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publishing.run(), name="publishing connection")
            group.create_task(self.source.connection.run(), name="consuming connection")

    def problems(self) -> dict[str, str]:
        """Return the reason why a connection is down, by its role; an empty text if it is up."""
        return {
            connection.role: "" if connection.is_connected else connection.problem
            for connection in (self._publishing, self.source.connection)
        }


@asynccontextmanager
async def publishing(settings: Settings, *, wait_seconds: float) -> AsyncIterator[ConfirmedPublisher]:
    """Open a publisher on a connection of its own, for programs that do not consume.

    Raises AccessRefused, or BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`.
    """
    connection = ManagedChannel("requester", settings.amqp)
    async with connected(connection, wait_seconds):
        yield ConfirmedPublisher(connection, settings.amqp)
