"""Exchanges, queues, streams and bindings that disappear while the service runs, on a real RabbitMQ."""

from functools import partial
from typing import Any
from urllib.parse import quote

import aio_pika
import pytest

from rabbit2docker import metrics
from rabbit2docker.amqp import connection, declare, event_consumer, request_log, topology_keeper
from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.dead_letters import dead_letters
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.amqp.topology import make_topology
from rabbit2docker.errors import TopologyMismatch
from rabbit2docker.settings import Settings
from rabbit2docker_schemas import routing
from tests.support.broker import REQUEST, completed, running, submit, take, with_amqp
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the topology checked without a pause worth mentioning, where nothing gives notice of a loss."""
    for name in ("CHECK_SECONDS", "PROBLEM_SECONDS"):
        monkeypatch.setattr(topology_keeper, name, 0.2)


class Losses:
    """Removes parts of the topology, as an operator could."""

    def __init__(self, rabbitmq: RabbitMQ, vhost: str) -> None:
        self.api, self.vhost = rabbitmq.api, vhost

    def queue(self, name: str) -> None:
        self.api("DELETE", f"queues/{self.vhost}/{name}")

    def exchange(self, name: str) -> None:
        self.api("DELETE", f"exchanges/{self.vhost}/{name}")

    def binding(self, exchange: str, queue: str) -> None:
        path = f"bindings/{self.vhost}/e/{exchange}/q/{queue}"
        for binding in self.api("GET", path):
            self.api("DELETE", f"{path}/{quote(binding['properties_key'], safe='')}")

    def names(self, kind: str) -> set[str]:
        return {item["name"] for item in self.api("GET", f"{kind}/{self.vhost}")}


@pytest.fixture
def losses(rabbitmq: RabbitMQ, vhost: str) -> Losses:
    return Losses(rabbitmq, vhost)


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"rabbit2docker_{name}", labels) or 0.0


async def is_complete(settings: Settings) -> bool:
    return (await declare.check(settings)).problems == []


async def read_stream(settings: Settings, stream: str) -> list[Any]:
    """Return the messages of a stream that have arrived by the time at which it falls silent."""
    found: list[Any] = []
    opened = await aio_pika.connect(settings.amqp.url.get_secret_value())
    async with opened:
        channel = await opened.channel()
        await channel.set_qos(prefetch_count=50)
        queue = await channel.get_queue(stream, ensure=False)

        async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            found.append(message)
            await message.ack()

        await queue.consume(on_message, arguments={"x-stream-offset": "first"})
        await eventually(lambda: bool(found))
    return found


class TestRestoring:
    def test_the_topology_is_incomplete_until_it_was_checked(self, settings: Settings) -> None:
        assert Broker(settings).topology_problems() == [topology_keeper.UNCHECKED]

    async def test_a_deleted_queue_is_declared_again_at_once_and_consumed(
        self, settings: Settings, losses: Losses
    ) -> None:
        async with running(settings) as broker:
            for queue in (routing.REQUESTS_QUEUE, routing.CANCEL_QUEUE):
                await broker.source.set_prefetch(queue, 1)
            before = count("topology_restored_total", kind="queue")
            losses.queue("builds.requests")
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            assert delivery.received.routing_key == "request.default.interactive"
            await delivery.ack()
            assert count("topology_restored_total", kind="queue") == before + 1
            assert (await declare.check(settings)).problems == []
            assert broker.topology_problems() == []

    @pytest.mark.usefixtures("often")
    async def test_messages_that_are_lost_with_their_queue_are_counted_and_named(
        self, settings: Settings, losses: Losses
    ) -> None:
        queue = "builds.requests"
        async with running(settings) as broker:
            before = count("messages_lost_total", queue=queue)
            await submit(settings, REQUEST, REQUEST, REQUEST)
            await eventually(lambda: count("queue_messages", queue=queue) == 3)
            assert broker.topology_losses() == []
            losses.queue(queue)
            [loss] = await eventually(broker.topology_losses)
            assert f"queue {queue} was found deleted" in loss
            assert "with about 3 messages in it" in loss
            assert count("messages_lost_total", queue=queue) == before + 3
            await eventually(partial(is_complete, settings))
            assert broker.topology_problems() == []

    @pytest.mark.usefixtures("often")
    async def test_everything_that_disappears_without_a_notice_is_declared_again(
        self, settings: Settings, losses: Losses
    ) -> None:
        async with running(settings):
            losses.queue("builds.requests.log")
            losses.queue(routing.tenant_stream("default"))
            losses.queue("builds.retry.10m.bulk")
            losses.exchange("builds.retry")
            losses.exchange("builds.dlx")
            losses.binding("builds", "builds.cancels")
            assert len((await declare.check(settings)).problems) > 6
            await eventually(partial(is_complete, settings))
            before = count("topology_restored_total", kind="binding")

            def is_counted() -> bool:
                # A check that has begun binds it again without knowing that it was missing.
                losses.binding("builds", "builds.cancels")
                return count("topology_restored_total", kind="binding") > before

            await eventually(is_counted)
            await eventually(partial(is_complete, settings))

    @pytest.mark.usefixtures("often")
    async def test_bindings_return_without_the_management_api(
        self, settings: Settings, losses: Losses
    ) -> None:
        await declare.declare(settings)
        async with running(with_amqp(settings, management_url=None)):
            losses.exchange("builds")
            losses.binding("builds.results", routing.tenant_stream("default"))
            await eventually(partial(is_complete, settings))

    @pytest.mark.usefixtures("often")
    async def test_an_exchange_that_was_made_anew_without_its_arguments_is_reported(
        self, settings: Settings, losses: Losses
    ) -> None:
        async with running(settings) as broker:
            losses.exchange("builds")
            losses.api("PUT", f"exchanges/{losses.vhost}/builds", {"type": "topic", "durable": True})
            await eventually(lambda: bool(broker.topology_problems()))
            [problem] = broker.topology_problems()
            assert "Exchange builds exists with other arguments" in problem
            assert count("topology_problems") == 1

    async def test_bindings_of_earlier_versions_are_removed(self, settings: Settings, losses: Losses) -> None:
        """With a copy in the log, a request was confirmed although no queue of work took it."""
        await declare.declare(settings)
        path = f"bindings/{losses.vhost}/e/builds/q/builds.requests.log"
        losses.api("POST", path, {"routing_key": "request.*.interactive"})
        [problem] = (await declare.check(settings)).problems
        assert "earlier version" in problem
        await declare.declare(settings)
        assert losses.api("GET", path) == []


class TestWithoutTheRightToDeclare:
    @pytest.mark.usefixtures("often")
    async def test_what_is_missing_is_reported_and_the_other_queues_are_consumed(
        self, settings: Settings, losses: Losses, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await declare.declare(settings)
        [worker] = [user for user in make_topology(["default"]).users if "worker" in user.name]
        rabbitmq.add_user(
            f"worker-{vhost}", vhost, configure=worker.configure, write=worker.write, read=worker.read
        )
        url = rabbitmq.url(vhost, user=f"worker-{vhost}:worker-{vhost}")
        async with running(with_amqp(settings, url=url, management_url=None)) as broker:
            for queue in (routing.REQUESTS_QUEUE, routing.BULK_QUEUE):
                await broker.source.set_prefetch(queue, 1)
            losses.queue("builds.requests")
            await eventually(
                lambda: (
                    broker.topology_problems() == ["queue builds.requests is missing"]
                    and not any(broker.problems().values())
                )
            )
            async with publishing(settings, wait_seconds=180) as publisher:
                await RequestPublisher(publisher, "default").request(REQUEST, routing.Priority.BULK)
            [delivery] = await take(broker)
            assert delivery.received.queue == routing.BULK_QUEUE
            await delivery.ack()
            await submit(settings, REQUEST)  # waits among the unrouted
            await declare.declare(settings)
            [delivery] = await take(broker)
            assert delivery.received.queue == routing.REQUESTS_QUEUE
            await delivery.ack()
            await eventually(lambda: broker.topology_problems() == [])


class TestUnroutedRequests:
    async def test_a_request_reaches_its_queue_without_its_binding(
        self, settings: Settings, losses: Losses
    ) -> None:
        """And nothing that its sender writes into the headers counts."""
        await declare.declare(settings)
        async with running(with_amqp(settings, declare=False)) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            losses.binding("builds", "builds.requests")
            before = count("requests_unrouted_total", outcome="rerouted")
            publishing_ = await aio_pika.connect(settings.amqp.url.get_secret_value())
            async with publishing_:
                channel = await publishing_.channel()
                exchange = await channel.get_exchange("builds", ensure=False)
                headers: Any = {routing.ROUTING_KEY_HEADER: "request.other.bulk", routing.ATTEMPT_HEADER: 2}
                message = aio_pika.Message(b"{}", headers=headers, message_id="mine")
                await exchange.publish(message, "request.default.interactive")
            [delivery] = await take(broker)
            assert delivery.received.routing_key == "request.default.interactive"
            assert delivery.received.queue == routing.REQUESTS_QUEUE
            assert delivery.received.message_id == "mine"
            assert delivery.received.tries == 0
            await delivery.ack()
            assert count("requests_unrouted_total", outcome="rerouted") == before + 1
            assert "binding" in broker.topology_problems()[0]

    async def test_a_request_that_was_sent_while_nothing_ran_is_taken_later(
        self, settings: Settings, losses: Losses
    ) -> None:
        await declare.declare(settings)
        losses.queue("builds.requests")
        await submit(settings, REQUEST)
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            [delivery] = await take(broker)
            await delivery.ack()

    async def test_a_request_that_no_queue_at_all_takes_is_returned_to_its_sender(
        self, settings: Settings, losses: Losses
    ) -> None:
        await declare.declare(settings)
        losses.queue("builds.requests")
        losses.queue("builds.unrouted")
        with pytest.raises(TopologyMismatch, match="No queue takes messages"):
            await submit(settings, REQUEST)

    async def test_a_request_with_a_misspelt_routing_key_becomes_a_dead_letter(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with running(settings):
            publishing_ = await aio_pika.connect(settings.amqp.url.get_secret_value())
            async with publishing_:
                channel = await publishing_.channel(on_return_raises=True)
                exchange = await channel.get_exchange("builds", ensure=False)
                await exchange.publish(aio_pika.Message(b"{}"), "request.default.interaktive", mandatory=True)
            await eventually(lambda: rabbitmq.depth(vhost, "builds.dead") == 1)
        async with dead_letters(settings.amqp) as letters:
            found = await letters.listed()
        assert [(letter.reason, letter.routing_key) for letter in found] == [
            ("unroutable", "request.default.interaktive")
        ]


class TestQueuesOfHubs:
    @pytest.mark.parametrize("lost", ["binding", "exchange"])
    async def test_a_hubs_queue_is_bound_again(
        self, settings: Settings, losses: Losses, monkeypatch: pytest.MonkeyPatch, lost: str
    ) -> None:
        monkeypatch.setattr(event_consumer, "REBIND_SECONDS", 0.0)
        monkeypatch.setattr(connection, "PROBE_SECONDS", 0.1)
        await declare.declare(settings)
        consumer = event_consumer.EventConsumer(settings.amqp, "default", "default")

        def bindings() -> int:
            return len(losses.api("GET", f"bindings/{losses.vhost}/e/builds.results/q/hub.default.events"))

        async with connection.connected(consumer.connection, 180):
            assert bindings() == 2
            if lost == "binding":
                losses.binding("builds.results", "hub.default.events")
            else:
                losses.exchange("builds.results")
                await declare.declare(settings)
            await eventually(lambda: bindings() == 2)


class TestLogOfRequests:
    async def test_a_request_is_logged_once_with_its_key_and_headers(self, settings: Settings) -> None:
        async with running(settings) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.record()
            await delivery.retry(routing.RETRY_LADDER.rungs[0])
            [again] = await take(broker)
            await again.record()
            await again.ack()
            [message] = await read_stream(settings, routing.REQUEST_LOG_STREAM)
        assert message.routing_key == "request.default.interactive"
        assert message.body == delivery.received.body
        assert message.headers["ce-id"] == delivery.received.headers["ce-id"]

    async def test_a_missing_log_delays_no_request(
        self, settings: Settings, losses: Losses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(request_log, "PAUSE_SECONDS", 0.0)
        await declare.declare(settings)
        async with running(with_amqp(settings, declare=False)) as broker:
            await broker.source.set_prefetch(routing.REQUESTS_QUEUE, 2)
            before = count("requests_not_logged_total")
            losses.queue("builds.requests.log")
            await submit(settings, REQUEST, REQUEST)
            first, second = await take(broker, 2)
            await first.record()
            losses.exchange("builds.log")
            await second.record()
            assert count("requests_not_logged_total") == before + 2
            await broker.publisher.publish(completed())
