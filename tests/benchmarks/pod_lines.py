"""From a line that a builder wrote in its pod to a subscriber that has it."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import Report, percentiles
from tests.benchmarks.places import Place, on_cluster, on_simulation
from tests.support.consumer import a_request
from tests.support.waiting import eventually

RATE, SECONDS, PODS = 100, 20, 30
STARTING_SECONDS = 75
"""All pods begin to write at the same time, when all of them have long been started."""


async def _run(where: Callable[[], AbstractAsyncContextManager[Place]], pods: int) -> dict[str, Any]:
    async with where() as place, listening(place.amqp) as heard:
        at = time.time() + (STARTING_SECONDS if place.site else 10)
        for number in range(pods):
            await place.requester.request(
                a_request(f"p{number}", lines=RATE * SECONDS, every=1 / RATE, at=at)
            )
        wanted = float(pods)
        await eventually(
            lambda: place.metric("rabbit2docker_kubernetes_log_streams") == wanted, seconds=at - time.time()
        )
        await asyncio.sleep(at - time.time() + SECONDS / 4)
        before, began = place.process.cpu_times(), time.monotonic()
        await asyncio.sleep(SECONDS / 2)
        after, took = place.process.cpu_times(), time.monotonic() - began
        load = os.getloadavg()[0]
        await heard.until(lambda: len(heard.ends) == pods)
    used = (after.user + after.system - before.user - before.system) / took
    return {
        "age_seconds": percentiles(heard.ages),
        "lines_lost": pods * RATE * SECONDS - heard.count,
        "lines_repeated": heard.repeats,
        "consumer_cores": round(used, 3),
        "load": load,
    }


async def measure() -> Report:
    """Measure one pod and many on the real cluster, and many that cost the machine less."""
    report = Report("pod_lines", {"lines_per_second": RATE, "seconds": SECONDS, "pods": [1, PODS]})
    found = {
        "cluster, 1 pod": await _run(on_cluster, 1),
        f"cluster, {PODS} pods": await _run(on_cluster, PODS),
        f"simulation, {PODS} pods": await _run(on_simulation, PODS),
    }
    report.results = dict(found)
    for name, result in found.items():
        report.at_most(f"p99 seconds, {name}", result["age_seconds"]["p99"], 0.400)
        report.at_most(f"lines lost, {name}", result["lines_lost"], 0)
        report.at_most(f"cores of the consumer, {name}", result["consumer_cores"], 1.0)
    return report
