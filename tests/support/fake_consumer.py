"""A fake consumer: it accepts requests as the real one does, and tests publish the lines and the end of each build."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import aio_pika

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.settings import Settings
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Completed, EventData, Log, LogLine, Phase
from rabbit2docker_schemas.routing import REQUESTS_QUEUE

TENANT = "default"
PREFETCH = 50


class FakeConsumer:
    """Accepts every request at once."""

    def __init__(self, publisher: ConfirmedPublisher) -> None:
        self._publisher = publisher
        self._accepted_one = asyncio.Event()
        self.builds: dict[str, str] = {}
        """Build ids by requested spec, in order of acceptance."""

    async def consume(self, queue: aio_pika.abc.AbstractQueue) -> None:
        """Accept requests until cancelled."""
        async with queue.iterator() as messages:
            async for message in messages:
                await self._accept(json.loads(message.body))
                await message.ack()

    async def _accept(self, request: dict[str, Any]) -> None:
        build_id = ids.build_id_of(TENANT, request["request_id"])
        answer = Accepted(
            request_id=request["request_id"],
            build_id=build_id,
            build_name="build-of-a-test",
            provider=request["provider"],
            spec=request["spec"],
            resolved_ref="0",
            repo_url="https://example.org/r",
            image="registry.example.org/r:0",
        )
        await self._publish(ids.request_event_id(TENANT, request["request_id"], "accepted"), answer)
        self.builds[request["spec"]] = build_id
        self._accepted_one.set()

    async def accepted(self, count: int) -> list[str]:
        """Wait until `count` requests are accepted; return the ids of their builds."""
        while len(self.builds) < count:
            self._accepted_one.clear()
            await self._accepted_one.wait()
        return list(self.builds.values())

    async def write(self, build_id: str, texts: list[str], *, first: int, together: int) -> None:
        """Publish lines numbered from `first`, `together` of them per event."""
        for start in range(0, len(texts), together):
            await self.write_event(build_id, texts[start : start + together], first=first + start)

    async def write_event(self, build_id: str, texts: list[str], *, first: int) -> None:
        """Publish lines as one event."""
        now = datetime.now(UTC)
        lines = [LogLine(phase=Phase.BUILDING, text=text, ts=now) for text in texts]
        event_id = ids.lines_event_id(build_id, 1, first, first + len(texts) - 1, "log")
        await self._publish(event_id, Log(build_id=build_id, attempt=1, n=first, lines=lines))

    async def complete(self, build_id: str, *, lines: int) -> None:
        """Complete a build of `lines` lines."""
        end = Completed(
            build_id=build_id,
            image="registry.example.org/r:0",
            digest="sha256:0",
            resolved_ref="0",
            attempt=1,
            lines=lines,
        )
        await self._publish(ids.terminal_event_id(build_id), end)

    async def _publish(self, event_id: ids.EventId, data: EventData) -> None:
        await self._publisher.publish(Event(event_id, TENANT, datetime.now(UTC), data))  # type: ignore[arg-type]


@asynccontextmanager
async def fake_consumer(settings: Settings) -> AsyncIterator[FakeConsumer]:
    """Run a fake consumer."""
    await declare.declare(settings)
    connection = await aio_pika.connect(settings.amqp.url.get_secret_value())
    async with connection, publishing(settings, wait_seconds=180) as publisher:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        consumer = FakeConsumer(publisher)
        consuming = asyncio.create_task(consumer.consume(await channel.get_queue(REQUESTS_QUEUE)))
        try:
            yield consumer
        finally:
            consuming.cancel()
            with suppress(asyncio.CancelledError):
                await consuming
