"""Rows of a comparison that are about requests, builds and lines: each measures one side in one round."""

import asyncio
import time
from contextlib import AsyncExitStack
from urllib.parse import quote

from tests.benchmarks.compare_sides import Run, Side, lines_of, total
from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import percentiles
from tests.benchmarks.pod_calls import LASTING
from tests.benchmarks.reference import Counter, Viewer, all_over, count_all, look, look_all
from tests.benchmarks.simulated import play
from tests.support.consumer import a_request
from tests.support.rabbitmq import Management

RATE = 100
PATIENCE = 120.0
WATCHED = 48
"""Of more viewers than this, these look at each line, and the others count: this process must not be what is slow."""
COUNTED_AFTER_SECONDS = 6.0
"""RabbitMQ counts what was published every five seconds."""
PROCESSES = {"consumer": "consumer", "hub": "hub", "rabbitmq": "RabbitMQ", "all": "all"}


async def _begun(viewer: Viewer) -> float | None:
    """Return the seconds until the first event; None if there is none."""
    await asyncio.wait({viewer.first, viewer.over}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    return viewer.first_at - viewer.asked_at if viewer.first.done() else None


def _note_seconds(run: Run, row: str, side: Side, values: list[float], cut: str = "p50") -> None:
    if values:
        run.note(f"{row}, {cut}", "ms", side.name, 1000 * percentiles(values)[cut])


async def requests(run: Run, side: Side) -> None:
    """Measure requests one after the other, over HTTP and, here, over AMQP."""
    count, firsts, asked = (8 if run.quick else 20), [], {}
    for number in range(count):
        name = play(5, 0, run.name("one", side, number))
        asked[name] = time.time()
        viewer = await look(side.target, name)
        first = await _begun(viewer)
        firsts += [] if first is None else [first]
        await all_over([viewer], seconds=PATIENCE)
    _note_seconds(run, "request → first event, one by one", side, firsts)
    if side.services is None:
        return
    _note_seconds(run, "request over HTTP → pod created", side, await to_pods(side, asked))
    asked = {}
    for number in range(count):
        name = run.name("amqp", side, number)
        asked[name] = time.time()
        await side.services.place.requester.request(a_request(name, lines=5))
        await asyncio.sleep(0.3)
    _note_seconds(run, "request over AMQP → pod created", side, await to_pods(side, asked))


async def to_pods(side: Side, asked: dict[str, float]) -> list[float]:
    """Return the seconds from each request to the creation of its pod."""
    assert side.services is not None
    assert side.services.place.simulated is not None
    created: dict[str, float] = (await side.services.place.simulated.command("created"))["answer"]
    return [created[name] - at for name, at in asked.items() if name in created]


async def at_once(run: Run, side: Side) -> None:
    """Measure as many new builds at once as a workshop has."""
    count = 20 if run.quick else 60
    names = [play(5, 0, run.name("many", side, number)) for number in range(count)]
    viewers = await look_all(side.target, names)
    firsts = [first for viewer in viewers if (first := await _begun(viewer)) is not None]
    await all_over(viewers, seconds=PATIENCE)
    for cut in ("p50", "p95"):
        _note_seconds(run, f"request → first event, {count} at once", side, firsts, cut)


async def small_builds(run: Run, side: Side) -> None:
    """Measure what a build of five lines costs: CPU time, messages, calls of the API server."""
    count, per_second = (10 if run.quick else 30), 5
    published, before, began = _published(side), side.cpu_seconds(), time.monotonic()
    if side.services is not None and side.services.place.simulated is not None:
        await side.services.place.simulated.command("calls")
    viewers: list[Viewer] = []
    for number in range(count):
        viewers.append(await look(side.target, play(5, 0, run.name("small", side, number))))
        await asyncio.sleep(max(0.0, began + (number + 1) / per_second - time.monotonic()))
    await all_over(viewers, seconds=PATIENCE)
    for name, seconds in total(before, side.cpu_seconds()).items():
        run.note(f"CPU of a small build, {_process(name)}", "ms", side.name, 1000 * seconds / count)
    if side.services is not None and side.services.place.simulated is not None:
        calls = (await side.services.place.simulated.command("calls"))["answer"]
        made = sum(number for what, number in calls.items() if what not in LASTING)
        run.note("calls of the API server for a build", "", side.name, made / count)
        await asyncio.sleep(COUNTED_AFTER_SECONDS)
        run.note("messages published for a build", "", side.name, (_published(side) - published) / count)


def _process(name: str) -> str:
    # A reference's processes are one figure, which stands beside all of ours.
    return PROCESSES.get(name, "all")


def _published(side: Side) -> float:
    """Return how many messages RabbitMQ has taken so far on this side's virtual host."""
    if side.services is None:
        return 0.0
    amqp = side.services.place.amqp
    assert amqp.management_url is not None
    management = Management(amqp.management_url.get_secret_value())
    vhost = quote((amqp.url.get_secret_value().rpartition("/")[2]), safe="")
    counted = management.api("GET", f"vhosts/{vhost}").get("message_stats", {})
    return float(counted.get("publish", 0))


async def lines(run: Run, side: Side, builds: int) -> None:
    """Measure lines of some builds with one viewer each, and here those of a subscriber as well."""
    seconds = 6 if run.quick else 12
    row = f"{builds} build{'s' if builds > 1 else ''} × {RATE} lines/s"
    async with AsyncExitStack() as stack:
        heard = None
        if side.services is not None:
            heard = await stack.enter_async_context(listening(side.services.place.amqp))
        names = [play(RATE * seconds, 1 / RATE, run.name("lines", side, number)) for number in range(builds)]
        before = side.cpu_seconds()
        viewers = await look_all(side.target, names)
        await all_over(viewers, seconds=PATIENCE + seconds)
        used = total(before, side.cpu_seconds())
    for cut in ("p50", "p99"):
        _note_seconds(run, f"line → viewer, {row}", side, _settled(viewers), cut)
        if heard is not None and heard.ages:
            _note_seconds(run, f"line → subscriber, {row}", side, heard.ages[len(heard.ages) // 3 :], cut)
    _note_complete(run, f"viewers with every line, {row}", side, viewers, RATE * seconds)
    ends = [viewer.ended_at - viewer.last_line_at for viewer in viewers if viewer.ended_at]
    _note_seconds(run, f"last line → end, {row}", side, ends)
    for name, spent in used.items():
        thousands = max(1, lines_of(viewers)) / 1000
        run.note(f"CPU of 1,000 lines, {row}, {_process(name)}", "ms", side.name, 1000 * spent / thousands)


def _settled(viewers: list[Viewer]) -> list[float]:
    """Return the ages of lines, without those of the first third of each build, when all of them begin."""
    return [age for viewer in viewers for age in viewer.ages[len(viewer.ages) // 3 :]]


def _note_complete(
    run: Run,
    row: str,
    side: Side,
    viewers: list[Viewer],
    expected: int,
    counters: list[Counter] | None = None,
) -> None:
    complete = sum(each.next_line == expected and not each.disorder for each in viewers)
    complete += sum(each.lines == expected for each in counters or ())
    percent = 100 * complete / (len(viewers) + len(counters or ()))
    run.note(row, "%", side.name, percent, is_more_better=True)


async def viewers(run: Run, side: Side, count: int) -> None:
    """Measure one build with many viewers, and a request that comes in the meantime."""
    seconds = (6 if run.quick else 12) + count // 100
    name = play(RATE * seconds, 1 / RATE, run.name("crowd", side))
    row = f"{count:,} viewer{'s' if count > 1 else ''} of 1 build × {RATE} lines/s"
    watching = await look_all(side.target, [name] * min(count, WATCHED))
    counters = await count_all(side.target, name, count - len(watching))
    before, began = side.cpu_seconds(), time.monotonic()
    await asyncio.sleep(2)
    other = await look(side.target, play(5, 0, run.name("other", side, count)))
    first = await _begun(other)
    _note_seconds(run, f"request → first event beside {row}", side, [] if first is None else [first])
    used, took = side.cpu_seconds(), time.monotonic() - began
    while not any(viewer.over.done() for viewer in watching) and took < PATIENCE + seconds:
        used, took = side.cpu_seconds(), time.monotonic() - began
        await asyncio.sleep(0.5)
    await all_over([*watching, *counters, other], seconds=PATIENCE)
    ages = [age for viewer in watching for age in viewer.ages[-len(viewer.ages) // 3 :]]
    for cut in ("p50", "p99"):
        _note_seconds(run, f"line → viewer, {row}", side, ages, cut)
    _note_complete(run, f"viewers with every line, {row}", side, watching, RATE * seconds, counters)
    _note_server(run, row, side, total(before, used), took)


def _note_server(run: Run, row: str, side: Side, used: dict[str, float], took: float) -> None:
    """Note the cores of what serves the viewers."""
    for process in ("hub", "reference"):
        if process in used:
            run.note(f"cores that serve, {row}", "", side.name, used[process] / took)


async def idle(run: Run, side: Side) -> None:
    """Measure services that have nothing to do."""
    if memory := side.memory():
        each = memory if side.services is not None else {}
        for name, megabytes in (each | {"all": sum(memory.values())}).items():
            run.note(f"memory idle, {_process(name)}", "MB", side.name, megabytes)
    seconds = 5 if run.quick else 20
    before = side.cpu_seconds()
    await asyncio.sleep(seconds)
    if used := total(before, side.cpu_seconds()):
        run.note("cores idle, all", "", side.name, used["all"] / seconds)
