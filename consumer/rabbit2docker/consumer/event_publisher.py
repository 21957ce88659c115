"""Turns what happened into events with the right id, and has them confirmed."""

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
    """Publishes events. Each method returns when RabbitMQ has confirmed; all may raise BrokerUnavailable."""

    def __init__(self, publisher: Publisher, *, instance: str, now: Callable[[], datetime] = utc_now) -> None:
        """Take the `instance` for `ce-source`."""
        self._publisher = publisher
        self._source = f"/builds/{instance}"
        self._now = now

    async def _publish(self, event_id: ids.EventId, tenant: str, data: AnyEventData) -> None:
        await self._publisher.publish(
            Event(id=event_id, tenant=tenant, time=self._now(), data=data, source=self._source)
        )

    async def publish_accepted(self, tenant: str, data: Accepted) -> None:
        """Say that a request is a build now."""
        await self._publish(ids.request_event_id(tenant, data.request_id, data.kind), tenant, data)

    async def publish_rejected(self, tenant: str, data: Rejected) -> None:
        """Say that a request will be no build."""
        await self._publish(ids.request_event_id(tenant, data.request_id, data.kind), tenant, data)

    async def publish_progress(self, tenant: str, data: Progress, *, about: str) -> None:
        """Say how far a build is; `about` is the same whenever the same is said again."""
        await self._publish(ids.progress_event_id(data.build_id, data.attempt, about), tenant, data)

    async def publish_log(self, tenant: str, data: Log) -> None:
        """Tell lines of the log."""
        last = data.n + len(data.lines) - 1
        await self._publish(
            ids.lines_event_id(data.build_id, data.attempt, data.n, last, data.kind), tenant, data
        )

    async def publish_gap(self, tenant: str, data: Gap) -> None:
        """Tell that lines are lost."""
        await self._publish(
            ids.lines_event_id(data.build_id, data.attempt, data.first, data.last, data.kind), tenant, data
        )

    async def publish_terminal(self, tenant: str, data: TerminalEventData) -> None:
        """Tell the one end of a build."""
        await self._publish(ids.terminal_event_id(data.build_id), tenant, data)
