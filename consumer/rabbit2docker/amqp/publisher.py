"""Publishing with confirms: a message counts as sent once RabbitMQ confirms it, and is sent again until then."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, DeliveryMode
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, DeliveryError, PublishError
from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_cancelled
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import CONTENT_TYPE, Event, event_type
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE

log = get_logger()

RESEND_PAUSES: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
UNROUTED_PAUSE: Final = 0.5
BLOCKED_CHECK_SECONDS: Final = 0.05
UNROUTED_SECONDS: Final = 30.0
"""How long events of a tenant that reach no queue are sent again: right after its start, RabbitMQ may confirm messages
that it has routed nowhere. A tenant without a stream delays no one for longer."""
UNROUTED_TENANTS: Final = 1000
MAX_FLOAT: Final = 3.4e38
"""Of single precision, with which the client encodes numbers."""


class Unrouted(TopologyMismatch):
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
    user_id: str | None = None,
) -> aio_pika.Message:
    """Return a persistent message, with a new `message_id` if none is given.

    The client matches returned messages by message_id, so two publishes in flight must not share one.
    """
    return aio_pika.Message(
        body,
        headers={name: _encodable(value) for name, value in headers.items()},
        content_type=content_type,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=message_id or uuid.uuid4().hex,
        correlation_id=correlation_id,
        type=type_,
        timestamp=timestamp or datetime.now(UTC),
        user_id=user_id,
        app_id="rabbit2docker",
    )


def _encodable(value: Any) -> Any:
    """Return a header's value as the client can encode it, which is not all that it decodes."""
    match value:
        case bytes():  # a string that is not UTF-8
            return bytearray(value)
        case Decimal():  # a mantissa of 32 bits is decoded without a sign, and encoded with one
            return str(value)
        case float():  # decoded with double precision, encoded with single precision
            return value if abs(value) <= MAX_FLOAT or not isfinite(value) else str(value)
        case list():
            return [_encodable(item) for item in value]
        case dict():
            return {name: _encodable(item) for name, item in value.items()}
        case _:
            return value


