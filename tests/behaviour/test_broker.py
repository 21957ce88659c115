"""Events, deliveries, publishing and connections, on a real RabbitMQ."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime

import aio_pika
import pytest

from rabbit2docker import metrics
from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.connection import BROKEN, close, open_connection
from rabbit2docker.amqp.dead_letters import dead_letters
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.client import History
from rabbit2docker.consumer.intake.parsing import sender_of
from rabbit2docker.errors import AccessRefused, BrokerUnavailable
from rabbit2docker.settings import Settings, TopologySettings
from rabbit2docker_schemas import ids, routing
from tests.support.broker import REQUEST, completed, running, submit, take, with_amqp
from tests.support.ports import free_port
from tests.support.promises import captured
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker


class TestEvents:
    async def test_an_unrouted_event_is_sent_again_until_a_queue_takes_it(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """As in the first moments after its start, when RabbitMQ confirms messages that it routes nowhere."""
        await declare.declare(settings)
        path = f"bindings/{vhost}/e/{routing.RESULTS_EXCHANGE}/q"
        bindings = rabbitmq.api("GET", f"exchanges/{vhost}/{routing.RESULTS_EXCHANGE}/bindings/source")
        for binding in bindings:
            rabbitmq.api("DELETE", f"{path}/{binding['destination']}/{binding['properties_key']}")
        before = unrouted()
        async with publishing(settings, wait_seconds=180) as publisher:
            publish = asyncio.create_task(publisher.publish(completed()))
            await eventually(lambda: unrouted() > before + 1)
            assert not publish.done()
            for binding in bindings:
                key = {"routing_key": binding["routing_key"]}
                rabbitmq.api("POST", f"{path}/{binding['destination']}", key)
            await publish
        assert [event.id for event in await captured(settings.amqp)] == [completed().id]

    async def test_a_tenant_without_a_stream_delays_events_for_a_limited_time(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await declare.declare(settings)
        monkeypatch.setattr("rabbit2docker.amqp.publisher.UNROUTED_SECONDS", 1.0)
        before = unrouted()
        async with publishing(settings, wait_seconds=180) as publisher:
            for _ in range(20):  # only the first of them is waited for
                await publisher.publish(replace(completed(), tenant="streamless"))
        assert unrouted() - before >= 20


class TestDeliveries:
    async def test_prefetch_limits_unacknowledged_deliveries_and_can_be_changed(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with running(settings) as broker:
            await submit(settings, *[REQUEST] * 5)
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

    async def test_a_retried_delivery_returns_with_its_key_and_count(self, settings: Settings) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.retry(routing.RETRY_LADDER.rungs[0])
            [again] = await take(broker)
            assert again.received.body == delivery.received.body
            assert again.received.routing_key == "request.default.interactive"
            assert again.received.queue == routing.REQUESTS_QUEUE
            assert again.received.message_id == delivery.received.message_id
            assert again.received.tries == 1
            await again.ack()

    async def test_what_waits_on_a_former_ladder_returns_once_the_ladder_is_another_one(
        self, settings: Settings
    ) -> None:
        former, present = TopologySettings(retry_pauses=[3, 700]), TopologySettings(retry_pauses=[1])
        async with running(settings.model_copy(update={"topology": former})) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.retry(routing.make_rung(3))
        async with running(settings.model_copy(update={"topology": present})) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            [again] = await take(broker)
            assert (again.received.body, again.received.tries) == (delivery.received.body, 1)
            await again.retry(routing.make_rung(1))
            [at_last] = await take(broker)
            assert (at_last.received.body, at_last.received.tries) == (delivery.received.body, 2)
            await at_last.ack()

    async def test_a_request_without_an_id_keeps_the_one_that_it_is_given_on_the_ladder(
        self, settings: Settings
    ) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            connection = await open_connection(Endpoint(settings.amqp, "test"))
            try:
                exchange = await (await connection.channel()).get_exchange(routing.REQUESTS_EXCHANGE)
                await exchange.publish(aio_pika.Message(b"{}"), "request.default.interactive")
            finally:
                await close(connection)
            [delivery] = await take(broker)
            await delivery.retry(routing.RETRY_LADDER.rungs[0])
            [again] = await take(broker)
            await again.ack()
            assert sender_of(again.received) == sender_of(delivery.received)

    async def test_a_dead_letter_keeps_its_reason_and_can_be_redriven_or_discarded(
        self, settings: Settings
    ) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 2)
            await submit(settings, REQUEST, REQUEST)
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

    async def test_listing_dead_letters_often_does_not_lose_them(self, settings: Settings) -> None:
        """Listing delivers the messages, and a delivery limit drops messages."""
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.dead_letter("internal", "")
        for _ in range(25):
            async with dead_letters(settings.amqp) as letters:
                assert len(await letters.listed()) == 1

    async def test_a_delivery_of_a_lost_connection_is_stale_and_is_redelivered(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            through = with_amqp(settings, url=rabbitmq.url(vhost, port=proxy.port))
            async with running(through) as broker:
                await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
                await submit(settings, REQUEST)
                [delivery] = await take(broker)
                proxy.cut()
                await eventually(lambda: delivery.is_stale)
                await delivery.ack()  # too late, and no error
                [again] = await take(broker)
                assert again.received.body == delivery.received.body
                await again.ack()


class TestPublishing:
    async def test_events_published_while_rabbitmq_is_unreachable_arrive_afterwards(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            through = with_amqp(settings, url=rabbitmq.url(vhost, port=proxy.port))
            async with running(through) as broker:
                proxy.refuse(True)
                proxy.cut()
                publishing_ = [asyncio.create_task(broker.publisher.publish(completed(n))) for n in range(50)]
                await eventually(lambda: all(broker.problems().values()))
                assert not any(task.done() for task in publishing_)
                proxy.refuse(False)
                await asyncio.wait_for(asyncio.gather(*publishing_), PATIENCE)
        assert await terminal_ids_of(settings) == {completed(n).id for n in range(50)}

    async def test_a_silent_connection_is_detected_and_no_event_is_lost(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            url = rabbitmq.url(vhost, port=proxy.port)
            through = with_amqp(settings, url=url, publish_timeout=2, heartbeat=5)
            async with running(through) as broker:
                await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
                proxy.black_hole()
                task = asyncio.create_task(broker.publisher.publish(completed()))
                await eventually(lambda: any(broker.problems().values()))
                proxy.cut()
                proxy.flow()
                await asyncio.wait_for(task, PATIENCE)
                await submit(settings, REQUEST)
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
                tasks = [asyncio.create_task(broker.publisher.publish(completed(n))) for n in range(20)]
                done, _ = await asyncio.wait(tasks, timeout=3)
                assert not done
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert await terminal_ids_of(settings) == {completed(n).id for n in range(20)}

    async def test_a_full_outbox_rejects_events_instead_of_growing(self, settings: Settings) -> None:
        unreachable = with_amqp(settings, url=f"amqp://guest:guest@127.0.0.1:{free_port()}/", outbox_size=100)
        broker = Broker(unreachable)
        task = asyncio.create_task(broker.run())
        waiting = [asyncio.create_task(broker.publisher.publish(completed(n))) for n in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailable, match="wait for RabbitMQ already"):
            await broker.publisher.publish(completed())
        for each in (*waiting, task):
            each.cancel()
        await asyncio.gather(*waiting, task, return_exceptions=True)

    async def test_events_wait_while_their_exchange_is_deleted(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await declare.declare(settings)
        async with running(with_amqp(settings, declare=False)) as broker:
            rabbitmq.api("DELETE", f"exchanges/{vhost}/builds.results")
            task = asyncio.create_task(broker.publisher.publish(completed()))
            await asyncio.sleep(1)
            assert not task.done()
            await declare.declare(settings)
            await asyncio.wait_for(task, PATIENCE)


class TestConnections:
    async def test_what_waits_for_a_connection_that_closes_without_a_reason_gets_a_broken_connection(
        self, settings: Settings
    ) -> None:
        connection = await open_connection(Endpoint(settings.amqp, "test"))
        channel = await connection.channel()
        pending = (await channel.get_underlay_channel()).create_future()
        assert connection.transport is not None
        await connection.transport.connection.close(None)
        with pytest.raises(BROKEN):
            await pending
        await close(connection)

    async def test_a_wrong_password_is_reported_at_once(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        wrong = with_amqp(settings, url=rabbitmq.url(vhost, user="guest:wrong"))
        with pytest.raises(AccessRefused, match="check user and password") as caught:
            async with publishing(wrong, wait_seconds=180):
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

    async def test_the_watchdog_finds_a_silently_dead_channel(self, settings: Settings) -> None:
        async with running(with_amqp(settings, watchdog_after=1)) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            channel = await broker.source.connection.channel()
            generation = broker.source.connection.generation
            underlay = await channel.get_underlay_channel()
            underlay.consumers.clear()  # type: ignore[attr-defined] # as after a lost notice of cancellation
            await eventually(lambda: broker.source.connection.generation > generation)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.ack()


def unrouted() -> float:
    return metrics.REGISTRY.get_sample_value("rabbit2docker_events_unrouted_total") or 0.0


async def terminal_ids_of(settings: Settings) -> set[ids.EventId]:
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    async with History(settings.amqp, settings.tenant, wait_seconds=180) as history:
        return {event.id async for event in history.since(moment) if event.is_terminal}
