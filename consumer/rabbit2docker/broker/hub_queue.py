"""A hub's own durable queue: what happened while the hub was away waits there."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from rabbit2docker.broker.broker import until_up
from rabbit2docker.broker.link import BROKEN, Link
from rabbit2docker.broker.topology import hub_queue_arguments
from rabbit2docker.errors import AccessRefused
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE, hub_bindings, hub_queue

PREFETCH: Final = 100


class HubQueue:
    """Declares `hub.<name>.events`, binds it for its tenants, and reads it over reconnects."""

    def __init__(self, settings: AmqpSettings, name: str, tenants: Sequence[str]) -> None:
        """Take the hub's name, which is its tenant where it has one tenant only."""
        self.link = Link("hub", settings, setup=self._consume)
        self._queue = hub_queue(name)
        self._keys = [key for tenant in tenants for key in hub_bindings(tenant)]
        self._incoming: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def _consume(self, channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(self._queue, durable=True, arguments=hub_queue_arguments())
        for key in self._keys:
            await queue.bind(RESULTS_EXCHANGE, key)
        await channel.set_qos(prefetch_count=PREFETCH)
        await queue.consume(self._on_message)

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        self._incoming.put_nowait(message)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield events, each at least once; one counts as taken when the next is asked for.

        The queue is bounded and drops its oldest when a hub stays away too long: `merging.Merged` shows what is missing,
        the tenant's stream has it.
        """
        while True:
            message = await self._incoming.get()
            with suppress(UnreadableEvent):
                yield read_event(message.headers, message.body)
            with suppress(*BROKEN):  # it comes again
                await message.ack()


@asynccontextmanager
async def hub_events(
    settings: AmqpSettings, name: str, tenants: Sequence[str], *, wait_seconds: float
) -> AsyncIterator[AsyncGenerator[Event, None]]:
    """Give the events of a hub's queue; raises AccessRefused, or BrokerUnavailable when nobody answers in time."""
    hub = HubQueue(settings, name, tenants)
    running = asyncio.create_task(hub.link.run(), name="hub queue")
    try:
        await until_up(hub.link, running, wait_seconds)
        yield hub.events()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, AccessRefused):
            await running
