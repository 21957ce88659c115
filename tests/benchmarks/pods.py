"""From a published request to its pod, and what a build costs the API server."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rabbit2docker.executors.kubernetes.client import ApiClient
from rabbit2docker.executors.kubernetes.pace import Urgency
from rabbit2docker.executors.kubernetes.watching import split_lines
from rabbit2docker.settings import KubernetesSettings
from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import Report, percentiles
from tests.benchmarks.places import Place, on_cluster, on_simulation
from tests.support.consumer import a_request
from tests.support.waiting import eventually

ONE_BY_ONE, MANY, MANY_SECONDS = 20, 60, 10
COUNTED, AT_ONCE = 12, 3
SUBSCRIBERS = (1, 20)
IDLE_SECONDS = 30
NOWHERE = '{"rabbit2docker.io/benchmark": "nowhere"}'
"""A label that no node has: pods of these builds are created, and wait."""
LASTING = (
    "list pods",
    "watch pods",
    "list leases",
    "watch leases",
    "create leases",
    "patch leases",
    "list configmaps",
)
"""Calls that a replica makes whether it builds or not."""


class Arrivals:
    """When pods were first seen by a watch that was there before them, by the request's id."""

    def __init__(self) -> None:
        self.at: dict[str, datetime] = {}

    async def watch(self, namespace: str, ready: asyncio.Event) -> None:
        """Watch until cancelled."""
        api = ApiClient(KubernetesSettings(namespace=namespace))
        await api.open()
        try:
            path, query = f"/api/v1/namespaces/{namespace}/pods", {"watch": "1"}
            async with api.stream(path, query, read_seconds=None, urgency=Urgency.READ) as response:
                ready.set()
                async for line in split_lines(response.content):
                    now, event = datetime.now(UTC), json.loads(line)
                    name = (
                        event["object"]["metadata"].get("annotations", {}).get("rabbit2docker.io/request-id")
                    )
                    if event["type"] == "ADDED" and name:
                        self.at.setdefault(name, now)
        finally:
            await api.close()


@asynccontextmanager
async def _arrivals(place: Place) -> AsyncIterator[Arrivals]:
    assert place.site is not None
    arrivals, ready = Arrivals(), asyncio.Event()
    task = asyncio.create_task(arrivals.watch(place.site.namespace, ready))
    await ready.wait()
    try:
        yield arrivals
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _seconds_to_pod(*, run: bool) -> dict[str, Any]:
    """Measure on the real cluster: pods that run and end at once, or pods that no node takes."""
    variables = {} if run else {"RABBIT2DOCKER_KUBERNETES__NODE_SELECTOR": NOWHERE}
    async with on_cluster(**variables) as place, _arrivals(place) as arrivals, listening(place.amqp) as heard:
        asked: dict[str, datetime] = {}

        async def ask(name: str) -> None:
            asked[name] = datetime.now(UTC)
            await place.requester.request(a_request(name, lines=3))

        def seconds(prefix: str) -> dict[str, float]:
            found = [
                (arrivals.at[name] - at).total_seconds()
                for name, at in asked.items()
                if name.startswith(prefix)
            ]
            return percentiles(found)

        await ask("warm")
        await eventually(lambda: asked.keys() <= arrivals.at.keys())
        for number in range(ONE_BY_ONE):
            await ask(f"one-{number}")
            await eventually(lambda: asked.keys() <= arrivals.at.keys())
            if run:
                await heard.until(lambda: len(heard.ends) == len(asked))
            else:
                await asyncio.sleep(0.3)
        load = os.getloadavg()[0]
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(MANY):
            await asyncio.sleep(began + number * MANY_SECONDS / MANY - loop.time())
            await ask(f"many-{number}")
        await eventually(lambda: asked.keys() <= arrivals.at.keys(), seconds=180)
        if run:
            await heard.until(lambda: len(heard.ends) == len(asked), seconds=600)
        return {"one_by_one": seconds("one-"), "many": seconds("many-"), "load_before_many": load}


async def _calls(place: Place, subscribers: int) -> float:
    """Return the calls that a build makes of the API server, less those that are made without builds as well."""
    async with listening(place.amqp, also=subscribers - 1) as heard:
        start = place.calls()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (place.calls() - start) / IDLE_SECONDS
        await _forget_calls(place)
        loop = asyncio.get_running_loop()
        start, began = place.calls(), loop.time()
        names = [f"with-{subscribers}-{number}" for number in range(COUNTED)]
        for at in range(0, COUNTED, AT_ONCE):
            for name in names[at : at + AT_ONCE]:
                await place.requester.request(a_request(name, lines=20, every=0.1))
            await heard.until(lambda at=at: len(heard.ends) >= at + AT_ONCE)  # type: ignore[misc]
        # Its record is kept for a few seconds, then it is removed: that is a call, too.
        await eventually(lambda: _pods(place), seconds=120)
        if place.simulated is not None:
            found = (await place.simulated.command("calls"))["answer"]
            return float(sum(count for what, count in found.items() if what not in LASTING)) / COUNTED
        return (place.calls() - start - idle * (loop.time() - began)) / COUNTED


async def _forget_calls(place: Place) -> None:
    if place.simulated is not None:
        await place.simulated.command("calls")


async def _pods(place: Place) -> bool:
    if place.simulated is not None:
        return not (await place.simulated.command("pods"))["answer"]
    assert place.site is not None
    return not await asyncio.to_thread(place.site.pods)


async def measure() -> Report:
    """Measure time on the real cluster, and calls on both."""
    report = Report(
        "pods",
        {
            "one_by_one": ONE_BY_ONE,
            "many": MANY,
            "many_seconds": MANY_SECONDS,
            "counted_builds": COUNTED,
            "pod_created": "its ADDED event at a watch that was open before",
        },
    )
    keep = {"RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS": "5"}
    for title, place in (("cluster", on_cluster), ("simulation", on_simulation)):
        async with place(**keep) as found:
            for subscribers in SUBSCRIBERS:
                calls = await _calls(found, subscribers)
                report.results[f"calls_per_build_{title}_{subscribers}"] = round(calls, 2)
                report.at_most(f"API calls per build, {title}, {subscribers} subscribers", calls, 6)
    report.results["waiting_pods_seconds"] = await _seconds_to_pod(run=False)
    report.results["running_pods_seconds"] = await _seconds_to_pod(run=True)
    report.results["load"] = os.getloadavg()
    return report
