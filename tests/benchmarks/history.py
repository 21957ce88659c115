"""Reading the past of builds out of a stream with very many events, published a few at a time as builds publish them."""

import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TypeVar

import aio_pika
from aiormq import spec

from rabbit2docker.amqp import declare
from rabbit2docker.cli.overview import BuildRow, newest_rows, rows_of
from rabbit2docker.client import History
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker.settings.topology import TopologySettings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log, Phase
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE
from tests.benchmarks.measuring import Report, own_vhost
from tests.support.client_events import BUILD, accepted, completed, lines, progress
from tests.support.histories import build_of, interleaved, name_of

T = TypeVar("T")

BUILDS = 500
LOGS = 190
"""Log events of a build; with 8 of progress, its beginning and its end it has 200 events, a megabyte."""
STREAM_BYTES = 20_000_000_000
"""More than is published: by default a stream drops its oldest events after 5 GB, headers included."""
LINES, LINE_BYTES = 30, 70
PHASES = (Phase.WAITING, Phase.FETCHING, Phase.BUILDING, Phase.PUSHING)
RUNNING = 2
AT_ONCE = 10
"""Builds that go on at a time."""
BURST = 50
"""Events that reach the broker together: they share a chunk of the stream."""


async def measure(builds: int = BUILDS, *, name: str = "history") -> Report:
    """Fill a stream, then time what commands do with it."""
    report = Report(name, {"builds": builds, "events": builds * (LOGS + 10), "builds at once": AT_ONCE})
    with own_vhost() as amqp:
        await declare.declare(Settings(amqp=amqp, topology=TopologySettings(events_bytes=STREAM_BYTES)))
        begun = time.monotonic()
        size = await _fill(amqp, builds)
        report.results["published"] = {"seconds": time.monotonic() - begun, "bytes": size}
        async with History(amqp, "default", wait_seconds=60) as history:
            await _measure_builds(report, history, builds)
        await _measure_running(report, amqp, builds)
        async with History(amqp, "default", wait_seconds=60) as history:
            await _measure_list(report, history, builds)
    return report


async def _measure_builds(report: Report, history: History, builds: int) -> None:
    for place, number in (("first", 0), ("middle", builds // 2), ("last", builds - 1)):
        status, _ = await _timed(rows_of(history.state_of(name_of(number))))
        first, whole, count = await _read(history.so_far(build_of(number)))
        assert count == LOGS * LINES
        report.results[place] = {"status": status, "first line": first, "whole log": whole}
        report.at_most(f"status of the {place} build, seconds", status, 1.0)
        report.at_most(f"first line of the {place} build, seconds", first, 1.0)
    unknown, rows = await _timed(rows_of(history.state_of("unknown")))
    assert not rows
    report.results["unknown id"] = {"status": unknown}


async def _measure_running(report: Report, amqp: AmqpSettings, builds: int) -> None:
    """Measure a build that has been silent since the beginning, and one that has just begun.

    Each has a connection of its own, as a command has: RabbitMQ goes on looking for what a reader has not waited for.
    """
    for place, number in (("oldest", builds), ("newest", builds + 1)):
        async with History(amqp, "default", wait_seconds=60) as history:
            status, rows = await _timed(rows_of(history.state_of(name_of(number))))
            assert [row.state for row in rows] == ["building"]
            first, _, _ = await _read(history.so_far(build_of(number)), to_first=True)
        report.results[f"{place} running"] = {"status": status, "first line": first}
        report.at_most(f"status of the {place} running build, seconds", status, 1.0)
        report.at_most(f"first line of the {place} running build, seconds", first, 1.0)


async def _measure_list(report: Report, history: History, builds: int) -> None:
    day_ago = datetime.now(UTC) - timedelta(days=1)

    async def list_(limit: int) -> list[BuildRow]:
        return await newest_rows(history, day_ago, lambda row: True, limit)

    newest, rows = await _timed(list_(50))
    assert {row.id for row in rows} >= {build_of(builds - 1), build_of(builds + 1)}
    whole, rows = await _timed(list_(builds + RUNNING + 1))
    assert len(rows) == builds + RUNNING
    assert [row.state for row in rows if row.end is None] == ["building"] * RUNNING
    tracemalloc.start()
    await list_(builds + RUNNING + 1)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    report.results["list"] = {"newest 50": newest, "all": whole, "all, peak of memory in MB": peak}
    report.at_most("list of the newest 50 builds, seconds", newest, 1.0)
    report.at_most("list of all builds, seconds", whole, 10.0)
    report.at_most("list of all builds, MB of memory", peak, 100)


async def _timed(work: Awaitable[T]) -> tuple[float, T]:
    begun = time.monotonic()
    result = await work
    return time.monotonic() - begun, result


async def _read(events: AsyncGenerator[Event, None], *, to_first: bool = False) -> tuple[float, float, int]:
    """Return the seconds to the first line and to the end, and the number of lines."""
    begun, first, count = time.monotonic(), None, 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event.data, Log):
                first = first or time.monotonic() - begun
                count += len(event.data.lines)
                if to_first:
                    break
    return first or 0.0, time.monotonic() - begun, count


@dataclass(frozen=True, slots=True)
class _Message:
    """The published form of an event."""

    key: str
    headers: dict[str, str | list[str]]
    body: bytes


def _message(event: Event) -> _Message:
    index_key = {} if event.index_key is None else {"BCC": [event.index_key]}
    return _Message(event.routing_key, event.headers() | index_key, event.body())


def _begin(number: int, phases: Iterable[Phase] = PHASES) -> Iterator[_Message]:
    build_id = build_of(number)
    yield _message(accepted(name_of(number), build_id))
    for phase in phases:
        yield _message(progress(f"step of {phase}", build_id, phase=phase, step=1))
        yield _message(progress(phase, build_id, phase=phase))


def _build(number: int, template: _Message) -> Iterator[_Message]:
    build_id = build_of(number)
    yield from _begin(number)
    of_log = _message(lines(0, 1, build_id=build_id))
    body = template.body.replace(BUILD.encode(), build_id.encode())
    for first in range(0, LOGS * LINES, LINES):
        # Not serialized each time, which would take most of the time.
        headers = of_log.headers | {"ce-id": f"{build_id}-{first}"}
        yield _Message(of_log.key, headers, body.replace(b'"n":0', b'"n":%d' % first))
    yield _message(completed(build_id=build_id, count=LOGS * LINES))


def _unfinished(number: int) -> Iterator[_Message]:
    yield from _begin(number, PHASES[:3])
    yield _message(lines(0, LINES, size=LINE_BYTES, build_id=build_of(number)))


async def _fill(amqp: AmqpSettings, builds: int) -> int:
    """Publish all builds, and return the size of the bodies."""
    template = _message(lines(0, LINES, size=LINE_BYTES))
    size = 0
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        running = interleaved((_build(number, template) for number in range(builds)), at_once=AT_ONCE)
        whole = chain(_unfinished(builds), running, _unfinished(builds + 1))
        for count, message in enumerate(whole, 1):
            size += len(message.body)
            properties = spec.Basic.Properties(headers=message.headers, delivery_mode=2)  # type: ignore[arg-type]
            await channel.basic_publish(
                message.body,
                exchange=RESULTS_EXCHANGE,
                routing_key=message.key,
                properties=properties,
            )
            if count % BURST == 0:
                await channel.basic_qos(prefetch_count=1)  # answered once RabbitMQ has passed on the burst
    return size
