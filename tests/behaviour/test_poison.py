"""Messages that no client library can decode, published as bytes to a real RabbitMQ beside good ones."""

import asyncio
import json
import os
import struct
import subprocess
from collections.abc import Iterator

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.dead_letters import DeadLetter, dead_letters
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.cli.exits import Exit
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Rejected
from rabbit2docker_schemas.requests import BuildRequest
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import Consumer, a_request
from tests.support.programs import COMMAND
from tests.support.promises import captured
from tests.support.raw_amqp import RawPublisher, field, long, nested, short
from tests.support.waiting import eventually, eventually_blocking

pytestmark = pytest.mark.broker

KEY = b"request.hostile.interactive"
NOT_UTF8 = short(b"na\xefve")
POISON: dict[str, dict[str, bytes]] = {
    "microseconds": {"timestamp": struct.pack(">Q", 1_764_000_000_000_000)},
    "largest-time": {"timestamp": b"\xff" * 8},
    "message-id": {"message_id": NOT_UTF8},
    "type": {"message_type": NOT_UTF8},
    "reply-to": {"reply_to": NOT_UTF8, "correlation_id": NOT_UTF8},
    "header-name": {"headers": long(field(b"\xff", b"V", b""))},
    "header-time": {"headers": long(field(b"a", b"T", b"\xff" * 8))},
    "deep": {"headers": nested(400)},
    "many": {"headers": long(b"".join(field(b"%d" % n, b"V", b"") for n in range(5000)))},
    "large": {"headers": long(field(b"a", b"S", long(b"a" * 120_000)))},
}
"""By the id in the body."""


@pytest.fixture
def consumer(make_consumer: MakeConsumer) -> Iterator[Consumer]:
    consumer = make_consumer(RABBIT2DOCKER_TENANTS='["default", "hostile"]')
    consumer.start_and_wait()
    yield consumer
    assert not consumer.has_ended(), consumer.log.read_text()
    assert not [line for line in consumer.lines() if line["level"] == "error"]


def body_of(request: BuildRequest) -> bytes:
    return request.model_dump_json(exclude_defaults=True).encode()


async def all_dead_letters(settings: Settings) -> list[DeadLetter]:
    async with dead_letters(settings.amqp) as letters:
        return await letters.listed()


def reconnects(consumer: Consumer) -> int:
    return sum(line["event"] == "RabbitMQ unavailable, reconnecting" for line in consumer.lines())


async def test_undecodable_requests_are_rejected_alone_beside_good_ones(
    consumer: Consumer, amqp: AmqpSettings, settings: Settings
) -> None:
    with RawPublisher(amqp.url.get_secret_value()) as hostile:
        async with publishing(settings, wait_seconds=180) as publisher:
            good = RequestPublisher(publisher, settings.tenant)
            for name, properties in POISON.items():
                body = body_of(a_request(f"bad-{name}"))
                await asyncio.to_thread(hostile.publish, b"builds", KEY, body, **properties)
                await good.request(a_request(f"good-{name}"))
    answers = await eventually(lambda: all_answered(amqp))
    for name in POISON:
        assert isinstance(answers[f"good-{name}"], Accepted)
        rejected = answers[f"bad-{name}"]
        assert isinstance(rejected, Rejected)
        assert rejected.reason == "invalid_request"
        assert "cannot be decoded" in rejected.message
    assert reconnects(consumer) == 0
    await eventually(lambda: letter_count(settings, len(POISON), "invalid_request"))


async def all_answered(amqp: AmqpSettings) -> dict[str, Accepted | Rejected]:
    events = [*await captured(amqp), *await captured(amqp, tenant="hostile")]
    answers = {e.data.request_id: e.data for e in events if isinstance(e.data, Accepted | Rejected)}
    return answers if len(answers) == 2 * len(POISON) else {}


async def test_messages_that_can_only_be_dead_lettered_do_not_stop_intake(
    consumer: Consumer, amqp: AmqpSettings, settings: Settings
) -> None:
    with RawPublisher(amqp.url.get_secret_value()) as hostile:
        hostile.publish(b"builds", b"request.\xff.interactive", b"{}")
        hostile.publish(b"builds", b"cancel.hostile", b'{"build_id": "x"}', message_id=NOT_UTF8)
        hostile.publish(b"", b"builds.requests", b"{}", message_id=NOT_UTF8)
    await eventually(lambda: letter_count(settings, 3))
    assert reconnects(consumer) == 0


async def letter_count(settings: Settings, count: int, *reasons: str) -> bool:
    letters = await all_dead_letters(settings)
    return len(letters) == count and all(letter.reason in reasons for letter in letters if reasons)


def test_undecodable_dead_letters_are_listed_shown_redriven_and_discarded(
    settings: Settings, amqp: AmqpSettings
) -> None:
    """As RabbitMQ itself leaves them there: expired, or delivered too often to an earlier version."""
    asyncio.run(declare.declare(settings))
    with RawPublisher(amqp.url.get_secret_value()) as hostile:
        for name, properties in POISON.items():
            hostile.publish(b"builds.dlx", KEY, name.encode(), **properties)

    def letters(*arguments: str) -> str:
        environment = {**os.environ, "RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value()}
        done = subprocess.run(
            [COMMAND, "dead-letters", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        # RabbitMQ puts back what an earlier command has read a moment after that has ended.
        assert done.returncode in (0, Exit.NOT_FOUND), done.stderr
        return done.stdout

    def listed() -> list[dict[str, str]]:
        found = [json.loads(line) for line in letters("list", "--json").splitlines()]
        return found if len(found) == len(POISON) else []

    found = eventually_blocking(listed)
    first = found[0]["id"]
    assert all(letter["undecodable"] for letter in found)
    eventually_blocking(lambda: "timestamp: not a number of seconds" in letters("show", first))
    eventually_blocking(lambda: first in letters("list"))
    eventually_blocking(lambda: letters("redrive", first) == f"{first} published again\n")
    deleted = 0
    while deleted < len(POISON) - 1:
        deleted += letters("discard", "--all", "--yes").count("deleted")
    assert deleted == len(POISON) - 1


async def test_a_letter_that_returns_at_once_is_redriven_once(
    consumer: Consumer, settings: Settings, amqp: AmqpSettings
) -> None:
    with RawPublisher(amqp.url.get_secret_value()) as client:
        client.publish(b"builds", b"request.absent..x", b"{}")
    [letter] = await eventually(lambda: all_dead_letters(settings))
    assert letter.reason == "unroutable"
    seen = []

    def is_selected(letter: DeadLetter) -> bool:
        seen.append(letter.id)
        return True

    async def redriven() -> list[DeadLetter]:
        async with dead_letters(settings.amqp) as letters:
            return await letters.redrive(is_selected)

    assert len(await eventually(redriven)) == len(seen) == 1
    await eventually(lambda: letter_count(settings, 1))
