"""Queues that take no messages: full, or as silent as one without a majority. They delay no one but their readers."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aio_pika
import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.dead_letters import dead_letters
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import StreamUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Rejected
from rabbit2docker_schemas.routing import (
    RESULTS_EXCHANGE,
    RESULTS_LOG_EXCHANGE,
    hub_bindings,
    tenant_stream,
)
from tests.faults.conftest import MakeConsumer, ask
from tests.support.broker import completed, with_amqp
from tests.support.consumer import Consumer, a_request
from tests.support.promises import captured, check_promises, until_answered, until_ended
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker

HUB = "hub.one.full"
FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}
NO_DEAD_LETTERS = {"max-length": 0, "overflow": "reject-publish"}
VARIABLES = {
    "RABBIT2DOCKER_TENANTS": '["one", "two"]',
    "RABBIT2DOCKER_AMQP__PUBLISH_TIMEOUT": str(PATIENCE),
}
MANY_DEAD_LETTERS = {**NO_DEAD_LETTERS, "max-length": 1000}


@pytest.fixture
def settings(amqp: AmqpSettings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # A busy machine confirms late; what counts here is a refusal, which is an answer.
    monkeypatch.setattr("rabbit2docker.amqp.publisher.OFFER_SECONDS", PATIENCE)
    given = Settings(amqp=amqp, tenants=["one", "two"], tenant="one")
    return with_amqp(given, publish_timeout=PATIENCE)


def events(tenant: str, count: int, first: int = 0) -> list[Event]:
    return [replace(completed(number), tenant=tenant) for number in range(first, first + count)]


@asynccontextmanager
async def hub_queue(
    settings: Settings, name: str = HUB, arguments: dict[str, Any] | None = None, *keys: str
) -> AsyncIterator[aio_pika.abc.AbstractQueue]:
    """Declare and bind a queue of tenant one, as a hub with any AMQP client does."""
    async with await aio_pika.connect(settings.amqp.url.get_secret_value()) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        for key in keys or hub_bindings("one"):
            await queue.bind(RESULTS_EXCHANGE, key)
        yield queue


async def drain(queue: aio_pika.abc.AbstractQueue, count: int) -> list[str]:
    """Read until `count` different events have arrived, and return the ids of all."""
    ids: list[str] = []

    async def next_id() -> bool:
        message = await queue.get(fail=False)
        if message is not None:
            await message.ack()
            ids.append(str(message.headers["ce-id"]))
        return len(set(ids)) == count

    await eventually(next_id)
    return ids


async def copies(settings: Settings, tenant: str) -> Counter[str]:
    return Counter(event.id for event in await captured(settings.amqp, tenant))


def ids(published: list[Event]) -> list[str]:
    return [event.id for event in published]


async def publish_all(publisher: ConfirmedPublisher, published: list[Event]) -> None:
    for event in published:
        await publisher.publish(event)


class Stuck:
    """A queue whose process does nothing: its messages are neither confirmed nor refused."""

    def __init__(self, rabbitmq: RabbitMQ, vhost: str, queue: str) -> None:
        self._rabbitmq = rabbitmq
        self._pid = (
            "amqqueue:get_pid(element(2, rabbit_amqqueue:lookup("
            f'rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>))))'
        )

    def _eval(self, function: str) -> None:
        code, output = self._rabbitmq.container.execute(
            "rabbitmqctl", "eval", f"sys:{function}({self._pid})."
        )
        assert code == 0, output

    async def __aenter__(self) -> None:
        await asyncio.to_thread(self._eval, "suspend")

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._eval, "resume")


class TestHubs:
    async def test_a_full_queue_of_a_hub_gets_its_events_once_it_is_read_and_delays_no_other(
        self, settings: Settings
    ) -> None:
        await declare.declare(settings)
        mine, theirs = events("one", 30), events("two", 30)
        async with (
            hub_queue(settings, HUB, FULL) as full,
            publishing(settings, wait_seconds=180) as publisher,
        ):
            await asyncio.gather(publish_all(publisher, mine), publish_all(publisher, theirs))
            assert "hub of tenant one" in str(publisher.problems())
            stored = await copies(settings, "one")
            assert list(stored) == ids(mine)
            assert max(stored.values()) <= 2
            assert sum(stored.values()) <= len(mine) + 1
            assert set((await copies(settings, "two")).values()) == {1}
            # An event that is offered for the first time just now may arrive before those that wait, which have an order.
            assert sorted(await drain(full, len(mine))) == sorted(ids(mine))
            await eventually(lambda: not publisher.problems())
            assert await copies(settings, "one") == stored

    async def test_another_hub_of_the_tenant_gets_its_events_at_once(self, settings: Settings) -> None:
        await declare.declare(settings)
        mine = events("one", 30)
        async with (
            hub_queue(settings, HUB, FULL),
            hub_queue(settings, "hub.one.events") as other,
            publishing(settings, wait_seconds=180) as publisher,
        ):
            await publish_all(publisher, mine)
            assert set(await drain(other, len(mine))) == set(ids(mine))
            assert publisher.problems()

    async def test_a_queue_that_selects_kinds_of_events_is_offered_each_once_more(
        self, settings: Settings
    ) -> None:
        await declare.declare(settings)
        mine = events("one", 4)
        async with (
            hub_queue(settings, HUB, FULL, "build.one.*.completed"),
            publishing(settings, wait_seconds=180) as publisher,
        ):
            await publish_all(publisher, mine)
            await eventually(lambda: not publisher.problems())
        stored = await copies(settings, "one")
        assert list(stored) == ids(mine)
        assert max(stored.values()) == 2

    async def test_a_queue_that_is_deleted_is_not_waited_for(self, settings: Settings) -> None:
        await declare.declare(settings)
        mine = events("one", 4)
        async with (
            hub_queue(settings, HUB, FULL) as full,
            publishing(settings, wait_seconds=180) as publisher,
        ):
            await publish_all(publisher, mine)
            assert publisher.problems()
            await full.delete(if_unused=False, if_empty=False)
            await eventually(lambda: not publisher.problems())
        assert max((await copies(settings, "one")).values()) <= 2

    async def test_beyond_the_limit_the_oldest_events_are_left_to_the_stream(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await declare.declare(settings)
        mine = events("one", 30)
        size = len(mine[0].body())
        monkeypatch.setattr(
            settings.amqp, "__dict__", settings.amqp.__dict__ | {"hub_backlog_bytes": 5 * size}
        )
        async with (
            hub_queue(settings, HUB, FULL) as full,
            publishing(settings, wait_seconds=180) as publisher,
        ):
            await publish_all(publisher, mine)
            await eventually(lambda: "missed 24 older ones" in str(publisher.problems()))
            assert sorted(await drain(full, 6)) == sorted(ids(mine[:1] + mine[-5:]))
        assert list(await copies(settings, "one")) == ids(mine)

    async def test_a_queue_that_neither_confirms_nor_refuses_delays_no_other_tenant(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        settings = with_amqp(settings, publish_timeout=1.0)
        await declare.declare(settings)
        mine, theirs = events("one", 12), events("two", 12)
        async with hub_queue(settings) as queue, publishing(settings, wait_seconds=180) as publisher:
            async with Stuck(rabbitmq, vhost, HUB):
                await asyncio.gather(publish_all(publisher, mine), publish_all(publisher, theirs))
                assert "hub of tenant one" in str(publisher.problems())
                assert list(await copies(settings, "one")) == ids(mine)
                assert list(await copies(settings, "two")) == ids(theirs)
            await drain(queue, len(mine))
            await eventually(lambda: not publisher.problems())


class TestMissingExchanges:
    async def test_events_past_a_full_queue_survive_the_loss_of_the_exchange_that_others_use(
        self, settings: Settings
    ) -> None:
        await declare.declare(settings)
        mine, theirs = events("one", 300), events("two", 300)
        async with (
            hub_queue(settings, HUB, FULL),
            publishing(settings, wait_seconds=180) as publisher,
            await aio_pika.connect(settings.amqp.url.get_secret_value()) as operator,
        ):
            channel = await operator.channel()
            await publish_all(publisher, mine[:4])
            assert publisher.problems()
            published = asyncio.gather(*map(publisher.publish, mine[4:] + theirs))
            for _ in range(3):
                await channel.exchange_delete(RESULTS_EXCHANGE)
                await asyncio.sleep(0.2)
            await declare.declare(settings)
            await published
        assert set(await copies(settings, "one")) == set(ids(mine))
        assert set(await copies(settings, "two")) == set(ids(theirs))

    async def test_events_past_a_full_queue_wait_for_an_exchange(self, settings: Settings) -> None:
        await declare.declare(settings)
        mine = events("one", 5)
        async with (
            hub_queue(settings, HUB, FULL),
            publishing(settings, wait_seconds=180) as publisher,
            await aio_pika.connect(settings.amqp.url.get_secret_value()) as operator,
        ):
            channel = await operator.channel()
            await publish_all(publisher, mine[:4])
            for exchange in (RESULTS_EXCHANGE, RESULTS_LOG_EXCHANGE):
                await channel.exchange_delete(exchange)
            published = asyncio.create_task(publisher.publish(mine[4]))
            done, _ = await asyncio.wait([published], timeout=2)
            assert not done
            await declare.declare(settings)
            await published
        assert set(await copies(settings, "one")) == set(ids(mine))


class TestQueueTypes:
    @pytest.mark.parametrize(("existing", "wanted"), [("classic", "quorum"), ("quorum", "classic")])
    async def test_a_hub_uses_its_queue_as_it_exists(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str, existing: str, wanted: str
    ) -> None:
        await declare.declare(settings)
        for type_ in (existing, wanted):
            async with BuildEvents(with_amqp(settings, hub_queue_type=type_).amqp, "one", "one"):
                queue = rabbitmq.api("GET", f"queues/{vhost}/hub.one.events")
                assert queue["type"] == existing

    async def test_a_hub_names_a_queue_with_other_arguments(self, settings: Settings) -> None:
        await declare.declare(settings)
        async with hub_queue(settings, "hub.one.events"):
            with pytest.raises(TopologyMismatch, match="other arguments"):
                async with BuildEvents(settings.amqp, "one", "one", wait_seconds=180):
                    pass


class TestStreams:
    async def test_a_stream_that_takes_nothing_costs_an_answer_its_patience_and_is_named(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        settings = with_amqp(settings, publish_timeout=1.0)
        await declare.declare(settings)
        [mine], theirs = events("one", 1), events("two", 12)
        async with publishing(settings, wait_seconds=180) as publisher:
            async with Stuck(rabbitmq, vhost, tenant_stream("one")):
                with pytest.raises(StreamUnavailable, match="tenant one"):
                    await publisher.publish(mine, patience=0.5)
                assert "wait for the stream builds.results.log.one" in str(publisher.problems())
                followed = asyncio.create_task(publisher.publish(mine))
                await publish_all(publisher, theirs)
                assert not followed.done()
            await followed
            await eventually(lambda: not publisher.problems())
        assert set(await copies(settings, "one")) == {mine.id}


class TestService:
    async def test_builds_of_all_tenants_go_on_beside_a_full_queue_and_readiness_names_it(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await declare.declare(settings)
        async with hub_queue(settings, HUB, {**FULL, "x-max-length": 20}) as full:
            consumer = make_consumer(**VARIABLES)
            await asyncio.to_thread(consumer.start_and_wait)
            names = [f"r{number}" for number in range(10)]
            await ask(settings, *[a_request(name, lines=5) for name in names])
            await ask(settings.model_copy(update={"tenant": "two"}), a_request("other", lines=5))
            check_promises(await until_ended(amqp, 1, tenant="two"), ["other"])
            seen = await until_ended(amqp, len(names), tenant="one")
            check_promises(seen, names)
            assert max(Counter(event.id for event in seen).values()) <= 2
            status, text = await asyncio.to_thread(consumer.get, "/health/ready")
            assert status == 200
            assert "hub of tenant one" in " ".join(json.loads(text)["degraded"])
            assert set(await drain(full, len({event.id for event in seen}))) == {event.id for event in seen}
            await eventually(lambda: degraded(consumer) == [])
            consumer.stop()

    async def test_a_full_queue_of_dead_letters_does_not_stop_intake_and_is_filled_later(
        self,
        make_consumer: MakeConsumer,
        amqp: AmqpSettings,
        settings: Settings,
        rabbitmq: RabbitMQ,
        vhost: str,
    ) -> None:
        await declare.declare(settings)
        set_policy(rabbitmq, vhost, "quick-ladder", r"^builds\.retry\.", {"message-ttl": 200})
        set_policy(rabbitmq, vhost, "builds-dead", r"^builds\.dead$", NO_DEAD_LETTERS)
        consumer = make_consumer(RABBIT2DOCKER_AMQP__DECLARE="false", **VARIABLES)
        await asyncio.to_thread(consumer.start_and_wait)
        bad = [f"bad{number}" for number in range(12)]  # more than the prefetch
        async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
            exchange = await (await connection.channel()).get_exchange("builds", ensure=False)
            for name in bad:
                message = aio_pika.Message(b"{", message_id=name)
                await exchange.publish(message, "request.one.interactive")
        await ask(settings, a_request("good"))
        seen = await until_answered(amqp, len(bad) + 1, tenant="one")
        assert [event.data.request_id for event in seen if isinstance(event.data, Accepted)] == ["good"]
        await eventually(lambda: "dead letters wait" in " ".join(degraded(consumer)))
        set_policy(rabbitmq, vhost, "builds-dead", r"^builds\.dead$", MANY_DEAD_LETTERS)

        async def letters() -> list[tuple[str | None, str]]:
            async with dead_letters(amqp) as opened:
                found = [(letter.message_id, letter.reason) for letter in await opened.listed()]
            return sorted(found) if len(found) == len(bad) else []

        assert await eventually(letters) == sorted((name, "invalid_json") for name in bad)
        await eventually(lambda: degraded(consumer) == [])
        rejections = Counter(
            event.data.request_id for event in await captured(amqp, "one") if isinstance(event.data, Rejected)
        )
        assert rejections == dict.fromkeys(bad, 1)
        consumer.stop()


def degraded(consumer: Consumer) -> list[str]:
    found: list[str] = json.loads(consumer.get("/health/ready")[1])["degraded"]
    return found


def set_policy(
    rabbitmq: RabbitMQ, vhost: str, name: str, pattern: str, definition: dict[str, object]
) -> None:
    body = {"pattern": pattern, "definition": definition, "apply-to": "queues", "priority": 10}
    rabbitmq.api("PUT", f"policies/{vhost}/{name}", body)
