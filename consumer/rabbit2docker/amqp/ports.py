"""What intake, following and the command line need of a broker. The seam that fakes implement."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.routing import RetryRung


@dataclass(frozen=True, slots=True)
class RequestMessage:
    """The content of a delivery."""

    body: bytes
    routing_key: str
    """The key under which it was first published: kept through the retry ladder."""
    queue: str
    headers: Mapping[str, Any]
    message_id: str | None
    content_type: str | None
    timestamp: datetime | None
    """When the publisher says it published, in whole seconds."""
    redelivered: bool
    tries: int
    """How often intake has put it on the retry ladder before."""


class Delivery(Protocol):
    """One message held un-acknowledged, for seconds. Settled exactly once, by one of the three."""

    @property
    def received(self) -> RequestMessage:
        """Return the content."""

    @property
    def is_stale(self) -> bool:
        """Tell whether its channel died: it will be delivered again, so working on it is in vain."""

    async def ack(self) -> None:
        """Acknowledge. A channel that died meanwhile is no error: the repetition will change nothing."""

    async def retry(self, rung: RetryRung) -> None:
        """Put a copy on a rung of the ladder, confirmed, then acknowledge. Raises BrokerUnavailable."""

    async def dead_letter(self, reason: str, message: str) -> None:
        """Put a copy into the dead-letter queue with the reason, confirmed, then acknowledge. Raises BrokerUnavailable."""


class RequestSource(Protocol):
    """Requests and cancel messages as they come."""

    def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield deliveries of all queues until closed; survives reconnects."""

    async def set_prefetch(self, queue: str, credit: int) -> None:
        """Hold at most `credit` deliveries of this queue at once; 0 pauses it. Remembered over reconnects."""


class Publisher(Protocol):
    """Events out, confirmed."""

    async def publish(self, event: Event) -> None:
        """Return when RabbitMQ has confirmed; waits and tries again while it is away.

        Raises BrokerUnavailable only when the outbox is full or the publisher is closing.
        """
