"""What could not be carried out: looked at, put back, or thrown away by an operator."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from rabbit2docker.amqp.connection import open_connection, parse_url, translated
from rabbit2docker.amqp.publisher import make_message
from rabbit2docker.amqp.request_consumer import MESSAGE_HEADER
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import (
    ATTEMPT_HEADER,
    DEAD_QUEUE,
    MESSAGE_ID_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    REQUESTS_EXCHANGE,
    ROUTING_KEY_HEADER,
)

_OWN_HEADERS = frozenset(
    {ATTEMPT_HEADER, MESSAGE_HEADER, MESSAGE_ID_HEADER, QUEUE_HEADER, REASON_HEADER, ROUTING_KEY_HEADER}
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of the dead-letter queue."""

    id: str
    """Short, made of the content: the same as long as the message is there."""
    reason: str
    message: str
    routing_key: str
    message_id: str | None
    published_at: datetime | None
    body: bytes
    headers: dict[str, Any]
    """Those that its publisher gave it."""


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_dead_letter(message: AbstractIncomingMessage) -> DeadLetter:
    """Return what a message of the dead-letter queue says."""
    headers = dict(message.headers)
    key = _text(headers.get(ROUTING_KEY_HEADER) or message.routing_key or "")
    reason, text = _why(headers)
    message_id = _text(headers[MESSAGE_ID_HEADER]) if MESSAGE_ID_HEADER in headers else message.message_id
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
    )


def _why(headers: dict[str, Any]) -> tuple[str, str]:
    if REASON_HEADER in headers:
        return _text(headers[REASON_HEADER]), _text(headers.get(MESSAGE_HEADER, ""))
    if "x-first-death-reason" in headers:
        reason = _text(headers["x-first-death-reason"])
        return reason, "RabbitMQ gave it up: it was delivered too often without being settled."
    return "unroutable", "No queue takes messages with this routing key."


class DeadLetters:
    """The dead-letter queue, held by one connection: what is looked at goes back when that is closed."""

    def __init__(self, queue: AbstractQueue, exchange: aio_pika.abc.AbstractExchange) -> None:
        """Use the open queue, and the exchange to put messages back to."""
        self._queue = queue
        self._exchange = exchange

    async def _all(self) -> AsyncIterator[tuple[DeadLetter, AbstractIncomingMessage]]:
        while (message := await self._queue.get(fail=False)) is not None:
            yield read_dead_letter(message), message

    async def listed(self) -> list[DeadLetter]:
        """Return all, oldest first. They stay where they are."""
        return [letter async for letter, _ in self._all()]

    async def redrive(self, is_wanted: Callable[[DeadLetter], bool]) -> list[DeadLetter]:
        """Publish again under its first key what is wanted, and take it off the queue once that is confirmed."""
        done = []
        async for letter, message in self._all():
            if is_wanted(letter):
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

    async def discard(self, is_wanted: Callable[[DeadLetter], bool]) -> list[DeadLetter]:
        """Take off the queue what is wanted."""
        done = []
        async for letter, message in self._all():
            if is_wanted(letter):
                await message.ack()
                done.append(letter)
        return done


@asynccontextmanager
async def dead_letters(settings: AmqpSettings) -> AsyncIterator[DeadLetters]:
    """Open the dead-letter queue. Raises BrokerUnavailable, AccessRefused, TopologyMismatch."""
    url = parse_url(settings, "dead letters")
    connection = await open_connection(url)
    try:
        with translated(url):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            queue = await channel.get_queue(DEAD_QUEUE, ensure=False)
            exchange = await channel.get_exchange(REQUESTS_EXCHANGE, ensure=False)
            yield DeadLetters(queue, exchange)
    finally:
        await connection.close()
