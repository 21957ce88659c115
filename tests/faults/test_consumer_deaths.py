"""A consumer that is killed at any moment loses nothing and publishes no contradictory events."""

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Cancelled, Completed, Failed
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest
from rabbit2docker_schemas.routing import Lane, waiting_queue
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import Consumer, a_request
from tests.support.promises import captured, check_promises, lines_of, until_ended
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


async def test_a_build_survives_a_kill_of_the_consumer_with_every_line_once(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=200, every=0.02))
    await eventually(lambda: "line 40 " in consumer.builder_log())
    consumer.kill()
    consumer.start_and_wait()
    events = await until_ended(amqp, 1)
    assert isinstance(check_promises(events, ["one"])["one"], Completed)
    [log] = lines_of(events).values()
    assert [line for line in log if line.startswith("line ")] == [
        f"line {n} of the build" for n in range(200)
    ]


async def test_a_consumer_killed_repeatedly_loses_no_build(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    """The moments of the kills are random; the seed is printed to reproduce a failure."""
    seed = int(time.time())
    print("seed", seed)  # noqa: T201
    chance = random.Random(seed)
    await declare.declare(settings)
    names = [f"build-{n}" for n in range(30)]
    asking = asyncio.create_task(ask(settings, *[a_request(name, lines=40, every=0.02) for name in names]))
    consumer = make_consumer()
    for _ in range(8):
        consumer.start()
        await asyncio.sleep(chance.uniform(0.5, 2.5))
        consumer.kill()
    await asking
    consumer.start()
    await until_ended(amqp, len(names))
    ends = check_promises(await captured(amqp), names)
    assert all(isinstance(end, Completed) for end in ends.values())
    assert all(end.attempt == 1 for end in ends.values())
    assert all(len(log) >= 40 for log in lines_of(await captured(amqp)).values())
    assert len(consumer.records()) == len(names), "each build was created once"
    queues = ["builds.requests", *(waiting_queue("default", lane) for lane in Lane)]
    await eventually(lambda: not any(map(rabbitmq.depths(vhost).get, queues)))
    assert rabbitmq.depth(vhost, "builds.dead") == 0


async def test_sigterm_ends_the_consumer_while_the_build_continues(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=100, every=0.05))
    await eventually(lambda: [path for path in consumer.records() if (path.parent / "log.jsonl").exists()])
    assert consumer.stop() == 0
    [record] = consumer.records()
    log = record.parent / "log.jsonl"
    written = log.stat().st_size
    await eventually(lambda: log.stat().st_size > written)
    assert not (record.parent / "result.json").exists()
    consumer.start_and_wait()
    await until_ended(amqp, 1)
    assert isinstance(check_promises(await captured(amqp), ["one"])["one"], Completed)


async def test_a_killed_builder_is_retried_as_another_attempt(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=60, every=0.05))
    process = await eventually(lambda: _process_of(consumer, attempt=1))
    os.kill(process, signal.SIGKILL)
    events = await until_ended(amqp, 1)
    end = check_promises(events, ["one"])["one"]
    assert isinstance(end, Completed)
    assert end.attempt == 2
    build_id = build_id_of("default", "one")
    assert len([line for line in lines_of(events)[build_id, 2] if line.startswith("line ")]) == 60


async def test_a_builder_killed_on_every_attempt_fails_as_builder_lost(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=600, every=0.05))
    for attempt in (1, 2):
        process = await eventually(lambda: _process_of(consumer, attempt=attempt))  # noqa: B023
        os.kill(process, signal.SIGKILL)
    await until_ended(amqp, 1)
    end = check_promises(await captured(amqp), ["one"])["one"]
    assert isinstance(end, Failed)
    assert (end.reason, end.category, end.attempt) == ("builder_lost", "infrastructure", 2)


def _process_of(consumer: Consumer, *, attempt: int) -> int | None:
    for record in consumer.records():
        process = record.parent / "process.json"
        log = record.parent / "log.jsonl"
        if (
            json.loads(record.read_text())["attempt"] == attempt
            and process.exists()
            and log.exists()
            and "line 5 " in log.read_text()
        ):
            return int(json.loads(process.read_text())["pid"])
    return None


async def test_a_build_that_ended_while_no_consumer_ran_is_reported_at_the_next_start(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=30, every=0.05))
    await eventually(lambda: [path for path in consumer.records() if (path.parent / "process.json").exists()])
    consumer.kill()
    [record] = consumer.records()
    await eventually((record.parent / "result.json").exists)
    consumer.start_and_wait()
    events = await until_ended(amqp, 1)
    assert isinstance(check_promises(events, ["one"])["one"], Completed)
    assert len([line for line in lines_of(events).popitem()[1] if line.startswith("line ")]) == 30


async def test_a_cancel_ends_the_builder_and_names_its_requester(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=6000, every=0.05, stubborn=1))
    process = await eventually(lambda: _process_of(consumer, attempt=1))
    async with publishing(settings, wait_seconds=180) as publisher:
        cancel = CancelRequest(build_id=build_id_of("default", "one"), requester="ada")
        await RequestPublisher(publisher, "default").cancel(cancel)
    await until_ended(amqp, 1)
    end = check_promises(await captured(amqp), ["one"])["one"]
    assert isinstance(end, Cancelled)
    assert end.by == "ada"
    assert not Path(f"/proc/{process}").exists()
