"""Confirmed publishing: a message is out when RabbitMQ says so, and is sent again until it does."""

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractExchange, DeliveryMode
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, DeliveryError, PublishError
from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_cancelled
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import CONTENT_TYPE, Event, event_type
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE

log = structlog.get_logger()

PAUSES: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
BLOCKED_CHECK_SECONDS: Final = 0.05
UNHEARD_SECONDS: Final = 30.0
"""Events of a tenant that reach no queue are sent again for so long: right after its start RabbitMQ can confirm what it
has brought nowhere. A tenant that has no stream at all holds nobody up for longer."""
UNHEARD_TENANTS: Final = 1000


class _Unrouted(TopologyMismatch):
    """RabbitMQ has no queue for the message."""


def make_message(
    body: bytes,
    headers: Mapping[str, Any],
    *,
    message_id: str | None = None,
    correlation_id: str | None = None,
    content_type: str | None = CONTENT_TYPE,
    type_: str | None = None,
    timestamp: datetime | None = None,
) -> aio_pika.Message:
    """Return a persistent message; without a `message_id` it gets a fresh one.

    Two publishes of the same message_id in flight would take each other's returns: each try needs its own.
    """
    return aio_pika.Message(
        body,
        headers=dict(headers),
        content_type=content_type,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=message_id or uuid.uuid4().hex,
        correlation_id=correlation_id,
        type=type_,
        timestamp=timestamp or datetime.now(UTC),
        app_id="rabbit2docker",
    )


class ConfirmedPublisher:
    """Publishes on one link. At most `publish_window` messages are unconfirmed, at most `outbox_size` wait."""

    def __init__(self, link: ManagedChannel, settings: AmqpSettings) -> None:
        """Use the link's channel, whichever it is at the time."""
        self._link = link
        self._timeout = settings.publish_timeout
        self._window = asyncio.Semaphore(settings.publish_window)
        self._limit = settings.outbox_size
        self._waiting = 0
        self._exchanges: dict[str, AbstractExchange] = {}
        self._exchanges_of = -1
        self._unheard_since: LRUCache[str, float] = LRUCache(UNHEARD_TENANTS)

    async def publish(self, event: Event) -> None:
        """Return when the event is confirmed; see broker.base.Publisher."""
        body, headers = event.body(), event.headers()

        def message() -> aio_pika.Message:
            return make_message(
                body,
                headers,
                correlation_id=event.subject,
                type_=event_type(event.kind),
                timestamp=event.time,
            )

        with metrics.EVENT_PUBLISH_SECONDS.time():
            while True:
                try:
                    await self.send(
                        RESULTS_EXCHANGE, event.routing_key, message, patient=True, unrouted=False
                    )
                except _Unrouted:
                    if self._is_unheard(event.tenant):
                        return
                    await asyncio.sleep(PAUSES[2])
                else:
                    break
        self._unheard_since.pop(event.tenant, None)
        metrics.EVENTS_PUBLISHED.labels(kind=event.kind).inc()

    def _is_unheard(self, tenant: str) -> bool:
        """Tell whether nothing of this tenant has reached a queue for so long that it is not waited for any more."""
        metrics.EVENTS_UNROUTED.inc()
        now = asyncio.get_running_loop().time()
        if tenant not in self._unheard_since:
            self._unheard_since[tenant] = now
            log.warning("events of a tenant reach no queue, they are sent again", tenant=tenant)
        if now - self._unheard_since[tenant] < UNHEARD_SECONDS:
            return False
        log.warning("an event reaches nobody: `topology declare` makes the tenant's stream", tenant=tenant)
        return True

    async def send(
        self,
        exchange: str,
        key: str,
        message: Callable[[], aio_pika.Message],
        *,
        patient: bool,
        unrouted: bool = True,
    ) -> None:
        """Publish what `message` makes until it is confirmed and in a queue.

        `patient`: wait for as long as RabbitMQ, or the exchange, is away, and if `unrouted` also for a queue; otherwise
        the first refusal is raised.
        Raises BrokerUnavailable, TopologyMismatch, AccessRefused.
        """
        if self._waiting >= self._limit:
            raise BrokerUnavailable(f"{self._waiting} messages wait for RabbitMQ already.")
        self._waiting += 1
        metrics.OUTBOX.set(self._waiting)
        try:
            for tries in count():
                try:
                    return await self._try(exchange, key, message)
                except (BrokerUnavailable, TopologyMismatch, AccessRefused) as error:
                    given_up = isinstance(error, _Unrouted) and not unrouted
                    if self._link.is_closing or not patient or given_up:
                        raise
                    self._tell(error, tries)
                pause = PAUSES[min(tries, len(PAUSES) - 1)]
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        finally:
            self._waiting -= 1
            metrics.OUTBOX.set(self._waiting)

    @staticmethod
    def _tell(error: Exception, tries: int) -> None:
        metrics.EVENT_PUBLISH_RETRIES.inc()
        if tries in (1, 5) or tries % 50 == 0:
            log.warning(
                "RabbitMQ has not confirmed a message, sending it again", why=str(error), tries=tries + 1
            )

    async def _try(self, exchange: str, key: str, message: Callable[[], aio_pika.Message]) -> None:
        channel = await self._link.channel()
        target = await self._exchange(channel, exchange)
        try:
            async with self._window:
                await target.publish(message(), key, mandatory=True, timeout=self._timeout)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise BrokerUnavailable("The connection to RabbitMQ was stuck.") from None
        except PublishError as error:
            raise _Unrouted(
                f"No queue takes messages with the key {key} of {exchange}. `rabbit2docker topology check` says more."
            ) from error
        except DeliveryError as error:
            raise BrokerUnavailable(
                "RabbitMQ does not take the message: a queue is full or has no majority."
            ) from error
        except ChannelNotFoundEntity as error:
            raise TopologyMismatch(
                f"RabbitMQ has no exchange {exchange}. `rabbit2docker topology declare` makes it."
            ) from error
        except ChannelAccessRefused as error:
            raise AccessRefused(f"RabbitMQ does not let us publish {key} to {exchange}.") from error
        except BROKEN as error:
            raise BrokerUnavailable(
                f"RabbitMQ did not confirm: {str(error) or type(error).__name__}"
            ) from error

    async def _exchange(self, channel: AbstractChannel, name: str) -> AbstractExchange:
        if self._exchanges_of != self._link.generation:
            self._exchanges, self._exchanges_of = {}, self._link.generation
        if name not in self._exchanges:
            # Not ensured: asking whether it exists needs a permission, and closes the channel when it does not.
            self._exchanges[name] = await channel.get_exchange(name, ensure=False)
        return self._exchanges[name]

    @staticmethod
    async def note_blocked(channel: AbstractChannel) -> None:
        """Note whether RabbitMQ has stopped reading from us, which it does under a memory or disk alarm."""
        connection = (await channel.get_underlay_channel()).connection
        try:
            async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
                await connection.ready()
        except TimeoutError:
            metrics.AMQP_BLOCKED.set(1)
        else:
            metrics.AMQP_BLOCKED.set(0)
