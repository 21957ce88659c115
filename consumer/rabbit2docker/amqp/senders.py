"""Decides whether the tenant that a routing key names can have sent the message. No I/O.

A client can bring a message under any routing key to any exchange that it may write to: by CC and BCC headers, by
bindings between exchanges, or as a dead letter of its own queue. It cannot change the exchange in a delivery: RabbitMQ
names the one that the message was last published to, or that a queue dead-lettered it to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage

from rabbit2docker.amqp.topology import WORK_QUEUES
from rabbit2docker_schemas.routing import (
    ENTRY_PREFIX,
    REQUESTS_EXCHANGE,
    RETRY_EXCHANGE,
    ROUTING_KEY_HEADER,
    UNROUTED_QUEUE,
    RequestKey,
    entry_exchange,
    entry_queue,
    parse_request_key,
)

OWN_PREFIX: Final = "r2d-"
_COPY_EXCHANGES: Final = frozenset({"", RETRY_EXCHANGE})
"""The service's copies come through these: the queues of the retry ladder deliver through the default exchange."""
_ROUTING_HEADERS: Final = frozenset({"CC", "BCC"})


def header_text(value: Any) -> str:
    """Return a header's value as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def as_short_string(value: Any) -> str:
    """Return a header's value as a property or routing key can hold it, which have at most 255 bytes."""
    return header_text(value).encode(errors="replace")[:255].decode(errors="ignore")


def publisher_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers for a copy: without RabbitMQ's, those that would route the copy, and the service's own."""
    return {
        name: value
        for name, value in headers.items()
        if not name.startswith(("x-", OWN_PREFIX)) and name not in _ROUTING_HEADERS
    }


@dataclass(frozen=True, slots=True)
class Origin:
    """The way of a message to the service, as RabbitMQ reports it."""

    exchange: str
    queue: str
    delivered_key: str
    user: str | None
    """The user who published it; RabbitMQ refuses another one's name."""
    headers: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, message: AbstractIncomingMessage, queue: str) -> "Origin":
        """Return the origin of a delivery from `queue`."""
        return cls(
            message.exchange or "", queue, message.routing_key or "", message.user_id, dict(message.headers)
        )

    @property
    def is_copy(self) -> bool:
        """True for a copy that the service made: only then its own headers count."""
        return self.exchange in _COPY_EXCHANGES

    @property
    def routing_key(self) -> str:
        """The key of the first publication."""
        if self.is_copy and ROUTING_KEY_HEADER in self.headers:
            return as_short_string(self.headers[ROUTING_KEY_HEADER])
        return self.delivered_key


@dataclass(frozen=True, slots=True)
class Drop:
    """A message that RabbitMQ itself took out of a queue of requests."""

    origin: Origin
    """Of the message in that queue."""
    reason: str

    @classmethod
    def of(cls, message: AbstractIncomingMessage) -> "Drop | None":
        """Return the drop of a message; None for a copy of the service, which has none of RabbitMQ's headers."""
        if "x-death" not in message.headers:
            return None
        deaths: Any = message.headers["x-death"]
        entries = [one for one in deaths if isinstance(one, dict)] if isinstance(deaths, list) else []
        of_requests: dict[str, Any] = next((one for one in entries if _is_of_requests(one)), {})
        origin = replace(
            Origin.of(message, header_text(of_requests.get("queue", ""))),
            exchange=header_text(of_requests.get("exchange", "of an unknown name")),
        )
        return cls(origin, header_text(of_requests.get("reason", "dropped")))


def _is_of_requests(death: Mapping[str, Any]) -> bool:
    return entry_queue(header_text(death.get("queue", ""))) in WORK_QUEUES


class SenderCheck:
    """Checks the senders of requests and cancel messages."""

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        """Take the user of each tenant that must have published its messages; others need none."""
        self._users = dict(users or {})

    def why_forged(self, origin: Origin) -> str:
        """Return why another than the tenant may have sent the message; empty if its routing key is to be believed."""
        key = parse_request_key(origin.routing_key)
        if key is None:  # of no tenant
            return ""
        if entry_queue(origin.queue) not in (key.queue, UNROUTED_QUEUE):
            return (
                f"The message was in {origin.queue}, where its routing key {origin.routing_key} does not lead: "
                "it got there by a CC or BCC header or by a dead letter."
            )
        return "" if origin.is_copy else _why_not_by(origin, key) or self._why_not_from(origin, key)

    def _why_not_from(self, origin: Origin, key: RequestKey) -> str:
        required = self._users.get(key.tenant)
        others = {user for tenant, user in self._users.items() if tenant != key.tenant} - {required}
        if (required is None or origin.user == required) and origin.user not in others:
            return ""
        was = f"was published by the user {origin.user}" if origin.user else "has no user_id"
        expected = f"; messages of this tenant must have the user_id {required}" if required else ""
        return f"The message names the tenant {key.tenant} but {was}{expected}."


ANY_USER: Final = SenderCheck()
"""For services that know no tenant's user."""


def _why_not_by(origin: Origin, key: RequestKey) -> str:
    own = entry_exchange(key.tenant)
    if origin.exchange in (own, REQUESTS_EXCHANGE):
        return ""
    if origin.exchange.startswith(ENTRY_PREFIX):
        other = origin.exchange.removeprefix(ENTRY_PREFIX)
        return (
            f"The message names the tenant {key.tenant} but came through the exchange of the tenant {other}."
        )
    return (
        f"The message names the tenant {key.tenant} but came through the exchange {origin.exchange}, to which others may "
        f"publish. Publish it to {own} or {REQUESTS_EXCHANGE} directly."
    )
