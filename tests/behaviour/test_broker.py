"""What the broker's part promises, on a real RabbitMQ."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import aio_pika
import pytest

from rabbit2docker import metrics
from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.dead_letters import dead_letters
from rabbit2docker.amqp.ports import Delivery
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.amqp.topology import as_definitions, make_topology
from rabbit2docker.client import History
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas import ids, routing
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Completed
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.ports import free_port
from tests.support.promises import captured
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker

REQUEST = BuildRequest(provider="gh", spec="owner/repository/HEAD")


def with_amqp(settings: Settings, **changes: object) -> Settings:
    amqp = AmqpSettings.model_validate({**settings.amqp.model_dump(), **changes})
    return settings.model_copy(update={"amqp": amqp})


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Broker]:
    broker = Broker(settings)
    task = asyncio.create_task(broker.run())
    try:
        await eventually(lambda: task.done() or not any(broker.problems().values()))
        if task.done():
            await task
        yield broker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(settings: Settings, *requests: BuildRequest) -> None:
    async with publishing(settings, wait_seconds=20) as publisher:
        requester = RequestPublisher(publisher, settings.tenant)
        for request in requests:
            await requester.request(request)


async def take(broker: Broker, count: int = 1) -> list[Delivery]:
    taken: list[Delivery] = []

    async def collect() -> None:
        async for delivery in broker.source.deliveries():
            taken.append(delivery)
            if len(taken) == count:
                return

    await asyncio.wait_for(collect(), PATIENCE)
    return taken


def an_end(number: int = 0) -> Event:
    build_id = ids.build_id_of("default", f"r{number}")
    data = Completed(build_id=build_id, image="i:1", digest="sha256:0", resolved_ref="0")
    return Event(ids.terminal_event_id(build_id), "default", datetime.now(UTC), data)


class TestTopology:
    async def test_what_was_declared_passes_the_check_with_and_without_management(
        self, settings: Settings
    ) -> None:
        missing = await declare.check(settings)
        assert "queue builds.requests is missing" in missing
        await declare.declare(settings)
        assert await declare.check(settings) == []
        assert await declare.check(with_amqp(settings, management_url=None)) == []

    async def test_declaring_again_changes_nothing(self, settings: Settings) -> None:
        await declare.declare(settings)
        await declare.declare(settings)
        assert await declare.check(settings) == []

    async def test_a_queue_with_other_arguments_is_named(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("PUT", f"queues/{vhost}/builds.requests", {"durable": True, "arguments": {}})
        with pytest.raises(TopologyMismatch, match=r"builds\.requests exists with other arguments"):
            await declare.declare(settings)
        problems = await declare.check(settings)
        assert any("builds.requests" in problem for problem in problems)

    async def test_the_exported_definitions_import_and_pass_the_check(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        definitions = as_definitions(make_topology(settings.tenants), vhost=vhost)
        definitions.pop("vhosts")
        rabbitmq.api("POST", "definitions", definitions)
        assert await declare.check(settings) == []

    async def test_a_user_who_may_not_declare_uses_what_is_there(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await declare.declare(settings)
        rabbitmq.add_user("worker", vhost, configure="^$", write="^builds", read="^builds")
        url = rabbitmq.url(vhost, user="worker:worker")
        async with running(with_amqp(settings, url=url, management_url=None)) as broker:
            await broker.publisher.publish(an_end())

    async def test_a_misspelt_routing_key_ends_among_the_dead_letters(self, settings: Settings) -> None:
        await declare.declare(settings)
        connection = await aio_pika.connect(settings.amqp.url.get_secret_value())
        async with connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange("builds", ensure=False)
            await exchange.publish(aio_pika.Message(b"{}"), "request.default.interaktive", mandatory=True)
        async with dead_letters(settings.amqp) as letters:
            found = await letters.listed()
        assert [(letter.reason, letter.routing_key) for letter in found] == [
            ("unroutable", "request.default.interaktive")
        ]


class TestEvents:
    async def test_an_event_that_reaches_no_queue_is_sent_again_until_it_does(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """As in the first moments after RabbitMQ's start, when it confirms what it brings nowhere."""
        await declare.declare(settings)
        stream = routing.tenant_stream("default")
        bindings = [
            binding
            for binding in rabbitmq.api("GET", f"queues/{vhost}/{stream}/bindings")
            if binding["source"] == routing.RESULTS_EXCHANGE
        ]
        path = f"bindings/{vhost}/e/{routing.RESULTS_EXCHANGE}/q/{stream}"
        for binding in bindings:
            rabbitmq.api("DELETE", f"{path}/{binding['properties_key']}")
        before = unrouted()
        async with publishing(settings, wait_seconds=20) as publisher:
            publishing_it = asyncio.create_task(publisher.publish(an_end()))
            await eventually(lambda: unrouted() > before + 1)
            assert not publishing_it.done()
            for binding in bindings:
                rabbitmq.api("POST", path, {"routing_key": binding["routing_key"]})
            await publishing_it
        assert [event.id for event in await captured(settings.amqp)] == [an_end().id]

    async def test_a_tenant_without_a_stream_holds_nobody_up_for_ever(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await declare.declare(settings)
        monkeypatch.setattr("rabbit2docker.amqp.publisher.UNROUTED_SECONDS", 1.0)
        before = unrouted()
        async with publishing(settings, wait_seconds=20) as publisher:
            for _ in range(20):  # only the first of them is waited for
                await publisher.publish(replace(an_end(), tenant="nobody"))
        assert unrouted() - before >= 20


def unrouted() -> float:
    return metrics.REGISTRY.get_sample_value("rabbit2docker_events_unrouted_total") or 0.0


class TestTenants:
    async def test_a_hub_can_neither_read_nor_write_what_is_anothers(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """Permissions are checked as they are shipped."""
        two = settings.model_copy(update={"tenants": ["one", "two"]})
        definitions = as_definitions(make_topology(two.tenants), vhost=vhost)
        definitions.pop("vhosts")
        rabbitmq.api("POST", "definitions", definitions)
        rabbitmq.api("PUT", "users/hub-one", {"password": "hub-one", "tags": ""})
        connection = await aio_pika.connect(rabbitmq.url(vhost, user="hub-one:hub-one"))

        async def refused(work: Awaitable[object]) -> None:
            with pytest.raises(aio_pika.exceptions.ChannelClosed):
                await work

        async def ignore(message: object) -> None: ...

        async with connection:
            channel = await connection.channel()
            own = await channel.declare_queue("hub.one.events", durable=True)
            for key in routing.hub_bindings("one"):
                await own.bind("builds.results", key)
            exchange = await channel.get_exchange("builds", ensure=False)
            await exchange.publish(aio_pika.Message(b"{}"), "request.one.interactive")
            for key in ("build.two.#", "#", "build.#", "build.*.x.log", "request.two.#"):
                channel = await connection.channel()
                queue = await channel.get_queue("hub.one.events", ensure=False)
                await refused(queue.bind("builds.results", key))
            for name in ("builds.results.log.two", "builds.requests", "builds.dead", "builds.requests.log"):
                channel = await connection.channel()
                await channel.set_qos(1)
                queue = await channel.get_queue(name, ensure=False)
                await refused(queue.consume(ignore))
            for target, key in (
                ("builds", "request.two.interactive"),
                ("builds.results", "build.one.x.completed"),
                ("", "builds.requests"),
            ):
                channel = await connection.channel()
                exchange = (
                    await channel.get_exchange(target, ensure=False) if target else channel.default_exchange
                )
                await refused(exchange.publish(aio_pika.Message(b"{}"), key))
            channel = await connection.channel()
            await refused(channel.declare_queue("hub.two.events", durable=True))

    async def test_a_header_does_not_make_a_message_anothers(self, settings: Settings) -> None:
        """Only the retry ladder may say under which key a message was first published."""
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            connection = await aio_pika.connect(settings.amqp.url.get_secret_value())
            async with connection:
                channel = await connection.channel()
                exchange = await channel.get_exchange("builds", ensure=False)
                headers = {routing.ROUTING_KEY_HEADER: "request.other.bulk", routing.ATTEMPT_HEADER: 2}
                await exchange.publish(
                    aio_pika.Message(b"{}", headers=headers),  # type: ignore[arg-type]
                    "request.default.interactive",
                )
            [delivery] = await take(broker)
            assert delivery.received.routing_key == "request.default.interactive"
            assert delivery.received.tries == 0


class TestDeliveries:
    async def test_credit_limits_what_is_in_hand_and_can_be_changed(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with running(settings) as broker:
            await ask(settings, *[REQUEST] * 5)
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 2)
            first = await take(broker, 2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(broker.source.deliveries()), 0.5)
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 0)
            for delivery in first:
                await delivery.ack()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(broker.source.deliveries()), 0.5)
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 3)
            for delivery in await take(broker, 3):
                await delivery.ack()
            await eventually(lambda: rabbitmq.depth(vhost, routing.REQUESTS_QUEUE) == 0)

    async def test_a_delivery_put_back_comes_again_with_its_key_and_count(self, settings: Settings) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await ask(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.retry(routing.RETRY_LADDER[0])
            [again] = await take(broker)
            assert again.received.body == delivery.received.body
            assert again.received.routing_key == "request.default.interactive"
            assert again.received.queue == routing.REQUESTS_QUEUE
            assert again.received.message_id == delivery.received.message_id
            assert again.received.tries == 1
            await again.ack()

    async def test_a_dead_letter_keeps_its_reason_and_can_be_driven_back_or_thrown_away(
        self, settings: Settings
    ) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 2)
            await ask(settings, REQUEST, REQUEST)
            for delivery in await take(broker, 2):
                await delivery.dead_letter("not_allowed", "The operator does not allow it.")
            async with dead_letters(settings.amqp) as letters:
                found = await letters.listed()
            assert [letter.reason for letter in found] == ["not_allowed", "not_allowed"]
            assert json.loads(found[0].body)["spec"] == REQUEST.spec
            async with dead_letters(settings.amqp) as letters:
                await letters.redrive(lambda letter: letter.id == found[0].id)
            [again] = await take(broker)
            assert again.received.routing_key == "request.default.interactive"
            assert again.received.tries == 0
            assert again.received.message_id == found[0].message_id
            await again.ack()
            async with dead_letters(settings.amqp) as letters:
                assert len(await letters.discard(lambda letter: True)) == 1
            async with dead_letters(settings.amqp) as letters:
                assert await letters.listed() == []

    async def test_looking_at_dead_letters_often_does_not_lose_them(self, settings: Settings) -> None:
        """Each look is a delivery, and a delivery limit drops messages."""
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await ask(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.dead_letter("internal", "")
        for _ in range(25):
            async with dead_letters(settings.amqp) as letters:
                assert len(await letters.listed()) == 1

    async def test_a_delivery_whose_connection_died_is_stale_and_comes_again(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            through = with_amqp(settings, url=rabbitmq.url(vhost, port=proxy.port))
            async with running(through) as broker:
                await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
                await ask(settings, REQUEST)
                [delivery] = await take(broker)
                proxy.cut()
                await eventually(lambda: delivery.is_stale)
                await delivery.ack()  # too late, and no error
                [again] = await take(broker)
                assert again.received.body == delivery.received.body
                await again.ack()


class TestPublishing:
    async def test_what_was_published_while_rabbitmq_was_unreachable_arrives_afterwards(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            through = with_amqp(settings, url=rabbitmq.url(vhost, port=proxy.port))
            async with running(through) as broker:
                proxy.refuse(True)
                proxy.cut()
                publishing_ = [asyncio.create_task(broker.publisher.publish(an_end(n))) for n in range(50)]
                await eventually(lambda: all(broker.problems().values()))
                assert not any(task.done() for task in publishing_)
                proxy.refuse(False)
                await asyncio.wait_for(asyncio.gather(*publishing_), PATIENCE)
        assert await ends_of(settings) == {an_end(n).id for n in range(50)}

    async def test_a_black_hole_is_noticed_and_nothing_is_lost(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            url = rabbitmq.url(vhost, port=proxy.port)
            through = with_amqp(settings, url=url, publish_timeout=2, heartbeat=5)
            async with running(through) as broker:
                await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
                proxy.black_hole()
                task = asyncio.create_task(broker.publisher.publish(an_end()))
                await eventually(lambda: any(broker.problems().values()))
                proxy.cut()
                proxy.flow()
                await asyncio.wait_for(task, PATIENCE)
                await ask(settings, REQUEST)
                [delivery] = await take(broker)
                await delivery.ack()

    @pytest.mark.xdist_group("mortal-rabbitmq")
    async def test_a_memory_alarm_delays_events_and_loses_none(
        self, settings: Settings, mortal_rabbitmq: RabbitMQ
    ) -> None:
        url = mortal_rabbitmq.url(mortal_rabbitmq.new_vhost())
        settings = with_amqp(settings, url=url, management_url=mortal_rabbitmq.management_url)
        await declare.declare(settings)
        async with running(with_amqp(settings, publish_timeout=1)) as broker:
            with mortal_rabbitmq.memory_alarm():
                tasks = [asyncio.create_task(broker.publisher.publish(an_end(n))) for n in range(20)]
                done, _ = await asyncio.wait(tasks, timeout=3)
                assert not done
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert await ends_of(settings) == {an_end(n).id for n in range(20)}

    async def test_a_full_outbox_refuses_instead_of_growing(self, settings: Settings) -> None:
        nobody = with_amqp(settings, url=f"amqp://guest:guest@127.0.0.1:{free_port()}/", outbox_size=100)
        broker = Broker(nobody)
        task = asyncio.create_task(broker.run())
        waiting = [asyncio.create_task(broker.publisher.publish(an_end(n))) for n in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailable, match="wait for RabbitMQ already"):
            await broker.publisher.publish(an_end())
        for each in (*waiting, task):
            each.cancel()
        await asyncio.gather(*waiting, task, return_exceptions=True)

    async def test_a_deleted_exchange_holds_events_until_it_is_there_again(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with running(settings) as broker:
            rabbitmq.api("DELETE", f"exchanges/{vhost}/builds.results")
            task = asyncio.create_task(broker.publisher.publish(an_end()))
            await asyncio.sleep(1)
            assert not task.done()
            await declare.declare(settings)
            await asyncio.wait_for(task, PATIENCE)


class TestConnections:
    async def test_a_wrong_password_is_refused_at_once_and_named(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        wrong = with_amqp(settings, url=rabbitmq.url(vhost, user="guest:wrong"))
        with pytest.raises(AccessRefused, match="check user and password") as caught:
            async with publishing(wrong, wait_seconds=20):
                pass
        assert "wrong" not in str(caught.value)

    async def test_a_broker_that_starts_late_is_waited_for(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            proxy.refuse(True)
            broker = Broker(with_amqp(settings, url=rabbitmq.url(vhost, port=proxy.port)))
            task = asyncio.create_task(broker.run())
            await asyncio.sleep(1)
            assert not task.done()
            proxy.refuse(False)
            await eventually(lambda: not any(broker.problems().values()))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def test_a_consumer_whose_queue_was_deleted_consumes_again_once_it_is_back(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            rabbitmq.api("DELETE", f"queues/{vhost}/builds.requests")
            await eventually(lambda: "builds.requests" in broker.problems()["consume"])
            await declare.declare(settings)
            await ask(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.ack()

    async def test_a_channel_that_died_silently_is_found_by_the_watchdog(self, settings: Settings) -> None:
        async with running(with_amqp(settings, watchdog_after=1)) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            channel = await broker.source.connection.channel()
            generation = broker.source.connection.generation
            underlay = await channel.get_underlay_channel()
            underlay.consumers.clear()  # type: ignore[attr-defined] # what a lost cancel notice looks like from here
            await eventually(lambda: broker.source.connection.generation > generation)
            await ask(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.ack()


async def ends_of(settings: Settings) -> set[ids.EventId]:
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    async with History(settings.amqp, settings.tenant, wait_seconds=20) as history:
        return {event.id async for event in history.since(moment) if event.is_terminal}
