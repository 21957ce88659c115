"""Dead letters: requests that could not be processed, for an operator to list, redrive or discard."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from rabbit2docker.amqp.connection import open_connection, translated
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.frame_screen import UNDECODABLE_HEADER
from rabbit2docker.amqp.publisher import make_message
from rabbit2docker.amqp.request_consumer import MESSAGE_HEADER, as_short_string, header_text
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import (
    ATTEMPT_HEADER,
    DEAD_QUEUE,
    MESSAGE_ID_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    REQUESTS_EXCHANGE,
    ROUTING_KEY_HEADER,
    WAITING_FOR_HEADER,
    WAITING_SINCE_HEADER,
)

_OWN_HEADERS = frozenset(
    {
        ATTEMPT_HEADER,
        MESSAGE_HEADER,
        MESSAGE_ID_HEADER,
        QUEUE_HEADER,
        REASON_HEADER,
        ROUTING_KEY_HEADER,
        WAITING_FOR_HEADER,
        WAITING_SINCE_HEADER,
    }
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of the dead-letter queue."""

    id: str
    """Short hash of the content, stable for as long as the message exists."""
    reason: str
    message: str
    routing_key: str
    message_id: str | None
    published_at: datetime | None
    body: bytes
    headers: dict[str, Any]
    """Headers set by the original publisher."""
    undecodable: str = ""
    """The properties that cannot be decoded and are missing here, and why."""


def read_dead_letter(message: AbstractIncomingMessage) -> DeadLetter:
    """Parse a message of the dead-letter queue."""
    headers = dict(message.headers)
    key = as_short_string(headers.get(ROUTING_KEY_HEADER) or message.routing_key or "")
    reason, text = _reason(headers)
    message_id = (
        as_short_string(headers[MESSAGE_ID_HEADER]) if MESSAGE_ID_HEADER in headers else message.message_id
    )
    identity = f"{message.message_id}/{key}/{message.timestamp}".encode() + message.body
    published = message.timestamp
    return DeadLetter(
        id=hashlib.sha256(identity).hexdigest()[:10],
        reason=reason,
        message=text,
        routing_key=key,
        message_id=message_id,
        published_at=published.replace(tzinfo=UTC) if published and published.tzinfo is None else published,
        body=message.body,
        headers={
            name: value
            for name, value in headers.items()
            if name not in _OWN_HEADERS and not name.startswith("x-")
        },
        undecodable=header_text(headers.get(UNDECODABLE_HEADER, "")),
    )


def _reason(headers: dict[str, Any]) -> tuple[str, str]:
    if REASON_HEADER in headers:
        return header_text(headers[REASON_HEADER]), header_text(headers.get(MESSAGE_HEADER, ""))
    if "x-first-death-reason" in headers:
        reason = header_text(headers["x-first-death-reason"])
        return (
            reason,
            "RabbitMQ dropped it: it was delivered too often without being settled, even as a dropped message.",
        )
    return "unroutable", "No queue takes messages with this routing key."


class DeadLetters:
    """The dead-letter queue on one connection; messages that were only read return to it when the connection closes."""

    def __init__(self, queue: AbstractQueue, exchange: aio_pika.abc.AbstractExchange) -> None:
        """Take the open queue, and the exchange that redriven messages are published to."""
        self._queue = queue
        self._exchange = exchange

    async def _all(self) -> AsyncIterator[tuple[DeadLetter, AbstractIncomingMessage]]:
        """Yield the letters that are there at the start: those that return in the meantime are behind them."""
        rest: int | None = None
        while rest != 0 and (message := await self._queue.get(fail=False)) is not None:
            rest = (message.message_count or 0) if rest is None else rest - 1
            yield read_dead_letter(message), message

    async def listed(self) -> list[DeadLetter]:
        """Return all dead letters, oldest first. They stay in the queue."""
        return [letter async for letter, _ in self._all()]

    async def redrive(self, is_selected: Callable[[DeadLetter], bool]) -> list[DeadLetter]:
        """Publish the selected letters under their first routing key, and remove each once that is confirmed.

        Each letter is published once, even if it returns to the dead letters at once.
        """
        done = []
        async for letter, message in self._all():
            if is_selected(letter):
                again = make_message(
                    letter.body,
                    letter.headers,
                    message_id=letter.message_id,
                    content_type=message.content_type,
                    timestamp=letter.published_at,
                )
                await self._exchange.publish(again, letter.routing_key, mandatory=True, timeout=10)
                await message.ack()
                done.append(letter)
        return done

    async def discard(self, is_selected: Callable[[DeadLetter], bool]) -> list[DeadLetter]:
        """Remove the selected letters."""
        done = []
        async for letter, message in self._all():
            if is_selected(letter):
                await message.ack()
                done.append(letter)
        return done


@asynccontextmanager
async def dead_letters(settings: AmqpSettings) -> AsyncIterator[DeadLetters]:
    """Open the dead-letter queue. Raises BrokerUnavailable, AccessRefused, TopologyMismatch."""
    connection = await open_connection(Endpoint(settings, "dead letters"))
    try:
        with translated(connection.url):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            queue = await channel.get_queue(DEAD_QUEUE, ensure=False)
            exchange = await channel.get_exchange(REQUESTS_EXCHANGE, ensure=False)
            yield DeadLetters(queue, exchange)
    finally:
        await connection.close()
