"""Events as a consumer publishes them, and readers of the client library."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    Completed,
    Log,
    LogLine,
    Phase,
    Progress,
    ProgressDetail,
    Rejected,
)
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

REQUEST = BuildRequest(provider="gh", spec="owner/repository/HEAD")
BUILD = ids.build_id_of("default", "r")


def accepted(request_id: str = "r", build_id: str = BUILD) -> Event:
    data = Accepted(
        request_id=request_id,
        build_id=build_id,
        build_name="b",
        provider="gh",
        spec=REQUEST.spec,
        resolved_ref="0",
        repo_url="https://example.org/r",
        image="i:0",
        attached=build_id != ids.build_id_of("default", request_id),
    )
    return Event(ids.request_event_id("default", request_id, "accepted"), "default", datetime.now(UTC), data)


def rejected(request_id: str = "r", reason: RejectReason = RejectReason.NOT_ALLOWED) -> Event:
    data = Rejected(request_id=request_id, reason=reason, message="No.")
    return Event(ids.request_event_id("default", request_id, "rejected"), "default", datetime.now(UTC), data)


def progress(
    about: str, build_id: str = BUILD, *, phase: Phase = Phase.BUILDING, step: int | None = None
) -> Event:
    detail = ProgressDetail(step=step, steps=step)
    data = Progress(build_id=build_id, attempt=1, phase=phase, message=about, detail=detail)
    return Event(ids.progress_event_id(build_id, 1, about), "default", datetime.now(UTC), data)


def lines(first: int, count: int, *, build_id: str = BUILD, size: int = 0) -> Event:
    log_lines = [
        LogLine(phase=Phase.BUILDING, text=f"line {n}".ljust(size), ts=datetime.now(UTC))
        for n in range(first, first + count)
    ]
    data = Log(build_id=build_id, attempt=1, n=first, lines=log_lines)
    event_id = ids.lines_event_id(build_id, 1, first, first + count - 1, "log")
    return Event(event_id, "default", datetime.now(UTC), data)


def completed(*, build_id: str = BUILD, count: int | None = None) -> Event:
    data = Completed(
        build_id=build_id, image="i:0", digest="sha256:0", resolved_ref="0", attempt=1, lines=count
    )
    return Event(ids.terminal_event_id(build_id), "default", datetime.now(UTC), data)


def numbers(events: list[Event]) -> list[int]:
    return [
        number
        for event in events
        if isinstance(event.data, Log)
        for number in range(event.data.n, event.data.n + len(event.data.lines))
    ]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind.value for event in events]


class Reader:
    """Collects events in a task of its own."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.events: list[Event] = []
        self._source = events
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._source):
            async for event in self._source:
                self.events.append(event)

    async def to_the_end(self) -> list[Event]:
        await asyncio.wait_for(self.task, PATIENCE)
        return self.events

    async def has(self, count: int) -> None:
        await eventually(lambda: self.task.done() or len(self.events) >= count)
        assert len(self.events) >= count, self.task.exception()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def publish(publisher: ConfirmedPublisher, *events: Event) -> None:
    for event in events:
        await publisher.publish(event)


@asynccontextmanager
async def through_proxy(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> AsyncIterator[tuple[AmqpSettings, Proxy]]:
    """Settings for a connection that can be cut."""
    async with Proxy(rabbitmq.port) as proxy:
        url = rabbitmq.url(vhost, port=proxy.port)
        yield AmqpSettings.model_validate({**settings.amqp.model_dump(), "url": url}), proxy
