"""A publisher that records events, and can be unavailable for a while."""

from collections.abc import Callable

from rabbit2docker.amqp.ports import IsNeeded, always
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
        self.refuses: Callable[[Event], bool] = lambda event: False
        """Chooses events that fail with BrokerUnavailable."""

    async def publish(
        self, event: Event, *, patience: float | None = None, is_needed: IsNeeded = always
    ) -> bool:
        if not is_needed():
            return False
        if self.failure is not None:
            raise self.failure
        if self.refusals or self.refuses(event):
            self.refusals = max(0, self.refusals - 1)
            raise BrokerUnavailable("RabbitMQ is away.")
        self.events.append(event)
        return True

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]
