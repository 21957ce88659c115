"""Resident memory of the consumer."""

import asyncio

import psutil

from tests.benchmarks.measuring import Report, running_consumer
from tests.support.consumer import a_request
from tests.support.waiting import eventually

FOLLOWED = (30, 200)
LINES_EVERY = 1.0


async def measure() -> Report:
    """Measure idle, and with more and more builds, each of which prints a line a second."""
    report = Report("memory", {"followed": FOLLOWED, "seconds_between_lines": LINES_EVERY})
    async with running_consumer() as (consumer, _, requester):
        assert consumer.process is not None
        process = psutil.Process(consumer.process.pid)
        report.results["idle_mb"] = _megabytes(process)
        there = 0
        for count in FOLLOWED:
            for number in range(there, count):
                await requester.request(a_request(f"b{number}", lines=600, every=LINES_EVERY))
            there = count
            wanted = f"rabbit2docker_builds_followed {count}.0"
            await eventually(lambda: wanted in consumer.get("/metrics")[1], seconds=180)  # noqa: B023
            await asyncio.sleep(10)
            report.results[f"{count}_mb"] = _megabytes(process)
    report.at_most("MB idle", report.results["idle_mb"], 120)
    report.at_most("MB at 30 builds", report.results["30_mb"], 120)
    report.at_most("MB at 200 builds", report.results["200_mb"], 200)
    return report


def _megabytes(process: psutil.Process) -> float:
    return round(float(process.memory_info().rss) / 1_000_000, 1)