class ConfirmedPublisher:
    """Publishes on one connection. At most `publish_window` messages are unconfirmed; at most `outbox_size` wait."""

    def __init__(
        self,
        connection: ManagedChannel,
        settings: AmqpSettings,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        """Publish on the connection's current channel; `on_loss` is called when an exchange or binding is missing."""
        self.settings = settings
        self._connection = connection
        self._on_loss = on_loss
        self._timeout = settings.publish_timeout
        self._window = asyncio.Semaphore(settings.publish_window)
        self._limit = settings.outbox_size
        self._waiting = 0
        self._exchanges: dict[str, AbstractExchange] = {}
        self._exchanges_generation = -1
        self._unrouted_since: LRUCache[str, float] = LRUCache(UNROUTED_TENANTS)

    @property
    def user(self) -> str | None:
        """The user that RabbitMQ knows the present connection by; None where its URL does not say."""
        url = self._connection.url
        return (url.user or None) if url.query.get("auth", "plain").lower() == "plain" else None

    async def publish(self, event: Event) -> None:
        """Publish an event until it is confirmed; see amqp.ports.Publisher."""
        body = event.body()
        headers: dict[str, Any] = dict(event.headers())
        if event.index_key is not None:
            headers["BCC"] = [event.index_key]  # RabbitMQ routes by it and removes it

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
                        RESULTS_EXCHANGE,
                        event.routing_key,
                        message,
                        until_confirmed=True,
                        gives_up_on=(Unrouted,),
                    )
                except Unrouted:
                    if self._give_up_unrouted(event.tenant):
                        return
                    await asyncio.sleep(UNROUTED_PAUSE)
                else:
                    break
        self._unrouted_since.pop(event.tenant, None)
        metrics.EVENTS_PUBLISHED.labels(kind=event.kind).inc()

    def _give_up_unrouted(self, tenant: str) -> bool:
        """Return whether no event of this tenant has reached a queue for UNROUTED_SECONDS."""
        metrics.EVENTS_UNROUTED.inc()
        now = asyncio.get_running_loop().time()
        if tenant not in self._unrouted_since:
            self._unrouted_since[tenant] = now
            log.warning("events unrouted, sending again", tenant=tenant)
        if now - self._unrouted_since[tenant] < UNROUTED_SECONDS:
            return False
        log.warning("event dropped: tenant has no stream, see `topology declare`", tenant=tenant)
        return True

    async def send(
        self,
        exchange: str,
        key: str,
        message: Callable[[], aio_pika.Message],
        *,
        until_confirmed: bool,
        gives_up_on: tuple[type[Exception], ...] = (),
    ) -> None:
        """Publish the result of `message` until it is confirmed and in a queue.

        `until_confirmed`: try again while RabbitMQ or the exchange is away or no queue takes the message, except after
        the errors in `gives_up_on`; otherwise the first failure is raised.
        Raises BrokerUnavailable, TopologyMismatch, AccessRefused.
        """
        if self._waiting >= self._limit:
            raise BrokerUnavailable(f"{self._waiting} messages wait for RabbitMQ already.")
        self._count_waiting(1)
        backoff = Backoff(RESEND_PAUSES)
        try:
            while True:
                try:
                    return await self._try(exchange, key, message)
                except (BrokerUnavailable, TopologyMismatch, AccessRefused) as error:
                    if isinstance(error, TopologyMismatch):
                        self._on_loss()
                    if self._connection.is_closing or not until_confirmed or isinstance(error, gives_up_on):
                        raise
                    self._report_resend(error, backoff.failures)
                await backoff.sleep()
        finally:
            self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        metrics.OUTBOX.set(self._waiting)

    @staticmethod
    def _report_resend(error: Exception, failures: int) -> None:
        metrics.EVENT_PUBLISH_RETRIES.inc()
        if failures in (1, 5) or failures % 50 == 0:
            log.warning("message not confirmed, sending again", reason=str(error), tries=failures + 1)

    async def _try(self, exchange: str, key: str, message: Callable[[], aio_pika.Message]) -> None:
        channel = await self._connection.channel()
        target = await self._exchange(channel, exchange)
        try:
            async with self._window:
                await target.publish(message(), key, mandatory=True, timeout=self._timeout)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise BrokerUnavailable("The connection to RabbitMQ was stuck.") from None
        except PublishError as error:
            raise Unrouted(
                f"No queue takes messages with the key {key} of {exchange}. `rabbit2docker topology check` says more."
            ) from error
        except DeliveryError as error:
            metrics.PUBLISH_NACKS.labels(exchange=exchange).inc()
            raise BrokerUnavailable(
                "RabbitMQ does not take the message: a queue is full or has no majority."
            ) from error
        except ChannelNotFoundEntity as error:
            raise TopologyMismatch(
                f"RabbitMQ has no exchange {exchange}. `rabbit2docker topology declare` makes it."
            ) from error
        except ChannelAccessRefused as error:
            raise AccessRefused(
                f"RabbitMQ does not allow this user to publish {key} to {exchange}."
            ) from error
        except BROKEN as error:
            raise BrokerUnavailable(
                f"RabbitMQ did not confirm: {str(error) or type(error).__name__}"
            ) from error

    async def _exchange(self, channel: AbstractChannel, name: str) -> AbstractExchange:
        if self._exchanges_generation != self._connection.generation:
            self._exchanges, self._exchanges_generation = {}, self._connection.generation
        if name not in self._exchanges:
            # Not ensured: that takes a permission, and closes the channel if the exchange is missing.
            self._exchanges[name] = await channel.get_exchange(name, ensure=False)
        return self._exchanges[name]


async def record_blocked(channel: AbstractChannel) -> None:
    """Record whether RabbitMQ has stopped reading from this connection, as it does under a memory or disk alarm."""
    connection = (await channel.get_underlay_channel()).connection
    try:
        async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
            await connection.ready()
    except TimeoutError:
        metrics.AMQP_BLOCKED.set(1)
    else:
        metrics.AMQP_BLOCKED.set(0)
