"""A publisher that records events, and can be unavailable for a while."""

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import Event


class RecordingPublisher:
    """Implements `Publisher`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.refusals = 0
        """Number of following events that fail with BrokerUnavailable."""
        self.failure: Exception | None = None
        """Raised for every event while it is set."""

    async def publish(self, event: Event, *, patience: float | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnavailable("RabbitMQ is away.")
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]
