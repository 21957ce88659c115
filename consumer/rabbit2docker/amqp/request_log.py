"""The copy of each request in the stream `builds.requests.log`.

The service publishes it, not a binding of `builds`: with that copy, RabbitMQ would confirm a request for which no queue
of work exists.
"""

import asyncio
from datetime import UTC, datetime
from typing import Final

from rabbit2docker import metrics
from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.ports import RequestMessage
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.senders import publisher_headers
from rabbit2docker.errors import AccessRefused, MessageRefused, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker_schemas.routing import MESSAGE_ID_HEADER, REQUEST_LOG_EXCHANGE

log = get_logger()

PAUSE_SECONDS: Final = 10.0
"""After a copy that could not be kept, further requests do without: the log must not delay builds, and each failed
try may cost the channel that events are published on."""


class RequestLog:
    """Publishes copies of requests."""

    def __init__(self, publisher: ConfirmedPublisher) -> None:
        """Publish with `publisher`."""
        self._publisher = publisher
        self._paused_until = 0.0

    async def record(self, received: RequestMessage) -> None:
        """Keep a copy under the request's own routing key; go on without where the stream is missing or refuses it.

        Raises BrokerUnavailable only when the outbox is full or the publisher is closing.
        """
        now = asyncio.get_running_loop().time()
        if now < self._paused_until:
            metrics.REQUESTS_NOT_LOGGED.inc()
            return
        headers = publisher_headers(received.headers)
        headers[MESSAGE_ID_HEADER] = received.message_id  # it may name the request

        def message() -> OutgoingMessage:
            return make_message(
                received.body,
                headers,
                content_type=received.content_type,
                timestamp=received.timestamp or datetime.now(UTC),
            )

        try:
            await self._publisher.send(
                REQUEST_LOG_EXCHANGE,
                received.routing_key,
                message,
                until_confirmed=True,
                gives_up_on=(TopologyMismatch, AccessRefused, MessageRefused),
            )
        except (TopologyMismatch, AccessRefused, MessageRefused) as error:
            self._paused_until = now + PAUSE_SECONDS
            metrics.REQUESTS_NOT_LOGGED.inc()
            log.warning("request not logged: it cannot be replayed", reason=str(error))
