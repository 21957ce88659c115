"""Dead letters as the service leaves them."""

import json
from typing import Any, NamedTuple

import aio_pika

from rabbit2docker.amqp.request_consumer import MESSAGE_HEADER
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import (
    DEAD_LETTER_EXCHANGE,
    MESSAGE_ID_HEADER,
    REASON_HEADER,
    ROUTING_KEY_HEADER,
)


class Letter(NamedTuple):
    """A dead letter to be."""

    name: str
    reason: str
    tenant: str = "default"
    body: bytes | None = None

    @property
    def content(self) -> bytes:
        spec = {"provider": "gh", "spec": f"ada/{self.name}/HEAD", "requester": "ada"}
        return json.dumps(spec).encode() if self.body is None else self.body

    def headers(self) -> dict[str, Any]:
        return {
            REASON_HEADER: self.reason,
            MESSAGE_HEADER: f"The reason is {self.reason}.",
            ROUTING_KEY_HEADER: f"request.{self.tenant}.interactive",
            MESSAGE_ID_HEADER: self.name,
            "own": "header",
        }


async def leave(amqp: AmqpSettings, *letters: Letter) -> None:
    """Put letters into the queue, in this order; they are there once this returns."""
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(DEAD_LETTER_EXCHANGE)
        for letter in letters:
            message = aio_pika.Message(letter.content, message_id=letter.name, headers=letter.headers())
            await exchange.publish(message, "")


async def count(amqp: AmqpSettings, queue: str) -> int:
    """Return the number of messages that are ready in a queue."""
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0
