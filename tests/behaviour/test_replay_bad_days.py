"""Replay where something is wrong: with the log, with RabbitMQ, with the right to it, or with another replay."""

import asyncio
import json
import struct
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.replay_publisher import replay_publisher
from rabbit2docker.cli.exits import Exit
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    Priority,
    request_key,
)
from tests.behaviour.conftest import ImportUsers
from tests.behaviour.test_poison import POISON
from tests.support.client_events import accepted, completed, publish, rejected
from tests.support.programs import COMMAND
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.raw_amqp import ClosedByBroker, RawPublisher, short
from tests.support.replays import command, json_lines, planned, variables_of

pytestmark = pytest.mark.broker

KEY = request_key("default", Priority.INTERACTIVE).encode()
JSON = short(b"application/json")


def body(name: str, **more: object) -> bytes:
    spec = {"provider": "gh", "spec": f"owner/{name}/HEAD", "request_id": name}
    return json.dumps({**spec, **more}).encode()


def log(amqp: AmqpSettings, *bodies: bytes, key: bytes = KEY, **properties: bytes) -> None:
    """Put requests into the log, published now unless `properties` say otherwise."""
    now = struct.pack(">Q", int(datetime.now(UTC).timestamp()))
    with RawPublisher(amqp.url.get_secret_value()) as raw:
        for one in bodies:
            given = {"timestamp": now, "content_type": JSON, **properties}
            raw.publish(REQUEST_LOG_EXCHANGE.encode(), key, one, **given)


async def published_ids(amqp: AmqpSettings) -> list[str]:
    """Take all requests out of the bulk queue and return their ids."""
    connection = ManagedChannel("test", amqp)
    found: list[str] = []
    async with connected(connection, 180):
        queue = await (await connection.channel()).get_queue(BULK_QUEUE, ensure=False)
        while (message := await queue.get(fail=False, timeout=60)) is not None:
            found.append(json.loads(message.body)["request_id"])
    return found


async def test_a_log_with_all_kinds_of_letters_gives_the_good_ones_and_names_the_others(
    publisher: ConfirmedPublisher, amqp: AmqpSettings
) -> None:
    # Without an older event, the outcome of a request without one is unknown.
    await publish(publisher, rejected("other"))
    log(amqp, body("good"), b"no json", b"[]", body("later", colour="green"))
    log(amqp, body("gone"), key=b"request.gone.bulk")
    log(amqp, body("key"), key=b"nonsense")
    for name, properties in POISON.items():
        with suppress(ClosedByBroker):  # some of them RabbitMQ 4.3 refuses itself
            log(amqp, body(f"poison-{name}"), **{"timestamp": b"\0" * 7 + b"\1", **properties})
    await publish(publisher, accepted("good"), completed())
    found, summary = await planned(amqp, "--outcome", "never-ended", "--outcome", "completed")
    assert sorted(one["replay_of"] for one in found) == ["good", "later"]
    assert summary["unreadable"] == {
        "the body is not JSON: Expecting value: line 1 column 1 (char 0)": 1,
        "the body is not a JSON object": 1,
        "the routing key 'nonsense' is not a request's": 1,
    }
    assert summary["read"] >= 3


async def test_without_a_log_or_the_right_to_it_the_command_says_what_to_do(
    amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str, import_users: ImportUsers
) -> None:
    users = import_users("default")
    refused = await command(users.settings("hub-default"), "replay", "--wait", "180")
    assert refused.returncode == Exit.UNREACHABLE
    assert "Only an operator may read the requests of all tenants" in refused.stderr
    assert "rabbit2docker build" in refused.stderr
    empty = await command(users.settings("rabbit2docker-operator"), "replay", "--wait", "180")
    assert empty.returncode == 0
    assert "it is empty, or they are deleted by now" in empty.stdout
    assert "Nothing would be published." in empty.stdout
    rabbitmq.api("DELETE", f"queues/{vhost}/{REQUEST_LOG_STREAM}")
    missing = await command(amqp, "replay", "--wait", "180")
    assert missing.returncode == Exit.UNREACHABLE
    assert "There is no log of requests to replay." in missing.stderr
    unknown = await command(amqp, "replay", "--resume", "20260131t120000-0a1b2c", "--wait", "180")
    assert unknown.returncode == Exit.UNREACHABLE


async def test_one_replay_at_a_time_publishes_and_a_resumed_one_publishes_nothing_twice(
    publisher: ConfirmedPublisher, amqp: AmqpSettings
) -> None:
    arguments = ("replay", "--yes", "--json", "--outcome", "never-ended", "--rate", "100/s", "--wait", "180")
    await publish(publisher, rejected("other"))
    log(amqp, *(body(f"r{n}") for n in range(4)))
    async with replay_publisher(amqp, wait_seconds=180):
        refused = await command(amqp, *arguments)
    assert refused.returncode == Exit.UNREACHABLE
    assert "Another replay publishes on this virtual host at the moment." in refused.stderr
    first = json_lines((await command(amqp, *arguments)).stdout)
    [summary] = [line for line in first if line["kind"] == "summary"]
    resume = ("replay", "--resume", summary["replay"], "--yes", "--json", "--wait", "180")
    again = json_lines((await command(amqp, *resume)).stdout)
    ids = [line["request_id"] for line in first if line["kind"] == "published"]
    assert [line["request_id"] for line in again if line["kind"] == "published"] == ids
    assert sorted(await published_ids(amqp)) == sorted(ids)


async def test_a_replay_goes_on_when_rabbitmq_comes_back(
    publisher: ConfirmedPublisher, amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    await publish(publisher, rejected("other"))
    log(amqp, *(body(f"r{n}") for n in range(12)))
    async with Proxy(rabbitmq.port) as proxy:
        url = rabbitmq.url(vhost, port=proxy.port)
        process = await asyncio.create_subprocess_exec(
            COMMAND,
            *("replay", "--yes", "--json", "--outcome", "never-ended", "--rate", "10/s", "--wait", "180"),
            env={**variables_of(amqp), "RABBIT2DOCKER_AMQP__URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        lines = []
        async for data in process.stdout:
            lines.append(json.loads(data))
            if sum(line["kind"] == "published" for line in lines) == 3:
                proxy.refuse(True)
                proxy.cut()
                asyncio.get_running_loop().call_later(1, proxy.refuse, False)
        assert await process.wait() == 0
    ids = [line["request_id"] for line in lines if line["kind"] == "published"]
    assert len(set(ids)) == len(ids) == 12
    # A request whose confirm was lost is there twice, under one id.
    found = await published_ids(amqp)
    assert set(found) == set(ids)
