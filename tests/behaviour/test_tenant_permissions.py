"""The permissions of `topology export` on a real RabbitMQ: what each user may and may not do."""

import asyncio
import urllib.error
from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller
from typing import Any, Final

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import AccessRefused
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.routing import RETRY_LADDER, hub_bindings, retry_queue
from tests.behaviour.conftest import ImportUsers
from tests.support.consumer import a_request
from tests.support.exported_users import ExportedUsers
from tests.support.plain_client import connected, publish
from tests.support.rabbitmq import Management
from tests.support.waiting import eventually_blocking

pytestmark = pytest.mark.broker

Attack = Callable[[Any], object]

ONE, TWO = "request.one.interactive", "request.two.interactive"
FOREIGN_EXCHANGES: Final = (
    "builds",
    "builds.entry.two",
    "builds.retry",
    "builds.dlx",
    "builds.dropped",
    "builds.log",
    "builds.unrouted",
    "builds.results",
    "builds.results.log",
    "",
    "amq.topic",
)
FOREIGN_QUEUES: Final = (
    "builds.requests",
    "builds.requests.bulk",
    "builds.cancels",
    "builds.unrouted",
    "builds.dead",
    "builds.dropped",
    "builds.cancels.log",
    "builds.waiting.log",
    "builds.waiting.two.interactive",
    "builds.state",
    "builds.requests.log",
    "builds.results.log.two",
    "builds.results.log.two.index",
    "builds.results.log.two.phases",
    "hub.two.events",
    *(retry_queue(rung, "builds.requests") for rung in RETRY_LADDER.rungs),
)
FOREIGN_BINDINGS: Final = (*hub_bindings("two"), "#", "build.#", "build.*.x.log", "*.two.#", "request.one")
NEW_NAMES: Final = ("builds.entry.three", "builds.entry", "builds.x", "hub.two.x", "hub.one", "amq.x", "x")


@pytest.fixture
def users(import_users: ImportUsers) -> ExportedUsers:
    return import_users("one", "two")


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
    both = settings.model_copy(update={"tenants": ["one", "two"]})
    assert asyncio.run(declare.check(both)).problems == []


def refusal(management: Management, method: str, path: str, body: object) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        management.api(method, path, body if method == "PUT" else None)
    with error.value:
        return error.value.code


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
    assert (await declare.check(operated)).problems == []
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
