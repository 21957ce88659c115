"""Tenants, each with the user that `topology export` gives it, against each other on a real RabbitMQ."""

import asyncio
import json
import logging
import os
import subprocess
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller
from typing import Any, Final

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.dead_letters import DeadLetter, dead_letters
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.cli.exits import Exit
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import AccessRefused
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import RETRY_LADDER, hub_bindings, retry_queue
from tests.behaviour.conftest import ImportUsers
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import COMMAND, Consumer, a_request
from tests.support.exported_users import ExportedUsers
from tests.support.promises import until_answered, until_ended
from tests.support.rabbitmq import Management
from tests.support.waiting import eventually_blocking

pytestmark = pytest.mark.broker
logging.getLogger("pika").setLevel(logging.CRITICAL)  # it reports each refusal

Attack = Callable[[Any], object]

ONE, TWO = "request.one.interactive", "request.two.interactive"
FOREIGN_EXCHANGES: Final = (
    "builds",
    "builds.entry.two",
    "builds.retry",
    "builds.dlx",
    "builds.log",
    "builds.unrouted",
    "builds.results",
    "",
    "amq.topic",
)
FOREIGN_QUEUES: Final = (
    "builds.requests",
    "builds.requests.bulk",
    "builds.cancels",
    "builds.unrouted",
    "builds.dead",
    "builds.requests.log",
    "builds.results.log.two",
    "hub.two.events",
    *(retry_queue(rung, "builds.requests") for rung in RETRY_LADDER),
)
FOREIGN_BINDINGS: Final = (*hub_bindings("two"), "#", "build.#", "build.*.x.log", "*.two.#", "request.one")
NEW_NAMES: Final = ("builds.entry.three", "builds.entry", "builds.x", "hub.two.x", "hub.one", "amq.x", "x")


@contextmanager
def connected(url: str) -> Iterator[pika.BlockingConnection]:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0  # it answers none while the test does other things
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def forbidden(own: BlockingChannel) -> dict[str, Attack]:
    """Return what RabbitMQ itself must refuse to tenant one, which has an exchange `hub.one.x` and a queue `hub.one.q`."""
    own.exchange_declare("hub.one.x", "topic")
    own.queue_declare("hub.one.q", durable=True)
    return {
        **dict(publishing()),
        **dict(detours()),
        **dict(bindings()),
        **dict(reading_and_removing()),
        **dict(new_names()),
    }


def publishing() -> Iterable[tuple[str, Attack]]:
    for exchange in FOREIGN_EXCHANGES:
        for key in (TWO, ONE, "builds.requests", "build.two.x.completed"):
            yield f"publish {key} to {exchange}", partial(publish, exchange=exchange, key=key)
    for key in (TWO, "cancel.two", "request.one.other", "builds.requests"):
        yield f"publish {key} to its entry", partial(publish, exchange="builds.entry.one", key=key)


def detours() -> Iterable[tuple[str, Attack]]:
    for exchange in FOREIGN_EXCHANGES:
        dead = {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": TWO}
        yield f"dead letters to {exchange}", methodcaller("queue_declare", "hub.one.d", arguments=dead)
        if exchange:
            other = {"alternate-exchange": exchange}
            declare_other = methodcaller("exchange_declare", "hub.one.a", "topic", arguments=other)
            yield f"alternate exchange {exchange}", declare_other


def bindings() -> Iterable[tuple[str, Attack]]:
    for exchange in filter(None, FOREIGN_EXCHANGES):
        yield f"bind own into {exchange}", methodcaller("exchange_bind", exchange, "hub.one.x", TWO)
        yield f"bind {exchange} into own", methodcaller("exchange_bind", "hub.one.x", exchange, TWO)
        yield f"bind own queue to {exchange}", methodcaller("queue_bind", "hub.one.q", exchange, TWO)
    yield "bind own queue to its entry", methodcaller("queue_bind", "hub.one.q", "builds.entry.one", "#")
    for key in FOREIGN_BINDINGS:
        yield f"bind results {key}", methodcaller("queue_bind", "hub.one.q", "builds.results", key)
        yield (
            f"bind results {key} into own",
            methodcaller("exchange_bind", "hub.one.x", "builds.results", key),
        )
    for queue in FOREIGN_QUEUES:
        yield f"bind {queue} to own exchange", methodcaller("queue_bind", queue, "hub.one.x", "#")
    for queue, exchange, key in (
        ("builds.requests", "builds", "request.*.interactive"),
        ("builds.results.log.two", "builds.results", "build.two.#"),
    ):
        yield f"unbind {queue}", methodcaller("queue_unbind", queue, exchange, key)


def reading_and_removing() -> Iterable[tuple[str, Attack]]:
    for queue in FOREIGN_QUEUES:
        yield f"consume {queue}", partial(consume, queue=queue)
        for method in ("basic_get", "queue_purge", "queue_delete"):
            yield f"{method} {queue}", methodcaller(method, queue)
    for exchange in (*FOREIGN_EXCHANGES, "builds.entry.one"):
        if exchange and not exchange.startswith("amq."):
            yield f"delete exchange {exchange}", methodcaller("exchange_delete", exchange)


def new_names() -> Iterable[tuple[str, Attack]]:
    for name in (*NEW_NAMES, "builds.requests"):
        yield f"declare queue {name}", methodcaller("queue_declare", name)
    for name in (*NEW_NAMES, "builds", "builds.entry.one"):
        yield f"declare exchange {name}", methodcaller("exchange_declare", name, "topic")
    yield "declare a queue without a name", methodcaller("queue_declare", "", exclusive=True)


def publish(
    channel: BlockingChannel, exchange: str, key: str, body: bytes = b"{}", **properties: Any
) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties))


