"""Dead letters: requests that could not be processed, for an operator to list, redrive or discard."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from aio_pika.abc import AbstractConnection, AbstractIncomingMessage, AbstractQueue

from rabbit2docker.amqp.confirmed_channel import ConfirmedChannel, confirmed_channel
from rabbit2docker.amqp.connection import open_connection, translated
from rabbit2docker.amqp.dead_letter_help import UNROUTABLE, UNROUTABLE_MESSAGE
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.frame_screen import UNDECODABLE_HEADER
from rabbit2docker.amqp.outgoing import make_message
from rabbit2docker.amqp.ports import anonymous_id
from rabbit2docker.amqp.request_consumer import MESSAGE_HEADER
from rabbit2docker.amqp.senders import (
    ANY_USER,
    Drop,
    SenderCheck,
    as_short_string,
    header_text,
    publisher_headers,
)
from rabbit2docker.clock import as_utc
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import (
    DEAD_QUEUE,
    FORGED,
    MESSAGE_ID_HEADER,
    REASON_HEADER,
    REQUESTS_EXCHANGE,
    RETRY_EXCHANGE,
    ROUTING_KEY_HEADER,
    parse_request_key,
)

FIRST_TRUSTED_MAJOR: Final = 4
"""RabbitMQ 3 keeps the `x-death` header of a publisher, so it does not prove where a message has been."""
_FORGED_DEATHS: Final = "RabbitMQ itself dropped the message, and RabbitMQ 3 cannot prove who sent it."
_LOST_HEADERS: Final = "Its headers cannot be decoded, so they do not prove who sent it."
_IF_TRUSTED: Final = "Have it sent again, or use --unverified if all users of the virtual host are trusted."
_DROPS: Final = {
    "delivery_limit": "it was delivered too often without being settled",
    "expired": "it expired before the service took it",
}


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
    unverified: str = ""
    """Why it may come from another place than it seems; empty if that is certain."""

    def why_kept(self, *, unverified: bool = False) -> str:
        """Return why it is not published again; empty if it may be, as one of `unverified` origin if need be."""
        if self.reason == FORGED:
            return f"It may be forged. {self.message}"
        return f"{self.unverified} {_IF_TRUSTED}" if self.unverified and not unverified else ""


def read_dead_letter(
    message: AbstractIncomingMessage, check: SenderCheck = ANY_USER, *, are_deaths_trusted: bool = True
) -> DeadLetter:
    """Parse a message of the dead-letter queue.

    A copy that the service made has been checked before, and carries the service's headers. A message that RabbitMQ
    itself moved is checked here, and carries its publisher's headers.
    """
    headers, drop = dict(message.headers), Drop.of(message)
    undecodable = header_text(headers.get(UNDECODABLE_HEADER, ""))
    unverified = _FORGED_DEATHS if drop and not are_deaths_trusted else ""
    if drop is None and ("headers:" in undecodable or "properties:" in undecodable):
        unverified = _LOST_HEADERS
    # None of these headers counts unless the service has set it.
    own = headers if (drop.origin.is_copy if drop else not unverified) else {}
    key = as_short_string(own.get(ROUTING_KEY_HEADER) or message.routing_key or "")
    reason, text = _reason(own) if drop is None else _reason_of_drop(drop, check)
    message_id = as_short_string(own[MESSAGE_ID_HEADER]) if MESSAGE_ID_HEADER in own else message.message_id
    identity = f"{message.message_id}/{key}/{message.timestamp}".encode() + message.body
    return DeadLetter(
        id=hashlib.sha256(identity).hexdigest()[:10],
        reason=reason,
        message=text,
        routing_key=key,
        message_id=message_id,
        published_at=as_utc(message.timestamp) if message.timestamp else None,
        body=message.body,
        headers=publisher_headers(headers),
        undecodable=undecodable,
        unverified=unverified,
    )


def _reason_of_drop(drop: Drop, check: SenderCheck) -> tuple[str, str]:
    if problem := check.why_forged(drop.origin):
        return FORGED, problem
    return drop.reason, f"RabbitMQ dropped it: {_DROPS.get(drop.reason, drop.reason)}."


def _reason(headers: dict[str, Any]) -> tuple[str, str]:
    if REASON_HEADER in headers:
        return header_text(headers[REASON_HEADER]), header_text(headers.get(MESSAGE_HEADER, ""))
    return UNROUTABLE, UNROUTABLE_MESSAGE


Selection = Callable[[DeadLetter], bool]


class DeadLetters:
    """The dead-letter queue on one connection; messages that were only read return to it when the connection closes."""

    def __init__(
        self,
        queue: AbstractQueue,
        channel: ConfirmedChannel,
        check: SenderCheck,
        *,
        are_deaths_trusted: bool,
    ) -> None:
        """Take the open queue, and the channel that messages are redriven on."""
        self._queue = queue
        self._channel = channel
        self._read = partial(read_dead_letter, check=check, are_deaths_trusted=are_deaths_trusted)

    async def _all(self) -> AsyncGenerator[tuple[DeadLetter, AbstractIncomingMessage], None]:
        """Yield the letters that are there at the start: those that return in the meantime are behind them."""
        rest: int | None = None
        while rest != 0 and (message := await self._queue.get(fail=False)) is not None:
            rest = (message.message_count or 0) if rest is None else rest - 1
            yield self._read(message), message

    async def _selected(
        self, is_selected: Selection, limit: int | None
    ) -> AsyncIterator[tuple[DeadLetter, AbstractIncomingMessage]]:
        """Yield the selected letters, at most `limit`."""
        found = 0
        async with aclosing(self._all()) as letters:
            async for letter, message in letters:
                if is_selected(letter):
                    found += 1
                    yield letter, message
                if found == limit:
                    return

    async def listed(
        self, is_selected: Selection = lambda letter: True, *, limit: int | None = None
    ) -> list[DeadLetter]:
        """Return the selected dead letters, oldest first, at most `limit`. They stay in the queue."""
        return [letter async for letter, _ in self._selected(is_selected, limit)]

    async def redrive(
        self, is_selected: Selection, *, unverified: bool = False, limit: int | None = None
    ) -> list[DeadLetter]:
        """Publish the selected letters again, and remove each once that is confirmed; return them.

        Each letter is published once, even if it returns to the dead letters at once. Those with a reason in `why_kept`
        are returned as well, but stay where they are.
        """
        done = []
        async for letter, message in self._selected(is_selected, limit):
            done.append(letter)
            if not letter.why_kept(unverified=unverified):
                await self._publish(letter, message.content_type)
                await message.ack()
        return done

    async def _publish(self, letter: DeadLetter, content_type: str | None) -> None:
        # Not through `builds`: the sender has been checked, and the copy has lost the user who published it.
        key = parse_request_key(letter.routing_key)
        exchange, target = (RETRY_EXCHANGE, key.queue) if key else (REQUESTS_EXCHANGE, letter.routing_key)
        again = make_message(
            letter.body,
            {**letter.headers, ROUTING_KEY_HEADER: letter.routing_key},
            message_id=letter.message_id or anonymous_id(letter.body, letter.published_at),
            content_type=content_type,
            timestamp=letter.published_at,
        )
        await self._channel.publish(exchange, target, again, timeout=10)

    async def discard(self, is_selected: Selection) -> list[DeadLetter]:
        """Remove the selected letters, and return them."""
        done = []
        async for letter, message in self._selected(is_selected, None):
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
            yield DeadLetters(
                queue,
                await confirmed_channel(channel),
                SenderCheck(settings.tenant_users),
                are_deaths_trusted=_major_version(connection) >= FIRST_TRUSTED_MAJOR,
            )
    finally:
        await connection.close()


def _major_version(connection: AbstractConnection) -> int:
    """Return RabbitMQ's major version, 0 if it names none."""
    assert connection.transport is not None
    properties: Any = connection.transport.connection.server_properties
    major = header_text(properties.get("version", "")).split(".")[0]
    return int(major) if major.isdigit() else 0


async def redrive_one_by_one(
    open_letters: Callable[[], AbstractAsyncContextManager[DeadLetters]],
    is_selected: Selection,
    wait: Callable[[], Awaitable[None]],
    *,
    unverified: bool = False,
) -> AsyncGenerator[DeadLetter, None]:
    """Publish the letters that are selected now, one after each `wait`, and yield each when it is through.

    Each has a connection of its own: the queue is free for others in between, and RabbitMQ, which closes channels that
    hold messages for long, has no reason to. Letters that others remove in the meantime are left out. One that returns is
    published once for each time that it was selected.
    """
    async with open_letters() as letters:
        selected = [letter.id for letter in await letters.listed(is_selected)]
    for id_ in selected:
        await wait()
        async with open_letters() as letters:
            done = await letters.redrive(partial(_has_id, id_), unverified=unverified, limit=1)
        for letter in done:
            yield letter


def _has_id(id_: str, letter: DeadLetter) -> bool:
    return letter.id == id_
