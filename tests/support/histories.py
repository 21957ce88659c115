"""A long past of many builds in a tenant's stream, published as fast as the broker takes it."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import aio_pika

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE
from tests.support.client_events import accepted, completed, lines, progress

T = TypeVar("T")


def name_of(number: int) -> str:
    return f"r{number}"


def build_of(number: int) -> str:
    return ids.build_id_of("default", name_of(number))


def build_events(number: int, *, logs: int = 10, size: int = 80) -> Iterator[Event]:
    """Yield a build's events: each log event has two lines."""
    build_id = build_of(number)
    yield accepted(name_of(number), build_id)
    yield progress("fetching", build_id)
    for n in range(0, 2 * logs, 2):
        yield lines(n, 2, build_id=build_id, size=size)
    yield completed(build_id=build_id, count=2 * logs)


def interleaved(builds: Iterable[Iterator[T]], *, at_once: int = 5) -> Iterator[T]:
    """Yield the events of builds of which several go on at a time, in turn."""
    waiting = iter(builds)
    running: list[Iterator[T]] = []
    while True:
        while len(running) < at_once and (build := next(waiting, None)) is not None:
            running.append(build)
        if not running:
            return
        for build in list(running):
            try:
                yield next(build)
            except StopIteration:
                running.remove(build)


async def publish_all(amqp: AmqpSettings, events: Iterable[Event]) -> int:
    """Publish events in order and return their number, once RabbitMQ has taken all of them."""
    count = 0
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await connection.channel(publisher_confirms=False)
        underlay = await channel.get_underlay_channel()
        for event in events:
            count += 1
            index_key = {} if event.index_key is None else {"BCC": [event.index_key]}
            headers: dict[str, Any] = event.headers() | index_key
            await underlay.basic_publish(
                event.body(),
                exchange=RESULTS_EXCHANGE,
                routing_key=event.routing_key,
                properties=aio_pika.Message(b"", headers=headers, delivery_mode=2).properties,
            )
        await channel.set_qos(prefetch_count=1)  # answered once everything before it has been routed
    return count
