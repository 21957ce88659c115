"""Events published with deterministic ids: a repetition has the id of the original, so readers can drop it."""

from collections.abc import Callable
from datetime import datetime

from rabbit2docker.amqp.ports import Publisher
from rabbit2docker.clock import utc_now
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    AnyEventData,
    Gap,
    Log,
    Progress,
    Rejected,
    TerminalEventData,
)


class EventPublisher:
    """Publishes events. Each method returns once RabbitMQ has confirmed; all may raise BrokerUnavailable."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        instance: str,
        patience: float | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Name `instance` in `ce-source`; `patience`: seconds after which a refused event raises StreamUnavailable."""
        self._publisher = publisher
        self._patience = patience
        self._source = f"/builds/{instance}"
        self._now = now

    async def _publish(self, event_id: ids.EventId, tenant: str, data: AnyEventData) -> None:
        event = Event(id=event_id, tenant=tenant, time=self._now(), data=data, source=self._source)
        await self._publisher.publish(event, patience=self._patience)

    async def publish_accepted(self, tenant: str, data: Accepted, *, generation: str) -> None:
        """Publish that a request has a build."""
        event_id = ids.request_event_id(tenant, data.request_id, data.kind, generation)
        await self._publish(event_id, tenant, data)

    async def publish_rejected(self, tenant: str, data: Rejected) -> None:
        """Publish that a request will not become a build."""
        await self._publish(ids.request_event_id(tenant, data.request_id, data.kind), tenant, data)

    async def publish_progress(
        self, tenant: str, data: Progress, *, about: str, generation: str = ""
    ) -> None:
        """Publish how far a build is. Repetitions of the same progress must have the same `about`."""
        event_id = ids.progress_event_id(data.build_id, data.attempt, about, generation)
        await self._publish(event_id, tenant, data)

    async def publish_log(self, tenant: str, data: Log, *, generation: str) -> None:
        """Publish lines of the log."""
        last = data.n + len(data.lines) - 1
        event_id = ids.lines_event_id(data.build_id, data.attempt, data.n, last, data.kind, generation)
        await self._publish(event_id, tenant, data)

    async def publish_gap(self, tenant: str, data: Gap, *, generation: str) -> None:
        """Publish that lines of the log are lost."""
        event_id = ids.lines_event_id(
            data.build_id, data.attempt, data.first, data.last, data.kind, generation
        )
        await self._publish(event_id, tenant, data)

    async def publish_terminal(self, tenant: str, data: TerminalEventData, *, generation: str) -> None:
        """Publish the end of a build, of which each generation has one."""
        await self._publish(ids.terminal_event_id(data.build_id, generation), tenant, data)
