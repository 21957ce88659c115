"""The interface of the broker for intake, following and the command line; test doubles implement it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.routing import RetryRung


def anonymous_id(body: bytes, timestamp: datetime | None) -> str:
    """Return the id of a message without one: a hash of its content.

    It makes a redelivery the same request. Two unnamed messages with the same body in the same second are the same
    request, too.
    """
    seconds = timestamp.isoformat() if timestamp else ""
    return "anon-" + hashlib.sha256(seconds.encode() + body).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The wait of a message on the retry ladder, which goes with it from round to round."""

    since: datetime
    about: str
    """Name of the wait as it was announced last."""


@dataclass(frozen=True, slots=True)
class RequestMessage:
    """The content of a delivery."""

    body: bytes
    routing_key: str
    """The key of its first publication, kept through the retry ladder."""
    queue: str
    headers: Mapping[str, Any]
    message_id: str
    """A hash of the content if the publisher gave none."""
    content_type: str | None
    timestamp: datetime | None
    """Time of publication according to the publisher, in whole seconds."""
    redelivered: bool
    tries: int
    """Number of times that intake has requeued it on the retry ladder, without the waits that do not count."""
    waiting: Waiting | None = None
    """Set if it came from the retry ladder and waits there for something."""
    dead_reason: str = ""
    """Set if it came from the retry ladder and waits there for the dead-letter queue to take it."""
    dead_message: str = ""
    undecodable: str = ""
    """The properties that could not be decoded and are missing here, and why; empty for a good message."""
    dropped: str = ""
    """RabbitMQ's reason for dropping it from its queue, such as `expired`; empty for a message that is to be processed."""
    forged: str = ""
    """Why another than the tenant in the routing key may have sent it; empty if the key is to be believed."""


class Delivery(Protocol):
    """One unacknowledged message, held for seconds. Settled exactly once, by one of the four methods."""

    @property
    def received(self) -> RequestMessage:
        """Return the content."""

    @property
    def is_stale(self) -> bool:
        """True once the channel has closed. RabbitMQ redelivers the message; settling it has no effect."""

    async def record(self) -> None:
        """Keep a copy for replay, confirmed, if this is the first delivery. Raises BrokerUnavailable."""

    async def ack(self) -> None:
        """Acknowledge. A channel closed in between is no error: the redelivery changes nothing."""

    async def retry(self, rung: RetryRung, *, counts: bool = True, waiting: Waiting | None = None) -> None:
        """Publish a copy to a rung of the ladder, confirmed, then acknowledge.

        `counts`: as one more try; `waiting`: what it brings along when it returns. Raises BrokerUnavailable.
        """

    async def enqueue(self, queue: str) -> None:
        """Publish a copy to a queue in which requests wait for a slot, confirmed, then acknowledge.

        Raises MessageRefused when that queue is full, TopologyMismatch when it is missing, BrokerUnavailable.
        """

    async def dead_letter(self, reason: str, message: str) -> None:
        """Publish a copy to the dead-letter queue, with the reason, then acknowledge.

        If that queue is full, the copy goes to the retry ladder, with the reason. Raises BrokerUnavailable.
        """


class RequestSource(Protocol):
    """Requests and cancel messages as they arrive."""

    def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield deliveries of all queues, across reconnects, until closed."""

    async def set_prefetch(self, queue: str, count: int) -> None:
        """Hold at most `count` deliveries of a queue at once; 0 pauses it. Kept across reconnects."""

    async def take(self, queue: str) -> Delivery | None:
        """Take one message of a queue that has no prefetch; None if it has none. Raises BrokerUnavailable."""


class CancelLog(Protocol):
    """Cancels of requests that are no builds yet, shared by all replicas."""

    def subscribe(self, on_cancel: Callable[[str, str, str], None]) -> None:
        """Have `on_cancel` called with tenant, build id and requester of each cancel, whichever replica recorded it."""

    async def record(self, tenant: str, build_id: str, by: str) -> None:
        """Keep a cancel, confirmed. Raises BrokerUnavailable."""


IsNeeded = Callable[[], bool]


def always() -> bool:
    """Return True: the event is needed whatever happens."""
    return True


class WaitingLog(Protocol):
    """The log of the requests that wait for a slot, shared by all replicas."""

    caught_up: asyncio.Event
    """Set once all that happened earlier is known, or turned out not to be readable."""
    problem: str
    """The reason why what happens at other replicas is not known; empty if it is."""

    def subscribe(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Have `listener` called with each entry, those of this replica included. It must not block."""

    async def record(self, content: Mapping[str, Any]) -> None:
        """Add an entry, confirmed. Without the stream, it is only logged that there is none. Raises BrokerUnavailable."""


class Publisher(Protocol):
    """Events out, confirmed."""

    async def publish(
        self, event: Event, *, patience: float | None = None, is_needed: IsNeeded = always
    ) -> bool:
        """Return once the tenant's stream has the event; wait and try again while RabbitMQ is away.

        `is_needed` is asked right before each try; once it is False, the event is left out and this returns False.
        Hubs of the tenant that refuse it are not waited for. Raises StreamUnavailable when the stream refuses it for
        `patience` seconds; BrokerUnavailable only when the outbox is full or the publisher is closing.
        """
