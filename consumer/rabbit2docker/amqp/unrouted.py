"""Requests that `builds` could route nowhere, because a binding or a queue was missing or the routing key is wrong.

RabbitMQ puts them into a queue of their own, so that a confirmed request always has a reader. Each goes from there into
the queue of its routing key, past the bindings of `builds`, and waits until that queue exists.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from rabbit2docker import metrics
from rabbit2docker.amqp.connection import ManagedChannel
from rabbit2docker.amqp.dead_letter_help import UNROUTABLE, UNROUTABLE_MESSAGE
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.request_consumer import AmqpDelivery
from rabbit2docker.amqp.request_log import RequestLog
from rabbit2docker.amqp.senders import SenderCheck
from rabbit2docker.errors import AccessRefused, BrokerUnavailable
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import retry_forever
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import FORGED, UNROUTED_QUEUE, RetryLadder, parse_request_key

log = get_logger()

PREFETCH: Final = 20
REFUSED_PAUSES: Final = (30.0,)
RECENT_SECONDS: Final = 300.0


class UnroutedRequests:
    """Moves unrouted messages to the queues of their routing keys, or to the dead letters."""

    def __init__(
        self,
        settings: AmqpSettings,
        publisher: ConfirmedPublisher,
        on_loss: Callable[[], None],
        *,
        ladder: RetryLadder,
    ) -> None:
        """Take `on_loss`, called for each message that a complete topology would have routed."""
        self._connection = ManagedChannel("unrouted", settings, setup=self._consume)
        self._publisher = publisher
        self._request_log = RequestLog(publisher)
        self._check = SenderCheck(settings.tenant_users)
        self._on_loss = on_loss
        self._ladder = ladder
        self._latest: float | None = None

    @property
    def is_recent(self) -> bool:
        """True if a message with a valid key was unrouted a short time ago, for an unknown reason."""
        now = asyncio.get_running_loop().time()
        return self._latest is not None and now - self._latest < RECENT_SECONDS

    def mark_explained(self) -> None:
        """Take what is known to be missing for the reason of the latest unrouted messages."""
        self._latest = None

    async def run(self) -> None:
        """Move messages until cancelled. A user who may not read the queue is no reason to end the service."""
        await retry_forever(
            self._connection.run,
            on=AccessRefused,
            pauses=REFUSED_PAUSES,
            report=lambda error, _: log.warning("unrouted requests not read", reason=str(error)),
        )

    async def _consume(self, channel: AbstractChannel) -> None:
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(UNROUTED_QUEUE, ensure=False)
        await queue.consume(self._move)

    async def _move(self, message: AbstractIncomingMessage) -> None:
        delivery = AmqpDelivery(
            message,
            UNROUTED_QUEUE,
            self._connection,
            self._publisher,
            self._request_log,
            self._check,
            self._ladder,
        )
        routing_key = delivery.received.routing_key
        try:
            if (key := parse_request_key(routing_key)) is None:
                await self._dead_letter(delivery, UNROUTABLE, UNROUTABLE_MESSAGE)
                return
            if delivery.received.forged:
                await self._dead_letter(delivery, FORGED, delivery.received.forged)
                return
            self._latest = asyncio.get_running_loop().time()
            self._on_loss()
            log.warning("request unrouted, moving it to its queue", routing_key=routing_key, queue=key.queue)
            await delivery.reroute(key.queue)
            metrics.REQUESTS_UNROUTED.labels(outcome="rerouted").inc()
        except BrokerUnavailable as error:  # unacknowledged, so RabbitMQ redelivers it
            log.info("unrouted request not moved", reason=str(error))

    @staticmethod
    async def _dead_letter(delivery: AmqpDelivery, reason: str, message: str) -> None:
        await delivery.dead_letter(reason, message)
        metrics.REQUESTS_UNROUTED.labels(outcome="dead_lettered").inc()
