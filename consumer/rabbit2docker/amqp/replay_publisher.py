"""Publishing requests again, for all tenants, with an operator's user.

A request goes past `builds`, as a redriven dead letter does: the original's sender has been checked, and the copy has not
the user who published it. Once it is confirmed, a copy goes to the log of requests, which says what a replay that was
interrupted need not publish again: the consumer's own copy comes only when it takes the request.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelLockedResource

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.request_publisher import message_headers
from rabbit2docker.errors import AccessRefused, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.requests import REQUEST_TYPE
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    MESSAGE_ID_HEADER,
    REQUEST_LOG_EXCHANGE,
    RETRY_EXCHANGE,
    ROUTING_KEY_HEADER,
    Priority,
    request_key,
)

SOURCE: Final = "/rabbit2docker/replay"
REPLAY_TYPE: Final = "io.rabbit2docker.replay.v1"
LOCK_QUEUE: Final = "builds.replay"
"""Exclusive queue of the one replay that publishes on a virtual host."""
GIVES_UP_ON: Final = (TopologyMismatch, AccessRefused)


class _Lock:
    """Holds the queue for as long as the connection lasts."""

    def __init__(self) -> None:
        self.refusal: asyncio.Future[TopologyMismatch] = asyncio.get_running_loop().create_future()

    async def hold(self, channel: AbstractChannel) -> None:
        try:
            await channel.declare_queue(LOCK_QUEUE, exclusive=True)
        except ChannelLockedResource:
            if not self.refusal.done():
                self.refusal.set_result(
                    TopologyMismatch(
                        "Another replay publishes on this virtual host at the moment. Wait until it is through, or stop it; "
                        "what it has published is in the log, and is not published twice."
                    )
                )
            raise


class ReplayPublisher:
    """Publishes requests in order, one at a time. Methods wait while RabbitMQ is away or the queue is full."""

    def __init__(self, publisher: ConfirmedPublisher) -> None:
        """Publish with `publisher`."""
        self._publisher = publisher

    async def begin(self, key: str, content: Mapping[str, Any]) -> None:
        """Put the message with which a replay begins into the log. Raises TopologyMismatch, AccessRefused."""
        body = json.dumps(content).encode()
        await self._send(REQUEST_LOG_EXCHANGE, key, body, _headers(key, REPLAY_TYPE))

    async def publish(self, tenant: str, request_id: str, body: bytes) -> None:
        """Publish a request to the bulk queue, then its copy to the log. Raises TopologyMismatch, AccessRefused."""
        key = request_key(tenant, Priority.BULK)
        headers = _headers(request_id, REQUEST_TYPE)
        await self._send(RETRY_EXCHANGE, BULK_QUEUE, body, {**headers, ROUTING_KEY_HEADER: key})
        await self._send(REQUEST_LOG_EXCHANGE, key, body, headers)

    async def _send(self, exchange: str, key: str, body: bytes, headers: dict[str, Any]) -> None:
        moment = datetime.now(UTC)

        def message() -> OutgoingMessage:
            return make_message(body, headers, type_=str(headers["ce-type"]), timestamp=moment)

        await self._publisher.send(exchange, key, message, until_confirmed=True, gives_up_on=GIVES_UP_ON)


def _headers(id_: str, type_: str) -> dict[str, Any]:
    return {**message_headers(id_, type_, SOURCE, datetime.now(UTC)), MESSAGE_ID_HEADER: id_}


@asynccontextmanager
async def replay_publisher(settings: AmqpSettings, *, wait_seconds: float) -> AsyncIterator[ReplayPublisher]:
    """Open a publisher, the only one of its kind on the virtual host.

    Raises TopologyMismatch while another one is open, AccessRefused, or BrokerUnavailable when RabbitMQ does not answer
    within `wait_seconds`.
    """
    lock = _Lock()
    connection = ManagedChannel("replay publisher", settings, setup=lock.hold)
    async with connected(connection, wait_seconds, lock.refusal):
        publisher = ConfirmedPublisher(connection, settings)
        try:
            yield ReplayPublisher(publisher)
        finally:
            await publisher.close()
