"""What anybody may know of builds, from the tenant's stream: one build live and whole, or many at a glance."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from rabbit2docker.broker.broker import until_up
from rabbit2docker.broker.link import Link
from rabbit2docker.broker.merging import Merged
from rabbit2docker.broker.publisher import ConfirmedPublisher
from rabbit2docker.broker.requester import Requester
from rabbit2docker.broker.stream import Offset, StreamReader
from rabbit2docker.errors import AccessRefused
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Rejected
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.routing import tenant_stream

CLOCK_SLACK: Final = timedelta(seconds=10)
"""Clocks of different machines may differ; a stream's beginning is rough anyway."""
JOINED_SINCE: Final = timedelta(hours=25)
"""A build that a request joins began at most this long ago: no build may run longer than a day."""
OWN_IDS: Final = 2
"""What is wanted at first: the id as it was given, and the id of the build that a request of this id starts."""


@dataclass(frozen=True, slots=True)
class Client:
    """One connection for asking and listening, of one tenant."""

    requester: Requester
    events: "Events"


@asynccontextmanager
async def connected(settings: Settings, *, wait_seconds: float) -> AsyncIterator[Client]:
    """Give a client; raises AccessRefused, or BrokerUnavailable when RabbitMQ does not answer in time.

    Once it has answered, losing it again is waited out.
    """
    publish, listen = Link("requester", settings.amqp), Link("subscriber", settings.amqp)
    running = {link: asyncio.create_task(link.run(), name=link.role) for link in (publish, listen)}
    try:
        for link, task in running.items():
            await until_up(link, task, wait_seconds)
        publisher = ConfirmedPublisher(publish, settings.amqp)
        yield Client(Requester(publisher, settings.tenant), Events(listen, settings.tenant))
    finally:
        for task in running.values():
            task.cancel()
        for task in running.values():
            with suppress(asyncio.CancelledError, AccessRefused):
                await task


class Events:
    """Reads a tenant's events. Iterators raise TopologyMismatch when the tenant has no stream."""

    def __init__(self, link: Link, tenant: str) -> None:
        """Use the link's connection."""
        self._reader = StreamReader(link, tenant_stream(tenant))
        self._tenant = tenant

    def build_id_of(self, request_id: str) -> str:
        """Return the id of the build that a request starts unless it joins another."""
        return build_id_of(self._tenant, request_id)

    async def follow(self, id_: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens to a request or build, by the id of either, until its end, after which it stops.

        `since`: when the request was published; without it the whole stream is looked through, from its beginning.
        """
        merged, wanted = Merged(), [id_, build_id_of(self._tenant, id_)]
        offset: Offset = since - CLOCK_SLACK if since else "first"
        while True:
            joined: str | None = None
            following = self._reader.follow(offset=offset, only=wanted)
            async with aclosing(following):
                async for event in following:
                    if not _is_about(event, wanted, id_):
                        continue
                    for new in merged.take(event):
                        yield new
                    if _is_end(event, wanted, id_):
                        return
                    if joined := _joined(event, wanted, id_):
                        break
            if joined:
                # What the joined build has told so far was passed over: read again from before its beginning.
                wanted.append(joined)
                offset = datetime.now(UTC) - JOINED_SINCE

    async def so_far(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield what is known by now of a build, or of the build of a request, by the id of either."""
        merged, wanted = Merged(), [id_, build_id_of(self._tenant, id_)]
        joined: str | None = None
        for _ in range(2):
            reading = self._reader.to_the_end(offset="first", only=wanted)
            async with aclosing(reading):
                async for event in reading:
                    if not _is_about(event, wanted, id_):
                        continue
                    for new in merged.take(event):
                        yield new
                    joined = _joined(event, wanted, id_) or joined
            if joined is None or joined in wanted:
                return
            wanted.append(joined)

    async def since(self, moment: datetime) -> AsyncGenerator[Event, None]:
        """Yield all events from `moment` until now."""
        reading = self._reader.to_the_end(offset=moment)
        async with aclosing(reading):
            async for event in reading:
                if event.time >= moment - CLOCK_SLACK:
                    yield event


def _is_about(event: Event, wanted: list[str], request_id: str) -> bool:
    """Tell whether the event is asked for: RabbitMQ's filter lets others through, too."""
    if isinstance(event.data, Accepted | Rejected):
        return event.data.request_id == request_id or event.subject in wanted
    return event.subject in wanted


def _is_end(event: Event, wanted: list[str], request_id: str) -> bool:
    if isinstance(event.data, Rejected):
        return event.data.request_id == request_id
    if not event.is_terminal:
        return False
    has_joined = len(wanted) > OWN_IDS
    return event.subject in (wanted[OWN_IDS:] if has_joined else wanted)


def _joined(event: Event, wanted: list[str], request_id: str) -> str | None:
    data = event.data
    if isinstance(data, Accepted) and data.request_id == request_id and data.build_id not in wanted:
        return data.build_id
    return None
