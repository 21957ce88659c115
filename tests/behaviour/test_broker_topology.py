"""The declared topology, and the walls between tenants, on a real RabbitMQ."""

import asyncio
from unittest.mock import patch

import aio_pika
import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.declarer import Declarer
from rabbit2docker.amqp.definitions import as_definitions
from rabbit2docker.amqp.topology import BindingSpec, make_topology
from rabbit2docker.errors import TopologyMismatch
from rabbit2docker.settings import Settings
from rabbit2docker_schemas import routing
from tests.support.broker import completed, running, take, with_amqp
from tests.support.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker


class TestTopology:
    async def test_a_declared_topology_passes_the_check_with_and_without_management(
        self, settings: Settings
    ) -> None:
        missing = (await declare.check(settings)).problems
        assert "queue builds.requests is missing" in missing
        await declare.declare(settings)
        assert (await declare.check(settings)).problems == []
        blind = await declare.check(with_amqp(settings, management_url=None))
        assert blind.problems == []
        assert "bindings" in blind.notes[0]

    async def test_declaring_twice_changes_nothing(self, settings: Settings) -> None:
        await declare.declare(settings)
        await declare.declare(settings)
        assert (await declare.check(settings)).problems == []

    async def test_what_is_deleted_while_the_rest_is_declared_is_declared_again(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        bind, deleted = Declarer.bind, 0

        async def after_a_deletion(declarer: Declarer, binding: BindingSpec) -> None:
            nonlocal deleted
            if deleted < 2 and binding.exchange == routing.RESULTS_EXCHANGE:
                deleted += 1
                await asyncio.to_thread(
                    rabbitmq.api, "DELETE", f"exchanges/{vhost}/{routing.RESULTS_EXCHANGE}"
                )
            await bind(declarer, binding)

        with patch.object(Declarer, "bind", after_a_deletion):
            await declare.declare(settings)
        assert (await declare.check(settings)).problems == []

    async def test_declare_names_a_queue_that_has_other_arguments(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("PUT", f"queues/{vhost}/builds.requests", {"durable": True, "arguments": {}})
        with pytest.raises(TopologyMismatch, match=r"builds\.requests exists with other arguments"):
            await declare.declare(settings)
        problems = (await declare.check(settings)).problems
        assert any("builds.requests" in problem for problem in problems)

    async def test_exported_definitions_import_and_pass_the_check(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        definitions = as_definitions(make_topology(settings.tenants), vhost=vhost)
        definitions.pop("vhosts")
        rabbitmq.api("POST", "definitions", definitions)
        assert (await declare.check(settings)).problems == []

    async def test_a_user_without_the_right_to_declare_uses_the_existing_topology(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await declare.declare(settings)
        rabbitmq.add_user("worker", vhost, configure="^$", write="^builds", read="^builds")
        url = rabbitmq.url(vhost, user="worker:worker")
        async with running(with_amqp(settings, url=url, management_url=None)) as broker:
            await broker.publisher.publish(completed())


class TestTenants:
    async def test_a_header_cannot_make_a_message_look_like_another_tenants(self, settings: Settings) -> None:
        """Only the retry ladder may name the key of the first publication."""
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
