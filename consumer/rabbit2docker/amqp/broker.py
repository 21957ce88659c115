"""Both connections of a consumer: one to take requests, one to publish.

RabbitMQ stops reading from a connection that publishes during an alarm: acknowledgements would be stuck behind.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.declare import declare_if_allowed
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.request_consumer import RequestConsumer
from rabbit2docker.settings import Settings

log = structlog.get_logger()


class Broker:
    """What the service needs of RabbitMQ."""

    def __init__(self, settings: Settings) -> None:
        """Make the parts; nothing is connected before `run`. Raises ConfigurationError for a bad URL."""
        self._settings = settings
        self._publish = ManagedChannel("publish", settings.amqp, missing=self._note_blocked)
        self.publisher = ConfirmedPublisher(self._publish, settings.amqp)
        self.source = RequestConsumer(settings.amqp, self.publisher)

    async def run(self) -> None:
        """Keep both connections up until cancelled. Raises AccessRefused or TopologyMismatch at the beginning."""
        if self._settings.amqp.declare:
            await declare_if_allowed(self._settings)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish.run(), name="publishing connection")
            group.create_task(self.source.link.run(), name="consuming connection")

    def problems(self) -> dict[str, str]:
        """Return why a connection is not up, by its role; empty texts when all is well."""
        return {link.role: "" if link.is_up else link.problem for link in (self._publish, self.source.link)}

    @staticmethod
    async def _note_blocked(channel: object) -> None:
        await ConfirmedPublisher.note_blocked(channel)  # type: ignore[arg-type]


@asynccontextmanager
async def publishing(settings: Settings, *, wait_seconds: float) -> AsyncIterator[ConfirmedPublisher]:
    """Give a publisher on one connection, for programs that do not consume.

    Raises AccessRefused, or BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`.
    """
    link = ManagedChannel("requester", settings.amqp)
    async with connected(link, wait_seconds):
        yield ConfirmedPublisher(link, settings.amqp)
