"""From a request over HTTP to the first event of its build."""

import asyncio

from tests.benchmarks.hub_serving import serving
from tests.benchmarks.measuring import Report, percentiles
from tests.support.crowd import Crowd
from tests.support.hub_service import build_path

SINGLE, TOGETHER = 200, 60


async def measure() -> Report:
    """Measure new builds one after the other, and as many at once as a workshop has, and viewers that join one."""
    report = Report("hub_first", {"single": SINGLE, "together": TOGETHER})
    async with serving() as hub:
        single = [await _first(hub.hub.address, f"single-{number}") for number in range(SINGLE)]
        together = await asyncio.gather(
            *(_first(hub.hub.address, f"together-{number}") for number in range(TOGETHER))
        )
        build_id, crowd = await hub.running_build("running", 1)
        await hub.played.write_event(build_id, ["line 0"], first=0)
        await crowd.until(lambda viewer: viewer.next_line == 1)
        joining = [await _first(hub.hub.address, "running") for _ in range(SINGLE)]
        await hub.end(build_id, crowd, lines=1)
    report.results = {
        "new_build_seconds": percentiles(single),
        "new_builds_at_once_seconds": percentiles(together),
        "joined_build_seconds": percentiles(joining),
    }
    report.at_most("p95 seconds, a new build", report.results["new_build_seconds"]["p95"], 0.1)
    report.at_most(
        f"p95 seconds, {TOGETHER} new builds at once",
        report.results["new_builds_at_once_seconds"]["p95"],
        1.0,
    )
    report.at_most("p95 seconds, a running build", report.results["joined_build_seconds"]["p95"], 0.1)
    return report


async def _first(address: str, name: str) -> float:
    crowd = Crowd(address)
    [viewer] = await crowd.join(1, build_path(name))
    await viewer.first
    crowd.leave()
    return viewer.first_event_at - viewer.asked_at
