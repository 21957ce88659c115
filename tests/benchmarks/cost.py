"""CPU time of consumer, RabbitMQ and hub for a log line and for a small build, and the age of lines at a viewer.

CPU time hardly depends on what else the machine does. RabbitMQ runs in a container of its own, pods are simulated, and each
build has one viewer over HTTP.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import psutil
from pydantic import SecretStr

from rabbit2docker.settings import AmqpSettings
from tests.benchmarks.measuring import Report, percentiles
from tests.benchmarks.places import Place, on_simulation
from tests.support.consumer import a_request
from tests.support.containers import begin_run
from tests.support.crowd import Crowd, Onlooker, need_open_files
from tests.support.hub_service import HubService, build_path
from tests.support.rabbitmq import RabbitMQ

LINE_GOAL, BUILD_GOAL = 0.5, 1.3 * 56
"""Milliseconds of CPU for a line and for a small build, over all services."""
IDLE_SECONDS, STARTING_SECONDS, SECONDS = 6, 12, 12
BUILDS, BUILDS_PER_SECOND = 60, 5
LOADS: tuple[tuple[str, int, float], ...] = (
    ("1 build × 2 lines/s", 1, 2),
    ("1 build × 100 lines/s", 1, 100),
    ("10 builds × 100 lines/s", 10, 100),
    ("100 builds × 2 lines/s", 100, 2),
)


class ApiOnlooker(Onlooker):
    """A viewer of the JSON API's stream, whose events say when each line was written."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.ages: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Note the age of each line, and lines out of order."""
        now = datetime.now(UTC)
        whole, separator, self._rest = (self._rest + data).rpartition(b"\n\n")
        for block in whole.split(b"\n\n") if separator else ():
            if b"event: log" in block:
                self._note(json.loads(block.partition(b"data: ")[2])["data"], now)

    def _note(self, log: dict[str, Any], now: datetime) -> None:
        for number, line in enumerate(log["lines"], log["n"]):
            if number != self.next_line:
                self.disorder.append(number)
            self.next_line = number + 1
            self.ages.append((now - datetime.fromisoformat(line["ts"])).total_seconds())


@dataclass(slots=True)
class Services:
    """The processes whose time is taken."""

    place: Place
    hub: HubService
    broker: psutil.Process

    def cpu_seconds(self) -> dict[str, float]:
        """Return what each has computed so far."""
        assert self.hub.process is not None
        found = {"consumer": self.place.process, "hub": psutil.Process(self.hub.process.pid)}
        used = {name: used_by(process) for name, process in found.items()}
        everything = (self.broker, *self.broker.children(recursive=True))
        return used | {"rabbitmq": sum(map(used_by, everything))}

    def memory(self) -> dict[str, float]:
        """Return the resident megabytes of each."""
        assert self.hub.process is not None
        found = {"consumer": self.place.process, "hub": psutil.Process(self.hub.process.pid)}
        return {name: process.memory_info().rss / 1_000_000 for name, process in found.items()}


def used_by(process: psutil.Process) -> float:
    """Return the CPU seconds of a process; 0 for one that has gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


@asynccontextmanager
async def services(**variables: str) -> AsyncIterator[Services]:
    """Run consumer, hub and a RabbitMQ of their own, with pods that are simulated; `variables` are the consumer's."""
    end, before = begin_run(), dict(os.environ)
    try:
        broker = await asyncio.to_thread(RabbitMQ.start)
        os.environ["RABBIT2DOCKER_AMQP__URL"] = broker.url("/")
        os.environ["RABBIT2DOCKER_AMQP__MANAGEMENT_URL"] = broker.management_url
        root = psutil.Process(docker.from_env().containers.get(broker.container.id).attrs["State"]["Pid"])
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            async with on_simulation(**variables) as place:
                amqp = AmqpSettings(url=SecretStr(place.amqp.url.get_secret_value()))
                limits = {
                    "RABBIT2DOCKER_HUB__REQUESTS_PER_ADDRESS": "0",
                    "RABBIT2DOCKER_HUB__VIEWERS_PER_USER": "0",
                    "RABBIT2DOCKER_HUB__VIEWERS": "6000",
                    "RABBIT2DOCKER_HUB__SHARE_SECONDS": "600",
                    "RABBIT2DOCKER_LOG__LEVEL": "warning",
                }
                hub = HubService(Path(directory), amqp, **limits)
                await asyncio.to_thread(hub.start_and_wait)
                try:
                    yield Services(place, hub, root)
                finally:
                    hub.end()
    finally:
        os.environ.clear()
        os.environ.update(before)
        end()


