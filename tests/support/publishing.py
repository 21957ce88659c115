"""A publisher that keeps what it is given, and may be away for a while."""

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker_schemas.cloudevents import Event


class RecordingPublisher:
    """Implements `Publisher`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.refusals = 0
        """How many of the next events are refused."""

    async def publish(self, event: Event) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnavailable("RabbitMQ is away.")
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]
