"""API calls per build."""

import asyncio

from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import Report
from tests.benchmarks.places import Place, on_cluster, on_simulation
from tests.support.consumer import a_request
from tests.support.waiting import eventually

BUILDS, AT_ONCE = 10, 5
SUBSCRIBERS = (1, 20)
IDLE_SECONDS = 20
LASTING = (
    "list pods",
    "watch pods",
    "list leases",
    "watch leases",
    "create leases",
    "patch leases",
    "list configmaps",
    "create configmaps",
)
"""Calls that a replica makes whether it builds or not, or once for all builds."""


async def _calls(place: Place, subscribers: int, report: Report) -> float:
    """Return the calls that a build makes of the API server, less those that are made without builds as well."""
    async with listening(place.amqp, also=subscribers - 1) as heard:
        start = place.calls()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (place.calls() - start) / IDLE_SECONDS
        await _forget_calls(place)
        loop = asyncio.get_running_loop()
        start, began = place.calls(), loop.time()
        names = [f"with-{subscribers}-{number}" for number in range(BUILDS)]
        for at in range(0, BUILDS, AT_ONCE):
            for name in names[at : at + AT_ONCE]:
                await place.requester.request(a_request(name, lines=20, every=0.1))
            await heard.until(lambda at=at: len(heard.ends) >= at + AT_ONCE)  # type: ignore[misc]
        # Its record is kept for a few seconds, then it is removed: that is a call, too.
        await eventually(lambda: _pods(place), seconds=120)
        if place.simulated is not None:
            found = (await place.simulated.command("calls"))["answer"]
            report.results[f"all_calls_simulation_{subscribers}"] = found
            return float(sum(count for what, count in found.items() if what not in LASTING)) / BUILDS
        return (place.calls() - start - idle * (loop.time() - began)) / BUILDS


async def _forget_calls(place: Place) -> None:
    if place.simulated is not None:
        await place.simulated.command("calls")


async def _pods(place: Place) -> bool:
    if place.simulated is not None:
        return not (await place.simulated.command("pods"))["answer"]
    assert place.site is not None
    return not await asyncio.to_thread(place.site.pods)


async def measure() -> Report:
    """Count on the real cluster, less what an idle replica asks, and on the simulated one, where each call is known."""
    report = Report("pod_calls", {"builds": BUILDS, "at_once": AT_ONCE, "subscribers": SUBSCRIBERS})
    keep = {"RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS": "5"}
    for title, place in (("simulation", on_simulation), ("cluster", on_cluster)):
        async with place(**keep) as found:
            for subscribers in SUBSCRIBERS:
                calls = await _calls(found, subscribers, report)
                report.results[f"calls_per_build_{title}_{subscribers}"] = round(calls, 2)
                report.at_most(f"API calls per build, {title}, {subscribers} subscribers", calls, 6)
    return report