async def _watch(services: Services, name: str) -> ApiOnlooker:
    """Look at a build as soon as the hub knows it."""
    status = 404
    while status != 200:
        await asyncio.sleep(0.2)
        status = (await services.hub.viewer.raw(f"api/builds/{name}"))[0]
    host, port = services.hub.bind.split(":")
    connect = asyncio.get_running_loop().create_connection
    _, viewer = await connect(ApiOnlooker, host, int(port))
    viewer.ask(f"/api/builds/{name}/events", services.hub.bind)
    return viewer


async def _lines(services: Services, idle: dict[str, float], builds: int, rate: float) -> dict[str, Any]:
    at, count = time.time() + STARTING_SECONDS, int(rate * (SECONDS + 6))
    names = [f"c{builds}-{rate:g}-{number}" for number in range(builds)]
    for number, name in enumerate(names):
        # Not all in the same moment, as builds have nothing to do with each other.
        begin = at + number / builds / rate
        await services.place.requester.request(a_request(name, lines=count, every=1 / rate, at=begin))
    viewers = await asyncio.gather(*(_watch(services, name) for name in names))
    await asyncio.sleep(at + 3 - time.time())
    seen, before, began = _seen(viewers), services.cpu_seconds(), time.monotonic()
    ages = [len(viewer.ages) for viewer in viewers]
    await asyncio.sleep(SECONDS)
    took, lines = time.monotonic() - began, _seen(viewers) - seen
    after = services.cpu_seconds()
    young = [age for viewer, start in zip(viewers, ages, strict=True) for age in viewer.ages[start:]]
    await asyncio.gather(*(viewer.is_gone for viewer in viewers))
    each = {name: round((after[name] - before[name] - idle[name] * took) / lines * 1000, 3) for name in after}
    return {
        "cpu_milliseconds_per_line": each | {"all": round(sum(each.values()), 3)},
        "age_seconds": percentiles(young),
        "lines_lost_or_out_of_order": sum(
            len(viewer.disorder) + count - viewer.next_line for viewer in viewers
        ),
    }


def _seen(viewers: list[ApiOnlooker]) -> int:
    return sum(viewer.next_line for viewer in viewers)


async def _builds(services: Services, idle: dict[str, float]) -> dict[str, Any]:
    crowd = Crowd(services.hub.address)
    before, began = services.cpu_seconds(), time.monotonic()
    for number in range(BUILDS):
        await crowd.join(1, build_path(f"small-{number}"))
        await asyncio.sleep(max(0.0, began + (number + 1) / BUILDS_PER_SECOND - time.monotonic()))
    await asyncio.gather(*(viewer.is_gone for viewer in crowd.viewers))
    await asyncio.sleep(1)
    took, after = time.monotonic() - began, services.cpu_seconds()
    each = {
        name: round((after[name] - before[name] - idle[name] * took) / BUILDS * 1000, 1) for name in after
    }
    return {
        "cpu_milliseconds_per_build": each | {"all": round(sum(each.values()), 1)},
        "first_event_seconds": percentiles([viewer.first_at - viewer.asked_at for viewer in crowd.viewers]),
        "not_ready": sum(not viewer.is_ready for viewer in crowd.viewers),
    }


async def measure() -> Report:
    """Measure lines at several rates, then small builds."""
    need_open_files(4096)
    report = Report("cost", {"seconds": SECONDS, "builds": BUILDS, "builds_per_second": BUILDS_PER_SECOND})
    async with services() as running:
        await asyncio.sleep(3)
        before = running.cpu_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        after = running.cpu_seconds()
        idle = {name: (after[name] - before[name]) / IDLE_SECONDS for name in after}
        report.results["idle_cores"] = {name: round(cores, 4) for name, cores in idle.items()}
        for name, builds, rate in LOADS:
            report.results[name] = found = await _lines(running, idle, builds, rate)
            report.at_most(f"lines lost or out of order, {name}", found["lines_lost_or_out_of_order"], 0)
            report.at_most(f"CPU ms a line, {name}", found["cpu_milliseconds_per_line"]["all"], LINE_GOAL)
            report.at_most(f"p50 seconds, {name}", found["age_seconds"]["p50"], 0.03)
        report.results["small builds"] = found = await _builds(running, idle)
        report.at_most("CPU ms a small build", found["cpu_milliseconds_per_build"]["all"], BUILD_GOAL)
    report.results["load"] = os.getloadavg()
    return report
