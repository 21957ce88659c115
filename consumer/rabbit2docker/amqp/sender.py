"""Sending with confirms: a message counts as sent once RabbitMQ confirms it, and is sent again until then."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, DeliveryError, PublishError

from rabbit2docker import metrics
from rabbit2docker.amqp.confirmed_channel import ConfirmedChannel, confirmed_channel
from rabbit2docker.amqp.connection import BROKEN, ManagedChannel
from rabbit2docker.amqp.outgoing import OutgoingMessage
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, MessageRefused, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff, is_cancelled
from rabbit2docker.settings import AmqpSettings

log = get_logger()

RESEND_PAUSES: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
BLOCKED_CHECK_SECONDS: Final = 0.05
REPEAT_SECONDS: Final = 600.0
"""Time for the confirm of a repeated message. A queue without a majority takes all copies once it has one again."""
MIN_SECONDS: Final = 0.5
"""Time for the confirm of a repeated message where patience is short."""
_NO_WINDOW: Final = nullcontext()

MakeMessage = Callable[[], OutgoingMessage]


class Unrouted(TopologyMismatch):
    """RabbitMQ has no queue for the message."""


class _Patience:
    """The time that a message may be refused while RabbitMQ works; None: any time."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._refused_since: float | None = None

    def is_over(self, error: Exception, began: float) -> bool:
        """Note the failure of a try that began then; return whether the message was refused for long enough."""
        if not isinstance(error, MessageRefused):
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = began
        if self._seconds is None or self._refused_since is None:
            return False
        return asyncio.get_running_loop().time() - self._refused_since >= self._seconds


class MessageSender:
    """Sends on one connection. At most `publish_window` messages are unconfirmed; at most `outbox_size` wait."""

    def __init__(
        self, connection: ManagedChannel, settings: AmqpSettings, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        """Send on the connection's current channel; `on_loss` is called when an exchange or binding is missing."""
        self._connection = connection
        self._on_loss = on_loss
        self._timeout = settings.publish_timeout
        self._window = asyncio.Semaphore(settings.publish_window)
        self._limit = settings.outbox_size
        self._waiting = 0
        self._confirmed: ConfirmedChannel | None = None
        self._confirmed_of: AbstractChannel | None = None
        self._refusing: dict[str, str] = {}
        """Reason why a message waits for a queue to take it, by exchange or what else it is about."""

    async def send(
        self,
        exchange: str,
        key: str,
        message: MakeMessage,
        *,
        until_confirmed: bool,
        gives_up_on: tuple[type[Exception], ...] = (),
        patience: float | None = None,
        timeout: float | None = None,
        about: str | None = None,
    ) -> None:
        """Publish the result of `message` until it is confirmed and in a queue.

        `until_confirmed`: try again while RabbitMQ or the exchange is away or no queue takes the message, except after
        the errors in `gives_up_on`; otherwise the first failure is raised. `patience`: seconds after which refusals
        are raised as well. `timeout`: seconds for a confirm, outside of the window that all messages share.
        `about`: what a refusal says something about; the exchange unless another name is given.
        Raises BrokerUnavailable (MessageRefused), TopologyMismatch, AccessRefused.
        """
        if self._waiting >= self._limit:
            raise BrokerUnavailable(f"{self._waiting} messages wait for RabbitMQ already.")
        self._count_waiting(1)
        backoff, refused = Backoff(RESEND_PAUSES), _Patience(patience)
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self._try(exchange, key, message, timeout)
                except (BrokerUnavailable, TopologyMismatch, AccessRefused) as error:
                    if isinstance(error, TopologyMismatch):
                        self._on_loss()
                    if isinstance(error, MessageRefused):
                        self._refusing[about or exchange] = error.message
                    if self._connection.is_closing or not until_confirmed or isinstance(error, gives_up_on):
                        raise
                    if refused.is_over(error, began):
                        raise
                    self._report_resend(error, backoff.failures)
                else:
                    self._refusing.pop(about or exchange, None)
                    return
                await backoff.sleep()
                # What is repeated may be in a queue already, or will be: the next copy must be a long time off.
                timeout = REPEAT_SECONDS if patience is None else max(MIN_SECONDS, patience)
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

    async def _try(self, exchange: str, key: str, message: MakeMessage, timeout: float | None) -> None:
        channel = await self._connection.channel()
        target = await self._confirmed_channel(channel)
        try:
            async with self._window if timeout is None else _NO_WINDOW:
                await target.publish(exchange, key, message(), timeout=timeout or self._timeout)
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
            raise MessageRefused(
                "RabbitMQ does not take the message: a queue is full or has no majority."
            ) from error
        except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
            raise _refusal_of(error, exchange, key) from error
        except TimeoutError as error:
            if await is_blocked(channel):
                raise BrokerUnavailable(
                    "RabbitMQ takes no messages: it is short of memory or disk."
                ) from error
            raise MessageRefused("RabbitMQ does not confirm the message: a queue has no majority.") from error
        except BROKEN as error:
            raise BrokerUnavailable(
                f"RabbitMQ did not confirm: {str(error) or type(error).__name__}"
            ) from error

    async def _confirmed_channel(self, channel: AbstractChannel) -> ConfirmedChannel:
        if self._confirmed is None or self._confirmed_of is not channel:
            self._confirmed, self._confirmed_of = await confirmed_channel(channel), channel
        return self._confirmed


def _refusal_of(
    error: ChannelNotFoundEntity | ChannelAccessRefused, exchange: str, key: str
) -> TopologyMismatch | AccessRefused | BrokerUnavailable:
    """Return what the end of the channel means for a message that was being published on it.

    All messages in flight share the channel, and RabbitMQ ends it for the first of them that it refuses.
    """
    if f"'{exchange}'" not in str(error):
        return BrokerUnavailable(f"RabbitMQ closed the channel because of another message: {error}")
    if isinstance(error, ChannelNotFoundEntity):
        return TopologyMismatch(
            f"RabbitMQ has no exchange {exchange}. `rabbit2docker topology declare` makes it."
        )
    return AccessRefused(f"RabbitMQ does not allow this user to publish {key} to {exchange}.")


async def is_blocked(channel: AbstractChannel) -> bool:
    """Return whether RabbitMQ has stopped reading from this connection, as it does under a memory or disk alarm."""
    try:
        connection = (await channel.get_underlay_channel()).connection
        async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
            await connection.ready()
    except TimeoutError:
        return True
    except BROKEN:
        return False
    return False
