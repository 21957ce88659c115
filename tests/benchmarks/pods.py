"""From a published request to its pod."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rabbit2docker.consumer.executors.kubernetes.client import ApiClient
from rabbit2docker.consumer.executors.kubernetes.informer import split_lines
from rabbit2docker.settings import KubernetesSettings
from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import Report, percentiles
from tests.benchmarks.places import Place, on_cluster
from tests.support.consumer import a_request
from tests.support.waiting import eventually

ONE_BY_ONE, MANY, MANY_SECONDS = 20, 60, 10
NOWHERE = '{"rabbit2docker.io/benchmark": "nowhere"}'
"""A label that no node has: pods of these builds are created, and wait."""


class Arrivals:
    """Times at which an existing watch first saw pods, by the request's id."""

    def __init__(self) -> None:
        self.at: dict[str, datetime] = {}

    async def watch(self, namespace: str, ready: asyncio.Event) -> None:
        """Watch until cancelled."""
        api = ApiClient(KubernetesSettings(namespace=namespace))
        await api.open()
        try:
            path, query = f"/api/v1/namespaces/{namespace}/pods", {"watch": "1"}
            async with api.stream(path, query, read_seconds=None) as response:
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


async def measure() -> Report:
    """Measure pods that wait and pods that run, each one by one and many at once."""
    report = Report(
        "pods",
        {
            "one_by_one": ONE_BY_ONE,
            "many": MANY,
            "many_seconds": MANY_SECONDS,
            "pod_created": "its ADDED event at a watch that was open before",
        },
    )
    report.results["waiting_pods_seconds"] = await _seconds_to_pod(run=False)
    report.results["running_pods_seconds"] = await _seconds_to_pod(run=True)
    report.results["load"] = os.getloadavg()
    return report
