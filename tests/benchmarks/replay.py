"""Choosing requests from a log of a million, against a bare reader of the stream with the same filter.

`python -m tests.benchmarks replay`.
"""

import asyncio
import json
import resource
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.stream import StreamReader, reading
from rabbit2docker.replay.plan import Plan
from rabbit2docker.replay.reading import replay_reader
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.routing import (
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    Priority,
    request_key,
)
from tests.benchmarks.measuring import Report, own_vhost
from tests.support.client_events import accepted, completed
from tests.support.histories import build_of, name_of, publish_all
from tests.support.raw_amqp import RawPublisher, field, long, short

REQUESTS = 1_000_000
OWNERS = 100
CHOSEN = 7
"""The one owner whose requests are chosen."""
BURST = 1_000
"""Requests that are confirmed together."""


async def measure(requests: int = REQUESTS) -> Report:
    """Fill a log, then time both readers, one after the other, twice: the better times count."""
    report = Report("replay", {"requests": requests, "chosen": requests // OWNERS})
    with own_vhost() as amqp:
        await declare.declare(Settings(amqp=amqp))
        begun = time.monotonic()
        await asyncio.to_thread(_fill, amqp, requests)
        await publish_all(amqp, (event for n in range(CHOSEN, requests, OWNERS) for event in _events(n)))
        report.results["published"] = time.monotonic() - begun
        bare, whole, memory = [], [], 0.0
        for _ in range(2):
            bare.append(await _timed_bare(amqp, requests))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            whole.append(await _timed_selection(amqp, requests))
            memory = max(memory, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    report.results |= {
        "bare reader, seconds": min(bare),
        "selection, seconds": min(whole),
        "selection, requests per second": requests / min(whole),
        "selection, MB of memory on top": memory,
    }
    report.at_least("speed of the selection, share of a bare reader's", min(bare) / min(whole), 0.8)
    report.at_most("memory of the selection, MB", memory, 200)
    return report


def _events(number: int) -> Iterator[Event]:
    build_id = build_of(number)
    yield accepted(name_of(number), build_id)
    yield completed(build_id=build_id)


def _fill(amqp: AmqpSettings, requests: int) -> None:
    """Publish requests as bytes: a client library would take most of an hour for a million."""
    now = struct.pack(">Q", int(time.time()))
    with RawPublisher(amqp.url.get_secret_value()) as publisher:
        for first in range(0, requests, BURST):
            publisher.publish_all(
                REQUEST_LOG_EXCHANGE.encode(),
                request_key("default", Priority.INTERACTIVE).encode(),
                map(_body, range(first, min(first + BURST, requests))),
                content_type=short(b"application/json"),
                headers=long(field(b"r2d-message-id", b"S", long(b"any"))),
                delivery_mode=b"\2",
                message_id=short(b"any"),
                timestamp=now,
            )


def _body(number: int) -> bytes:
    spec = f"owner{number % OWNERS}/repository{number}/HEAD"
    return f'{{"provider":"gh","spec":"{spec}","request_id":"{name_of(number)}","requester":"ada"}}'.encode()


async def _timed_bare(amqp: AmqpSettings, requests: int) -> float:
    """Read the log with a consumer, and keep what the filter lets through."""
    begun, found, count, offset = time.monotonic(), [], 0, -1
    connection = ManagedChannel("bare", amqp)
    async with connected(connection, 60):
        last = await StreamReader(connection, REQUEST_LOG_STREAM).last()
        assert last is not None
        channel = await connection.channel()
        async with reading(channel, REQUEST_LOG_STREAM, offset="first", prefetch=1000) as incoming:
            while offset < last.offset:  # not the number of messages: streams have offsets without any
                message = await incoming.get()
                assert message is not None
                count, offset = count + 1, int(str(message.headers["x-stream-offset"]))
                if count % 250 == 0:
                    await message.ack(multiple=True)
                content = json.loads(message.body)
                if content["spec"].startswith(f"owner{CHOSEN}/"):
                    found.append(content)
    assert len(found) == requests // OWNERS
    return time.monotonic() - begun


async def _timed_selection(amqp: AmqpSettings, requests: int) -> float:
    begun, workspace = time.monotonic(), Workspace()
    now = datetime.now(UTC)
    selection = Selection(since=now - timedelta(days=1), until=now, repositories=(f"owner{CHOSEN}/*",))
    async with replay_reader(amqp, wait_seconds=60) as reader:
        report = await reader.fill(workspace, selection, without="replay-none-")
        await asyncio.to_thread(workspace.finish)
    plan = Plan(workspace, selection)
    assert sum(1 for _ in plan.candidates()) == requests // OWNERS == plan.totals.chosen
    assert report.requests == requests
    workspace.close()
    return time.monotonic() - begun
