"""Choosing requests from a log of a million, against a bare reader of the stream with the same filter.

`python -m tests.benchmarks replay`.
"""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import aio_pika

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.publisher import make_message
from rabbit2docker.amqp.stream import StreamReader, reading
from rabbit2docker.replay.plan import Plan
from rabbit2docker.replay.reading import replay_reader
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import (
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    Priority,
    request_key,
)
from tests.benchmarks.measuring import Report, own_vhost
from tests.support.client_events import accepted, completed
from tests.support.histories import build_of, name_of, publish_all

REQUESTS = 1_000_000
OWNERS = 100
CHOSEN = 7
"""The one owner whose requests are chosen."""
BURST = 1_000


async def measure(requests: int = REQUESTS) -> Report:
    """Fill a log, then time both readers, one after the other, twice: the better times count."""
    report = Report("replay", {"requests": requests, "chosen": requests // OWNERS})
    with own_vhost() as amqp:
        await declare.declare(Settings(amqp=amqp))
        begun = time.monotonic()
        await _fill(amqp, requests)
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


async def _fill(amqp: AmqpSettings, requests: int) -> None:
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        # The same for all: making them would take most of the time. The ids are in the bodies.
        properties = make_message(b"", {"r2d-message-id": "any"}).properties
        for number in range(requests):
            request = BuildRequest(
                provider="gh",
                spec=f"owner{number % OWNERS}/repository{number}/HEAD",
                request_id=name_of(number),
                requester="ada",
            )
            await channel.basic_publish(
                request.model_dump_json(exclude_defaults=True).encode(),
                exchange=REQUEST_LOG_EXCHANGE,
                routing_key=request_key("default", Priority.INTERACTIVE),
                properties=properties,
            )
            if number % BURST == 0:
                await channel.basic_qos(prefetch_count=1)  # answered once RabbitMQ has passed on the burst


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
