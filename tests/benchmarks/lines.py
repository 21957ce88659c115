"""From a line that the builder wrote to a subscriber that has it."""

import asyncio
import time
from collections import defaultdict
from datetime import UTC, datetime

import aio_pika
import psutil

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import read_event
from rabbit2docker_schemas.events import Log
from tests.benchmarks.measuring import Report, percentiles, running_consumer
from tests.support.consumer import a_request

RATE, SECONDS, MANY = 100, 20, 30


async def _listen(amqp: AmqpSettings, ends: int, ready: asyncio.Event) -> tuple[list[float], dict[str, int]]:
    """Return the age of each line when it came, and the number of lines of each build."""
    ages: list[float] = []
    counts: dict[str, int] = defaultdict(int)
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=500)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("builds.results", "build.default.#")
        async with queue.iterator() as messages:
            ready.set()
            async for message in messages:
                now = datetime.now(UTC)
                await message.ack()
                event = read_event(message.headers, message.body)
                if isinstance(event.data, Log):
                    for line in event.data.lines:
                        if line.text.startswith("line "):
                            ages.append((now - line.ts).total_seconds())
                            counts[event.data.build_id] += 1
                ends -= event.is_terminal
                if not ends:
                    break
    return ages, counts


async def _run(builds: int) -> dict[str, object]:
    async with running_consumer() as (consumer, settings, requester):
        ready = asyncio.Event()
        listening = asyncio.create_task(_listen(settings.amqp, builds, ready))
        await ready.wait()
        assert consumer.process is not None
        process = psutil.Process(consumer.process.pid)
        for number in range(builds):
            await requester.request(a_request(f"b{number}", lines=RATE * SECONDS, every=1 / RATE))
        await asyncio.sleep(SECONDS / 4)  # the start of so many interpreters is not what is measured
        before, began = process.cpu_times(), time.monotonic()
        await asyncio.sleep(SECONDS / 2)
        after, took = process.cpu_times(), time.monotonic() - began
        ages, counts = await listening
    used = (after.user + after.system - before.user - before.system) / took
    lost = builds * RATE * SECONDS - sum(counts.values())
    return {"age_seconds": percentiles(ages), "lines_lost": lost, "consumer_cores": round(used, 3)}


async def measure() -> Report:
    """Measure with one build and with many."""
    report = Report("lines", {"lines_per_second": RATE, "seconds": SECONDS, "builds": [1, MANY]})
    one, many = await _run(1), await _run(MANY)
    report.results = {"1": one, str(MANY): many}
    for name, found in (("1 build", one), (f"{MANY} builds", many)):
        report.at_most(f"p99 seconds, {name}", found["age_seconds"]["p99"], 0.400)  # type: ignore[index]
        report.at_most(f"lines lost, {name}", float(found["lines_lost"]), 0)  # type: ignore[arg-type]
    report.at_most(f"cores of the consumer, {MANY} builds", float(many["consumer_cores"]), 1.0)  # type: ignore[arg-type]
    return report
