"""Delay from a published line to the viewers of its build."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from tests.benchmarks.hub_serving import Serving, serving
from tests.benchmarks.measuring import Report, percentiles
from tests.support.crowd import Onlooker

VIEWERS = (1, 48, 1000)
SECONDS, BATCHES_PER_SECOND, TOGETHER = 15, 4, 25
"""Consumers publish the lines of a busy build together, the more the busier they are."""


class Ages:
    """Ages of lines on arrival, over all viewers: the first line of each event."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def note(self, lines: Iterable[tuple[bytes, bytes]]) -> None:
        """Take lines that have come now; the first of each event says when it was published."""
        now = time.monotonic()
        self.seconds += [now - float(text) for _, text in lines if text.strip()]


async def measure() -> Report:
    """Measure one build at 100 lines a second, looked at by one, by some and by many."""
    rate = BATCHES_PER_SECOND * TOGETHER
    report = Report("hub_lines", {"lines_per_second": rate, "seconds": SECONDS, "viewers": VIEWERS})
    async with serving() as hub:
        for count in VIEWERS:
            report.results[str(count)] = await _run(hub, count)
    for count in VIEWERS:
        found = report.results[str(count)]
        name = f"{count} viewer{'s' if count > 1 else ''}"
        report.at_most(f"p99 seconds, {name}", found["age_seconds"]["p99"], 0.2)
        report.at_most(f"lines lost, {name}", found["lines_lost"], 0)
    report.at_most("KB a viewer, of 1000", report.results["1000"]["viewer_kilobytes"], 25)
    report.at_most("cores of the service, 1000 viewers", report.results["1000"]["service_cores"], 0.4)
    return report


async def _run(hub: Serving, count: int) -> dict[str, Any]:
    before = hub.memory
    build_id, crowd = await hub.running_build(f"for-{count}", count)
    waiting = hub.memory
    ages = Ages()
    for viewer in crowd.viewers:
        viewer.on_lines = ages.note
    computed, began = hub.cpu_seconds, time.monotonic()
    lines = await _write(hub, build_id)
    await crowd.until(lambda viewer: viewer.next_line == lines)
    used = (hub.cpu_seconds - computed) / (time.monotonic() - began)
    following = hub.memory
    lost = _lost(crowd.viewers, lines)
    await hub.end(build_id, crowd, lines=lines)
    return {
        "age_seconds": percentiles(ages.seconds),
        "lines_lost": lost,
        "service_cores": round(used, 3),
        "waiting_viewer_kilobytes": round((waiting - before) / count / 1024, 1),
        "viewer_kilobytes": round((following - before) / count / 1024, 1),
        "service_megabytes": round(following / 1_000_000, 1),
    }


async def _write(hub: Serving, build_id: str) -> int:
    """Write against the clock, so that the rate is kept however long the publishing takes."""
    began, number = time.monotonic(), 0
    for batch in range(SECONDS * BATCHES_PER_SECOND):
        await asyncio.sleep(max(0.0, began + batch / BATCHES_PER_SECOND - time.monotonic()))
        first = f"line {number} {time.monotonic():.6f}"
        rest = [f"line {number + more}" for more in range(1, TOGETHER)]
        await hub.played.write_event(build_id, [first, *rest], first=number)
        number += TOGETHER
    return number


def _lost(viewers: list[Onlooker], lines: int) -> int:
    return sum(lines - viewer.next_line + len(viewer.disorder) for viewer in viewers)
