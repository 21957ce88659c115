"""Cost of following a thousand builds in one replica, and time to adopt them after a restart."""

import asyncio
import os
import time
from typing import Any

from tests.benchmarks.listening import Listener, listening
from tests.benchmarks.measuring import Report
from tests.benchmarks.places import Place, on_simulation
from tests.support.consumer import a_request
from tests.support.waiting import eventually

PODS, LINES, LINES_DURING_RESTART = 1000, 20, 5
SETTLING_SECONDS, IDLE_SECONDS = 20, 60


def _megabytes(place: Place) -> float:
    return round(float(place.process.memory_info().rss) / 1_000_000, 1)


def _used(place: Place) -> float:
    times = place.process.cpu_times()
    return float(times.user + times.system)


async def _back(place: Place, heard: Listener, lines: int, began: float) -> dict[str, Any]:
    """Return how long it takes until all builds are followed, and until all their lines have come."""
    adopted = 0.0
    while not adopted or heard.count < lines:
        assert time.monotonic() < began + 300, f"{heard.count} of {lines} lines came"
        await asyncio.sleep(0.2)
        if not adopted and await asyncio.to_thread(_follows_all, place):
            adopted = time.monotonic() - began
    streams = "rabbit2docker_kubernetes_log_streams"
    await eventually(lambda: place.metric(streams) == PODS, seconds=120)
    return {
        "followed_seconds": round(adopted, 1),
        "lines_caught_up_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(_used(place), 1),
        "mb": _megabytes(place),
    }


def _follows_all(place: Place) -> bool:
    try:
        return place.metric("rabbit2docker_builds_followed") == PODS
    except OSError:
        return False  # it is being started


async def _restart(place: Place, heard: Listener, lines: int, *, kill: bool) -> dict[str, Any]:
    """Have it end and start; in the meantime every pod writes lines."""
    assert place.simulated is not None
    began = time.monotonic()
    await asyncio.to_thread(place.consumer.kill if kill else place.consumer.stop)
    stopping = round(time.monotonic() - began, 1)
    await place.simulated.command(f"say {LINES_DURING_RESTART}")
    began = time.monotonic()
    place.consumer.start()
    return {"stopping_seconds": stopping, **await _back(place, heard, lines, began)}


async def measure() -> Report:
    """Measure on simulated nodes."""
    report = Report("many_pods", {"pods": PODS, "lines_of_each": LINES, "idle_seconds": IDLE_SECONDS})
    async with on_simulation() as place, listening(place.amqp) as heard:
        report.results["mb_without_builds"] = _megabytes(place)
        began, lines = time.monotonic(), PODS * LINES
        for number in range(PODS):
            await place.requester.request(a_request(f"p{number}", lines=LINES, stay=1))
        report.results["begun"] = await _back(place, heard, lines, began)
        await asyncio.sleep(SETTLING_SECONDS)
        report.results["mb"] = _megabytes(place)
        before, began = _used(place), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        report.results["cores_idle"] = round((_used(place) - before) / (time.monotonic() - began), 4)
        for name, kill in (("restarted", False), ("killed", True)):
            lines += PODS * LINES_DURING_RESTART
            report.results[name] = await _restart(place, heard, lines, kill=kill)
            await asyncio.sleep(SETTLING_SECONDS)
        report.results["mb_in_the_end"] = _megabytes(place)
    report.results["load"] = os.getloadavg()
    report.at_most(f"MB at {PODS} pods", max(report.results["mb"], report.results["mb_in_the_end"]), 350)
    for name in ("restarted", "killed"):
        report.at_most(f"seconds to adopt all, {name}", report.results[name]["lines_caught_up_seconds"], 20)
    return report
