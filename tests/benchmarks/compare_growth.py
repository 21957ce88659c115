"""Rows of a comparison about how this service grows with live builds, restarts and starts."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.compare_floors import PYTHON, python_start
from tests.benchmarks.compare_sides import Run
from tests.benchmarks.comparison import OURS
from tests.benchmarks.cost import Services, used_by
from tests.benchmarks.places import Place
from tests.benchmarks.reference import all_over, look
from tests.benchmarks.simulated import play
from tests.support.consumer import a_request
from tests.support.waiting import eventually

FOLLOWED = "rabbit2docker_builds_followed"
STREAMS = "rabbit2docker_kubernetes_log_streams"
SETTLING_SECONDS = 5.0


async def growth(run: Run, sizes: tuple[int, ...]) -> None:
    """Measure with more and more builds that have said a few lines and go on; then end and start the consumer."""
    services = run.ours.services
    assert services is not None
    place, there = services.place, 0
    before = services.memory()["consumer"]
    for size in sizes:
        for number in range(there, size):
            name = run.name("live", run.ours, number)
            await place.requester.request(a_request(name, lines=5, stay=1))
        there = size
        await _has(place, FOLLOWED, size)
        await asyncio.sleep(SETTLING_SECONDS)
        await _note_size(run, services, size, before)
    await _adoption(run, place, there)


async def _has(place: Place, metric: str, count: int) -> None:
    def is_there() -> bool:
        try:
            return place.metric(metric) >= count
        except OSError:
            return False  # it is being started

    await eventually(lambda: asyncio.to_thread(is_there), seconds=60 + count / 2)


async def _note_size(run: Run, services: Services, size: int, before: float) -> None:
    seconds = 5 if run.quick else 20
    at = f"{size:,} live builds"
    megabytes = services.memory()["consumer"]
    used = used_by(services.place.process)
    await asyncio.sleep(seconds)
    run.note(f"memory of the consumer, {at}", "MB", OURS, megabytes, digits=1)
    run.note(f"memory of a build, {at}", "KB", OURS, 1000 * (megabytes - before) / size, digits=1)
    run.note(f"cores of the consumer, {at}", "", OURS, (used_by(services.place.process) - used) / seconds)
    viewer = await look(run.ours.target, play(5, 0, run.name("new", run.ours, size)))
    await all_over([viewer], seconds=120)
    if viewer.first.done():
        first = 1000 * (viewer.first_at - viewer.asked_at)
        run.note(f"request → first event, {at}", "ms", OURS, first, digits=1)


async def _adoption(run: Run, place: Place, count: int) -> None:
    await asyncio.to_thread(place.consumer.stop)
    began = time.monotonic()
    place.consumer.start()
    await _has(place, FOLLOWED, count)
    run.note(
        f"{count:,} live builds followed again after a restart", "s", OURS, time.monotonic() - began, digits=1
    )


async def starting(run: Run) -> None:
    """Measure how long programs take to start: that of the help, and the services with nothing to adopt."""
    services = run.ours.services
    assert services is not None
    run.note("rabbit2docker --help", "s", OURS, await asyncio.to_thread(_help), digits=2)
    run.note("rabbit2docker --help", "s", PYTHON, await asyncio.to_thread(python_start), digits=2)
    consumer, hub = services.place.consumer, services.hub
    for name, stop, start in (
        ("consumer", consumer.stop, consumer.start_and_wait),
        ("hub", hub.stop, hub.start_and_wait),
    ):
        await asyncio.to_thread(stop)
        run.note(f"start to ready, {name}", "s", OURS, await asyncio.to_thread(_timed, start), digits=2)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _help() -> float:
    program = Path(sys.executable).with_name("rabbit2docker")
    return _timed(lambda: subprocess.run([program, "--help"], check=True, capture_output=True))
