"""Events published with deterministic ids: a repetition has the id of the original, so readers can drop it."""

from collections.abc import Callable
from datetime import datetime

from rabbit2docker.amqp.ports import IsNeeded, Publisher, always
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
from rabbit2docker_schemas.tracing import Trace


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

    async def _publish(
        self,
        event_id: ids.EventId,
        tenant: str,
        data: AnyEventData,
        trace: Trace | None = None,
        is_needed: IsNeeded = always,
        *,
        is_indexed: bool = True,
    ) -> bool:
        event = Event(event_id, tenant, self._now(), data, self._source, trace, is_indexed)
        return await self._publisher.publish(event, patience=self._patience, is_needed=is_needed)

    async def publish_accepted(
        self,
        tenant: str,
        data: Accepted,
        *,
        generation: str,
        trace: Trace | None = None,
        is_needed: IsNeeded = always,
    ) -> bool:
        """Publish that a request has a build; return False if it turned out in time that this is not needed any more."""
        event_id = ids.request_event_id(tenant, data.request_id, data.kind, generation)
        return await self._publish(event_id, tenant, data, trace, is_needed)

    async def publish_rejected(self, tenant: str, data: Rejected, *, trace: Trace | None = None) -> None:
        """Publish that a request will not become a build."""
        await self._publish(ids.request_event_id(tenant, data.request_id, data.kind), tenant, data, trace)

    async def publish_progress(
        self, tenant: str, data: Progress, *, about: str, generation: str = "", trace: Trace | None = None
    ) -> None:
        """Publish how far a build is. Repetitions of the same progress must have the same `about`."""
        event_id = ids.progress_event_id(data.build_id, data.attempt, about, generation)
        await self._publish(event_id, tenant, data, trace)

    async def publish_place(self, tenant: str, data: Progress, *, since: float, is_first: bool) -> None:
        """Publish the place of a request that waits for a slot `since` then, in seconds since 1970."""
        # The same request may have waited before, and have come back from the retry ladder.
        event_id = ids.progress_event_id(data.build_id, 0, f"place {data.detail.ahead} since {since}")
        await self._publish(event_id, tenant, data, is_indexed=is_first)

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

    async def publish_terminal(
        self, tenant: str, data: TerminalEventData, *, generation: str, trace: Trace | None = None
    ) -> None:
        """Publish the end of a build, of which each generation has one."""
        await self._publish(ids.terminal_event_id(data.build_id, generation), tenant, data, trace)
