"""Tenants who pretend to be another, by the detours that RabbitMQ allows, against the real service."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from rabbit2docker.amqp.dead_letters import DeadLetter, dead_letters
from rabbit2docker.cli.exits import Exit
from rabbit2docker.client import BuildEvents
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from tests.behaviour.conftest import ImportUsers
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import Consumer, a_request
from tests.support.exported_users import ExportedUsers
from tests.support.plain_client import connected, publish
from tests.support.programs import COMMAND
from tests.support.promises import until_answered, until_ended
from tests.support.waiting import eventually_blocking

pytestmark = pytest.mark.broker

ONE, TWO = "request.one.interactive", "request.two.interactive"


@pytest.fixture
def users(import_users: ImportUsers) -> ExportedUsers:
    return import_users("one", "two")


@pytest.fixture
def consumer(users: ExportedUsers, make_consumer: MakeConsumer) -> Consumer:
    """The service as the exported worker, which knows the user of tenant two."""
    return make_consumer(
        amqp_settings=users.settings("rabbit2docker-worker"),
        RABBIT2DOCKER_TENANTS='["one", "two"]',
        RABBIT2DOCKER_AMQP__TENANT_USERS=json.dumps({"two": users.name("hub-two")}),
        RABBIT2DOCKER_AMQP__DECLARE="false",
    )


def body_of(request: BuildRequest) -> bytes:
    return request.model_dump_json(exclude_defaults=True).encode()


OWN_HEADERS: Final[dict[str, Any]] = {"r2d-routing-key": TWO, "r2d-attempt": 2, "r2d-message-id": "two's"}


def forge(connection: pika.BlockingConnection, cancel: bytes) -> int:
    """Have messages reach the service by every detour that RabbitMQ leaves to tenant one; return how many."""
    channel = connection.channel()
    for name in ("hub.one.relay", "hub.one.bound"):
        relay = {"alternate-exchange": "builds.entry.one"} if name == "hub.one.relay" else {}
        channel.exchange_declare(name, "topic", arguments=relay)
    channel.exchange_bind("builds.entry.one", "hub.one.bound", "#")
    channel.exchange_declare("hub.one.dying", "topic")
    for name, key in {"hub.one.dies": None, "hub.one.renamed": TWO, "hub.one.cancels": "cancel.two"}.items():
        dead = {"x-dead-letter-exchange": "builds.entry.one", "x-message-ttl": 0}
        arguments = dead | ({"x-dead-letter-routing-key": key} if key else {})
        channel.queue_declare(name, durable=True, arguments=arguments)
    channel.queue_bind("hub.one.dies", "hub.one.dying", "*.two.#")
    channel.queue_bind("hub.one.dies", "hub.one.dying", "cancel.two")
    channel.queue_bind("hub.one.renamed", "hub.one.dying", "renamed")
    channel.queue_bind("hub.one.cancels", "hub.one.dying", "cancels")

    detours: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("hub.one.relay", TWO, {}),
        ("hub.one.relay", ONE, OWN_HEADERS),
        ("hub.one.bound", TWO, {}),
        ("hub.one.bound", TWO, {"CC": [ONE]}),
        ("hub.one.bound", ONE, OWN_HEADERS),
        ("hub.one.dying", TWO, {}),
        ("hub.one.dying", TWO, {"CC": [ONE]}),
        ("hub.one.dying", TWO, {"BCC": [ONE]}),
        ("hub.one.dying", TWO, {"BCC": ["request.one.bulk"]}),
        ("hub.one.dying", "renamed", OWN_HEADERS),
        ("hub.one.dying", "cancel.two", {"BCC": ["cancel.one"]}),
        ("hub.one.dying", "cancels", {}),
    )
    for number, (exchange, key, headers) in enumerate(detours):
        body = cancel if "cancel" in key else body_of(a_request(f"forged-{number}"))
        publish(connection.channel(), exchange, key, body, headers=headers)
    return len(detours)


def send_own(connection: pika.BlockingConnection) -> int:
    """Send a request of tenant one that claims to be more; return how many copies of it are in wrong queues."""
    body = body_of(a_request("own"))
    wrong = {"CC": ["cancel.one"], "BCC": ["request.one.bulk"]}
    publish(connection.channel(), "builds.entry.one", ONE, body, headers={**OWN_HEADERS, **wrong})
    for name in ("CC", "BCC"):
        with suppress(ChannelClosedByBroker):  # refused by some versions, and without effect in the others
            keys = [TWO, "cancel.two", "builds.cancels"]
            publish(connection.channel(), "builds.entry.one", ONE, body, headers={name: keys})
    return sum(map(len, wrong.values()))


def leave_dead_letters(connection: pika.BlockingConnection) -> None:
    """Have RabbitMQ itself drop messages of tenant one: they expire while no service runs."""
    channel = connection.channel()
    channel.exchange_declare("hub.one.relay", "topic", arguments={"alternate-exchange": "builds.entry.one"})
    huge = {**OWN_HEADERS, "z": "z" * 40_000}
    for name, exchange, key, headers in (
        ("dropped-own", "builds.entry.one", ONE, OWN_HEADERS),
        ("dropped-huge", "builds.entry.one", ONE, huge),
        ("forged-dropped", "hub.one.relay", TWO, {**OWN_HEADERS, "BCC": [ONE]}),
    ):
        publish(channel, exchange, key, body_of(a_request(name)), expiration="1", headers=headers)


def dropped_count(users: ExportedUsers) -> int:
    with connected(users.url("rabbit2docker-operator")) as operator:
        return int(operator.channel().queue_declare("builds.dropped", passive=True).method.message_count)


async def letters_of(amqp: AmqpSettings) -> list[DeadLetter]:
    async with dead_letters(amqp) as letters:
        return await letters.listed()


def reasons(amqp: AmqpSettings) -> list[str]:
    return sorted(letter.reason for letter in asyncio.run(letters_of(amqp)))


async def redrive_all(amqp: AmqpSettings) -> int:
    """Return how many letters were published again."""
    async with dead_letters(amqp) as letters:
        return sum(not letter.why_kept() for letter in await letters.redrive(lambda _: True))


def command(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        env={**os.environ, "RABBIT2DOCKER_AMQP__URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=180,
    )


def redrive_by_command(url: str) -> list[str]:
    done = command(url, "dead-letters", "redrive", "--all")
    # RabbitMQ puts back what an earlier command has read a moment after that has ended.
    assert done.returncode in (Exit.FAILED, Exit.NOT_FOUND), done.stderr
    return done.stdout.splitlines()


def build_by_command(users: ExportedUsers, request: BuildRequest) -> None:
    options = [f"--build-arg={name}={value}" for name, value in request.build_args.items()]
    options += ["--no-follow", f"--request-id={request.request_id}"]
    url = users.url("hub-two")
    done = command(url, "build", request.provider, request.spec, *options, RABBIT2DOCKER_TENANT="two")
    assert done.returncode == 0, done.stderr


def all_of(lines: list[str], count: int) -> list[str]:
    return lines if len(lines) == count else []


def accepted(events: Iterable[Event]) -> set[str]:
    return {str(event.data.request_id) for event in events if isinstance(event.data, Accepted)}


def test_nothing_is_built_or_cancelled_as_another_tenant(
    users: ExportedUsers, consumer: Consumer, amqp: AmqpSettings
) -> None:
    operator = users.settings("rabbit2docker-operator")
    with connected(users.url("hub-one")) as one:
        leave_dead_letters(one)
        eventually_blocking(lambda: dropped_count(users) == 3)
        consumer.start_and_wait()
        eventually_blocking(lambda: reasons(operator) == ["expired", "forged", "invalid_request"])
        published = 0
        while published < 2:
            published += asyncio.run(redrive_all(operator))
        build_by_command(users, a_request("honest", lines=40, every=0.2))
        asyncio.run(until_answered(amqp, tenant="two"))
        cancel = json.dumps({"request_id": "honest", "requester": "mallory"}).encode()
        forged = 1 + forge(one, cancel) + send_own(one)
        with connected(users.url("rabbit2docker-operator")) as someone:
            for key, name in ((TWO, "forged-without-user"), (ONE, "by-builds")):
                publish(someone.channel(), "builds", key, body_of(a_request(name)))
        forged += 1
        eventually_blocking(lambda: reasons(operator) == ["forged"] * forged)
        said = eventually_blocking(
            lambda: all_of(redrive_by_command(operator.url.get_secret_value()), forged)
        )
        assert all("kept: It may be forged. The message " in line for line in said)
    assert (
        f'rabbit2docker_dead_lettered_total{{reason="forged"}} {forged}.0'
        in consumer.get("/metrics")[1].splitlines()
    )
    asyncio.run(withdraw(users, a_request("withdrawn", lines=1000, every=0.2)))
    of_one = asyncio.run(until_ended(amqp, 4, tenant="one"))
    of_two = asyncio.run(until_ended(amqp, 2, tenant="two"))
    assert accepted(of_one) == {"own", "by-builds", "dropped-own", "dropped-huge"}
    assert accepted(of_two) == {"honest", "withdrawn"}
    ends = {event.subject: event.kind for event in of_two if event.is_terminal}
    assert ends == {build_id_of("two", "honest"): "completed", build_id_of("two", "withdrawn"): "cancelled"}
    assert len(consumer.records()) == 6
    eventually_blocking(lambda: reasons(operator) == ["forged"] * forged)


async def withdraw(users: ExportedUsers, request: BuildRequest) -> None:
    """Cancel a build once it has written a line."""
    async with BuildEvents(users.settings("hub-two"), "two", wait_seconds=180) as events:
        await events.submit(request)
        async for event in events.of_request(str(request.request_id)):
            if event.kind == "log":
                await events.cancel(str(request.request_id), by="ada")
