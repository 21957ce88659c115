"""A tenant's events live: from a hub's own durable queue, in which they wait while the hub is away, or a passing one."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_cancelled, translated
from rabbit2docker.amqp.topology import hub_queue_arguments, passing_queue_arguments
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE, hub_bindings, hub_queue, passing_queue

PREFETCH: Final = 200
IN_OTHER_HANDS: Final = "Another program reads the queue"
"""How a link's problem begins while another program has the hub's queue."""


class EventConsumer:
    """Declares the queue, binds it for its tenant, and reads it over reconnects; `link.run` has to run meanwhile."""

    def __init__(self, settings: AmqpSettings, name: str | None, tenant: str) -> None:
        """Take the hub's name, under which its durable queue is; None for a queue that ends with the connection."""
        self.link = ManagedChannel("hub", settings, setup=self._consume)
        self.mismatch: asyncio.Future[TopologyMismatch] = asyncio.get_running_loop().create_future()
        """Done when RabbitMQ had no exchange to bind to, or another queue of this name."""
        self._name = name
        self._tenant = tenant
        # Bounded by the prefetch: RabbitMQ sends no more before what is in here was acknowledged.
        self._incoming: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()

    async def _consume(self, channel: AbstractChannel) -> None:
        try:
            with translated(self.link.url):
                queue = await self._declare(channel)
                for key in hub_bindings(self._tenant):
                    await queue.bind(RESULTS_EXCHANGE, key)
        except TopologyMismatch as error:
            if not self.mismatch.done():
                self.mismatch.set_result(error)
            raise
        await channel.set_qos(prefetch_count=PREFETCH)
        self._incoming.put_nowait(None)
        try:
            # Two that shared a queue would each have half of the events.
            await queue.consume(self._on_message, exclusive=True)
        except ChannelAccessRefused as error:
            if "exclusive" not in str(error):
                raise
            raise BrokerUnavailable(f"{IN_OTHER_HANDS} {queue.name}.") from error

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        if self._name is not None:
            name = hub_queue(self._name)
            try:
                return await channel.declare_queue(name, durable=True, arguments=hub_queue_arguments())
            except ChannelPreconditionFailed as error:
                raise TopologyMismatch(f"The queue {name} exists with other arguments.") from error
        # A fresh name each time: after a reconnect, the queue before may still belong to a connection that lingers.
        name = passing_queue(self._tenant, uuid.uuid4().hex)
        return await channel.declare_queue(name, exclusive=True, arguments=passing_queue_arguments())

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        self._incoming.put_nowait(message)

    async def events(self) -> AsyncGenerator[Event | None, None]:
        """Yield events, each at least once; one counts as taken when the next is asked for.

        None stands where a connection begins: what was published before may have come, be on its way, or be lost.
        """
        while True:
            message = await self._incoming.get()
            if message is None:
                yield None
                continue
            with suppress(UnreadableEvent):
                event = read_event(message.headers, message.body)
                if event.tenant == self._tenant:  # a durable queue may be bound for others from earlier times
                    yield event
            try:
                await message.ack()
            except (*BROKEN, asyncio.CancelledError):  # it comes again
                if is_cancelled():
                    raise
