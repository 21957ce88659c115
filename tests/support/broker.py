"""A broker connection, requests and deliveries for tests on a real RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.ports import Delivery
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.amqp.topology_keeper import UNCHECKED
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Completed
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.waiting import PATIENCE, eventually

REQUEST = BuildRequest(provider="gh", spec="owner/repository/HEAD")


def with_amqp(settings: Settings, **changes: object) -> Settings:
    amqp = AmqpSettings.model_validate({**settings.amqp.model_dump(), **changes})
    return settings.model_copy(update={"amqp": amqp})


@asynccontextmanager
async def running(
    settings: Settings,
    state_id: str | None = None,
    *,
    prepare: Callable[[Broker], None] = lambda broker: None,
) -> AsyncIterator[Broker]:
    broker = Broker(settings)
    prepare(broker)
    task = asyncio.create_task(broker.run(state_id))
    try:
        await eventually(lambda: task.done() or _is_settled(broker))
        if task.done():
            await task
        yield broker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _is_settled(broker: Broker) -> bool:
    return not any(broker.problems().values()) and UNCHECKED not in broker.topology_problems()


async def submit(settings: Settings, *requests: BuildRequest) -> None:
    async with publishing(settings, wait_seconds=180) as publisher:
        requester = RequestPublisher(publisher, settings.tenant)
        for request in requests:
            await requester.request(request)


async def take(broker: Broker, count: int = 1) -> list[Delivery]:
    taken: list[Delivery] = []

    async def collect() -> None:
        async for delivery in broker.source.deliveries():
            taken.append(delivery)
            if len(taken) == count:
                return

    await asyncio.wait_for(collect(), PATIENCE)
    return taken


def completed(number: int = 0) -> Event:
    build_id = ids.build_id_of("default", f"r{number}")
    data = Completed(build_id=build_id, image="i:1", digest="sha256:0", resolved_ref="0")
    return Event(ids.terminal_event_id(build_id), "default", datetime.now(UTC), data)
