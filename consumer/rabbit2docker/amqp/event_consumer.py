"""A tenant's live events, from a hub's durable queue, which fills while the hub is away, or from a temporary one."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource, ChannelPreconditionFailed

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_cancelled, translated
from rabbit2docker.amqp.topology import hub_queue_arguments, temporary_queue_arguments
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event
from rabbit2docker_schemas.routing import (
    RESULTS_EXCHANGE,
    hub_bindings,
    hub_lock,
    hub_queue,
    passing_queue,
)

PREFETCH: Final = 200
REBIND_SECONDS: Final = 10.0
"""RabbitMQ gives no notice when a binding is lost, as with an exchange that is deleted; binding again costs little."""
HUB_QUEUE_TYPES: Final = ("quorum", "classic")
QUEUE_IN_USE: Final = "Another program reads the queue"
"""Beginning of the connection's problem while another program holds the hub's queue."""


class EventConsumer:
    """Declares and binds the queue, and reads it across reconnects while `connection.run` runs."""

    def __init__(self, settings: AmqpSettings, name: str | None, tenant: str) -> None:
        """Take the hub's name, which names its durable queue; None for a queue that ends with the connection."""
        self.connection = ManagedChannel("hub", settings, setup=self._consume, probe=self._bind_again)
        self.mismatch: asyncio.Future[TopologyMismatch] = asyncio.get_running_loop().create_future()
        """Done when the exchange is missing, or the queue exists with other arguments."""
        self._name = name
        self._tenant = tenant
        self._type = settings.type_of_hub_queues
        self._other_types = [other for other in HUB_QUEUE_TYPES if other != self._type]
        self._queue: AbstractQueue | None = None
        self._bind_at = 0.0
        # Bounded by the prefetch: RabbitMQ sends no more until messages in here are acknowledged.
        self._incoming: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()

    async def _consume(self, channel: AbstractChannel) -> None:
        try:
            with translated(self.connection.url):
                queue = self._queue = await self._declare(channel)
                await self._bind(queue)
        except TopologyMismatch as error:
            if not self.mismatch.done():
                self.mismatch.set_result(error)
            raise
        await channel.set_qos(prefetch_count=PREFETCH)
        self._incoming.put_nowait(None)
        try:
            # Two consumers of one queue would each get half of the events.
            await queue.consume(self._on_message, exclusive=True)
        except ChannelAccessRefused as error:
            if "exclusive" not in str(error):
                raise
            raise BrokerUnavailable(f"{QUEUE_IN_USE} {queue.name}.") from error

    async def _bind(self, queue: AbstractQueue) -> None:
        for key in hub_bindings(self._tenant):
            await queue.bind(RESULTS_EXCHANGE, key)
        self._bind_at = asyncio.get_running_loop().time() + REBIND_SECONDS

    async def _bind_again(self, channel: AbstractChannel) -> str | None:
        """Bind the queue from time to time. A missing exchange closes the channel, and `_consume` waits for it."""
        if self._queue is None or asyncio.get_running_loop().time() < self._bind_at:
            return None
        try:
            await self._bind(self._queue)
        except (*BROKEN, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            return f"the queue cannot be bound: {error}"
        return None

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        if self._name is not None:
            return await self._declare_durable(channel, self._name)
        # A new name each time: after a reconnect, the previous queue may still belong to a lingering connection.
        name = passing_queue(self._tenant, uuid.uuid4().hex)
        return await channel.declare_queue(name, exclusive=True, arguments=temporary_queue_arguments())

    async def _declare_durable(self, channel: AbstractChannel, hub: str) -> AbstractQueue:
        name = hub_queue(hub)
        # RabbitMQ lets several programs consume a quorum queue, however exclusive they want to be.
        if self._type == "quorum":
            await self._lock(channel, hub)
        try:
            return await channel.declare_queue(name, durable=True, arguments=hub_queue_arguments(self._type))
        except ChannelPreconditionFailed as error:
            if not self._other_types:
                raise TopologyMismatch(f"The queue {name} exists with other arguments.") from error
            # The answer has closed the channel: the next one is for a queue of the other type.
            self._type = self._other_types.pop()
            raise BrokerUnavailable(f"The queue {name} may exist as a {self._type} queue.") from error

    async def _lock(self, channel: AbstractChannel, hub: str) -> None:
        """Make this program the only reader of the hub's queue for as long as its connection lasts."""
        try:
            await channel.declare_queue(hub_lock(hub), exclusive=True)
        except ChannelLockedResource as error:
            raise BrokerUnavailable(f"{QUEUE_IN_USE} {hub_queue(hub)}.") from error

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        self._incoming.put_nowait(message)

    async def events(self) -> AsyncGenerator[Event | None, None]:
        """Yield each event at least once; an event is acknowledged when the next one is requested.

        None marks the start of a connection: events published before it may have arrived, be under way, or be lost.
        """
        while True:
            message = await self._incoming.get()
            if message is None:
                yield None
                continue
            with suppress(UnreadableEvent):
                event = read_event(message.headers, message.body)
                if event.tenant == self._tenant:  # a durable queue may have bindings of earlier times
                    yield event
            try:
                await message.ack()
            except (*BROKEN, asyncio.CancelledError):  # RabbitMQ redelivers it
                if is_cancelled():
                    raise