def consume(channel: BlockingChannel, queue: str) -> None:
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, lambda *_: None)


def reply_to(connection: pika.BlockingConnection, attack: Attack) -> int:
    """Return the code with which RabbitMQ closes the channel; 0 if it obeys."""
    channel = connection.channel()
    try:
        attack(channel)
    except ChannelClosedByBroker as error:
        return int(error.reply_code)
    channel.close()
    return 0


def test_rabbitmq_refuses_a_tenant_whatever_touches_another_or_the_service(
    import_users: ImportUsers, settings: Settings, vhost: str
) -> None:
    users = import_users("one", "two")
    with connected(users.url("hub-two")) as two:
        two.channel().queue_declare("hub.two.events", durable=True)
    with connected(users.url("hub-one")) as one:
        attacks = forbidden(one.channel())
        assert [name for name, attack in attacks.items() if reply_to(one, attack) != 403] == []
        assert reply_to(one, partial(publish, exchange="builds.entry.one", key=ONE, user_id="guest")) == 406
        for key in hub_bindings("one"):
            one.channel().queue_bind("hub.one.q", "builds.results", key)
        consume(one.channel(), "builds.results.log.one")
        publish(one.channel(), "builds.entry.one", ONE, user_id=users.name("hub-one"))
    with connected(users.url("rabbit2docker-worker")) as worker:
        channel = worker.channel()
        assert eventually_blocking(lambda: channel.basic_get("builds.requests")[0]).routing_key == ONE
    management = Management(users.management_url("hub-one"))
    policy = {"pattern": "^builds", "definition": {"dead-letter-exchange": "builds"}}
    for method, path in (("PUT", f"policies/{vhost}/x"), ("GET", f"queues/{vhost}")):
        assert refusal(management, method, path, policy) == 401
    assert asyncio.run(declare.check(settings.model_copy(update={"tenants": ["one", "two"]}))) == []


def refusal(management: Management, method: str, path: str, body: object) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        management.api(method, path, body if method == "PUT" else None)
    with error.value:
        return error.value.code


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
        eventually_blocking(lambda: reasons(operator) == ["expired", "expired", "forged"])
        published = 0
        while published < 2:
            published += asyncio.run(redrive_all(operator))
        consumer.start_and_wait()
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
    assert f'rabbit2docker_dead_lettered_total{{reason="forged"}} {forged - 1}.0' in consumer.get("/metrics")[1].splitlines()
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


async def test_a_default_tenant_beside_others_uses_its_own_exchange_when_set(
    import_users: ImportUsers,
) -> None:
    users = import_users("default", "two")
    hub = users.settings("hub-default")
    async with BuildEvents(hub, wait_seconds=180) as events:
        with pytest.raises(AccessRefused, match=r"set RABBIT2DOCKER_AMQP__ENTRY_EXCHANGE=true"):
            await events.submit(a_request("shared"))
    own = hub.model_copy(update={"entry_exchange": True})
    async with BuildEvents(own, wait_seconds=180) as events:
        assert await events.submit(a_request("own")) == "own"


async def test_a_user_whom_rabbitmq_knows_by_another_name_can_do_without_user_id(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare.declare(settings)
    monkeypatch.setattr(ConfirmedPublisher, "user", "other")
    async with BuildEvents(settings.amqp, wait_seconds=180) as events:
        with pytest.raises(AccessRefused, match=r"set RABBIT2DOCKER_AMQP__SEND_USER_ID=false"):
            await events.submit(a_request("mapped"))
    without = settings.amqp.model_copy(update={"send_user_id": False})
    async with BuildEvents(without, wait_seconds=180) as events:
        assert await events.submit(a_request("mapped")) == "mapped"


async def test_the_exported_operator_operates_and_the_exported_monitoring_user_only_reads(
    users: ExportedUsers, settings: Settings, vhost: str
) -> None:
    name = "rabbit2docker-operator"
    management_url = users.management_url(name)
    amqp = AmqpSettings.model_validate({"url": users.url(name), "management_url": management_url})
    operated = settings.model_copy(update={"amqp": amqp, "tenants": ["one", "two", "three"]})
    await declare.declare(operated)
    assert await declare.check(operated) == []
    monitoring = Management(users.management_url("rabbit2docker-monitoring"))
    found = {queue["name"] for queue in monitoring.api("GET", f"queues/{vhost}")}
    assert {"builds.requests", "builds.dead", "builds.results.log.three"} <= found
    for path in (f"policies/{vhost}/x", f"queues/{vhost}/hub.x", f"exchanges/{vhost}/hub.x"):
        assert refusal(monitoring, "PUT", path, {"pattern": "x", "definition": {}, "type": "topic"}) in (
            401,
            403,
        )
    with connected(users.url("rabbit2docker-monitoring")) as connection:
        for exchange in ("builds", "builds.entry.one", ""):
            assert reply_to(connection, partial(publish, exchange=exchange, key=ONE)) == 403
        for queue in FOREIGN_QUEUES:
            assert reply_to(connection, methodcaller("basic_get", queue)) in (403, 404)
