"""A tenant's live events, from a hub's durable queue, which fills while the hub is away, or from a temporary one."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aio_pika.abc import AbstractChannel, AbstractQueue
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource, ChannelPreconditionFailed
from cachetools import LRUCache

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, translated
from rabbit2docker.amqp.topology import hub_queue_arguments, temporary_queue_arguments
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.retry import is_cancelled
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
ACK_MESSAGES: Final = PREFETCH // 4
ACK_SECONDS: Final = 0.2
"""Messages, or the time after the first of them, after which all are acknowledged at once."""
DECODED_EVENTS: Final = 128
REBIND_SECONDS: Final = 10.0
"""RabbitMQ gives no notice when a binding is lost, as with an exchange that is deleted; binding again costs little."""
HUB_QUEUE_TYPES: Final = ("quorum", "classic")
QUEUE_IN_USE: Final = "Another program reads the queue"
"""Beginning of the connection's problem while another program holds the hub's queue."""

_decoded: Final[LRUCache[str, tuple[Mapping[str, Any], bytes, Event]]] = LRUCache(DECODED_EVENTS)
"""Events by their id: a program that has several queues receives each event several times within moments."""


def decode(headers: Mapping[str, Any], body: bytes) -> Event:
    """Parse an event, or return the result of parsing the same message before. Raises UnreadableEvent."""
    key = str(headers.get("ce-id"))
    if (known := _decoded.get(key)) is not None and known[1] == body and known[0] == headers:
        return known[2]
    event = read_event(headers, body)
    _decoded[key] = headers, body, event
    return event


class ReceivedEvent(NamedTuple):
    """An event, and the body of its message."""

    event: Event
    body: bytes


class Acknowledgements:
    """Acknowledges deliveries in the order in which they came, many at once."""

    def __init__(self) -> None:
        self._last: DeliveredMessage | None = None
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    async def add(self, delivery: DeliveredMessage) -> None:
        """Acknowledge a delivery soon, and with it all earlier ones of its channel."""
        self._last, self._count = delivery, self._count + 1
        if self._count >= ACK_MESSAGES:
            await self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_SECONDS, self._send_in_background)

    def _send_in_background(self) -> None:
        self._sending = asyncio.create_task(self._send(), name="acknowledging events")

    async def _send(self) -> None:
        self._stop_timer()
        delivery, self._last, self._count = self._last, None, 0
        if delivery is None or delivery.delivery_tag is None:
            return
        try:
            await delivery.channel.basic_ack(delivery.delivery_tag, multiple=True, wait=False)
        except (*BROKEN, asyncio.CancelledError):  # RabbitMQ redelivers them
            if is_cancelled():
                raise

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Acknowledge nothing more: RabbitMQ redelivers what is left."""
        self._stop_timer()
        if self._sending is not None:
            self._sending.cancel()


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
        self._incoming: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()

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
            # Two consumers of one queue would each get half of the events. Past aio-pika, which makes a task and an
            # object with all properties of each message.
            underlay = await channel.get_underlay_channel()
            await underlay.basic_consume(queue.name, self._on_message, exclusive=True)
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

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._incoming.put_nowait(message)

    async def events(self) -> AsyncGenerator[ReceivedEvent | None, None]:
        """Yield each event at least once; an event is acknowledged some time after the next one is requested.

        None marks the start of a connection: events published before it may have arrived, be under way, or be lost.
        """
        acknowledgements = Acknowledgements()
        try:
            while True:
                message = await self._incoming.get()
                if message is None:
                    yield None
                    continue
                with suppress(UnreadableEvent):
                    event = decode(message.header.properties.headers or {}, message.body)
                    if event.tenant == self._tenant:  # a durable queue may have bindings of earlier times
                        yield ReceivedEvent(event, message.body)
                await acknowledgements.add(message)
        finally:
            acknowledgements.close()
