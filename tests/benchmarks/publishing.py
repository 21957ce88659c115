"""Confirmed events a second, beside the bare library with the same window and the same bytes."""

import asyncio
import time
import uuid
from datetime import UTC, datetime
from statistics import median

import aio_pika

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log, LogLine, Phase
from tests.benchmarks.measuring import Report, own_vhost

EVENTS, WINDOW, ROUNDS = 3000, 100, 7


def _event(number: int) -> Event:
    build_id = ids.build_id_of("default", "benchmark")
    lines = [LogLine(phase=Phase.BUILDING, text="x" * 60, ts=datetime.now(UTC)) for _ in range(3)]
    data = Log.model_construct(build_id=build_id, attempt=1, n=number * 3, lines=lines)
    return Event(ids.lines_event_id(build_id, 1, number, number, "log"), "default", datetime.now(UTC), data)


async def _ours(settings: Settings, events: list[Event]) -> float:
    async with publishing(settings, wait_seconds=20) as publisher:
        began = time.perf_counter()
        await asyncio.gather(*[publisher.publish(event) for event in events])
        return len(events) / (time.perf_counter() - began)


async def _bare(amqp: AmqpSettings, events: list[Event]) -> float:
    window = asyncio.Semaphore(WINDOW)
    ready = [(event.body(), event.headers(), event.routing_key) for event in events]
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange("builds.results", ensure=False)

        async def publish(body: bytes, headers: dict[str, str], key: str) -> None:
            async with window:
                message = aio_pika.Message(
                    body, headers=dict(headers), delivery_mode=2, message_id=uuid.uuid4().hex
                )
                await exchange.publish(message, key, timeout=10)

        began = time.perf_counter()
        await asyncio.gather(*[publish(*item) for item in ready])
        return len(events) / (time.perf_counter() - began)


async def measure() -> Report:
    """Measure both in turns: the machine's mood is the same for both."""
    report = Report("publishing", {"events": EVENTS, "window": WINDOW, "rounds": ROUNDS})
    events = [_event(number) for number in range(EVENTS)]
    ours, bare = [], []
    with own_vhost() as amqp:
        settings = Settings(amqp=amqp)
        await declare.declare(settings)
        for _ in range(ROUNDS):
            ours.append(await _ours(settings, events))
            bare.append(await _bare(amqp, events))
    ratio = median(a / b for a, b in zip(ours, bare, strict=True))
    report.results = {
        "ours_per_second": [round(rate) for rate in ours],
        "bare_per_second": [round(rate) for rate in bare],
        "ratio": round(ratio, 3),
    }
    report.at_least("ours to bare aio-pika", ratio, 0.8)
    return report
