"""From a line that the builder wrote to a subscriber that has it."""

import asyncio
import time

import psutil

from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import Report, percentiles, running_consumer
from tests.support.consumer import a_request

RATE, SECONDS, MANY = 100, 20, 30


async def _run(builds: int) -> dict[str, object]:
    async with (
        running_consumer() as (consumer, settings, requester),
        listening(settings.amqp) as heard,
    ):
        assert consumer.process is not None
        process = psutil.Process(consumer.process.pid)
        for number in range(builds):
            await requester.request(a_request(f"b{number}", lines=RATE * SECONDS, every=1 / RATE))
        await asyncio.sleep(SECONDS / 4)  # the start of so many interpreters is not what is measured
        before, began = process.cpu_times(), time.monotonic()
        await asyncio.sleep(SECONDS / 2)
        after, took = process.cpu_times(), time.monotonic() - began
        await heard.until(lambda: len(heard.ends) == builds)
    used = (after.user + after.system - before.user - before.system) / took
    lost = builds * RATE * SECONDS - heard.count
    return {"age_seconds": percentiles(heard.ages), "lines_lost": lost, "consumer_cores": round(used, 3)}


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
