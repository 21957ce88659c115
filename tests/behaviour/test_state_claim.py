"""Consumers with different records on one virtual host: the second is refused, before it takes a request."""

import asyncio
from pathlib import Path

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import Broker
from rabbit2docker.amqp.state_claim import release
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor
from rabbit2docker.errors import StateConflict
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Completed
from rabbit2docker_schemas.routing import REQUESTS_QUEUE, STATE_QUEUE
from tests.faults.conftest import MakeConsumer, ask
from tests.support.broker import REQUEST, running, submit, take, with_amqp
from tests.support.consumer import Consumer, a_request
from tests.support.kube.replicas import Replicas
from tests.support.promises import captured, check_promises, ends_of, until_ended
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


class TestProcesses:
    async def test_a_consumer_with_another_state_is_refused_and_every_build_has_one_end(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
    ) -> None:
        first = make_consumer()
        await asyncio.to_thread(first.start_and_wait)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        second = Consumer(elsewhere, amqp)
        second.fork = True
        second.start()
        try:
            names = [f"r{number}" for number in range(6)]
            await ask(settings, *(a_request(name) for name in names))
            await eventually(second.has_ended)
            assert second.process is not None
            assert second.process.returncode == 78
        finally:
            second.end_everything()
        words = second.log.read_text()
        assert "Traceback" not in words
        assert (first.directory / "state" / "id").read_text().strip() in words
        assert "topology release" in words
        ends = ends_of(await until_ended(amqp, 6))
        assert {type(end.data) for end in ends.values()} == {Completed}
        check_promises(await captured(amqp), names)
        first.stop()

        # The same records in another place are no other state.
        (first.directory / "state").rename(elsewhere / "moved")
        moved = make_consumer(RABBIT2DOCKER_LOCAL__STATE_DIR=str(elsewhere / "moved"))
        await asyncio.to_thread(moved.start_and_wait)
        moved.stop()


class TestClaims:
    async def test_replicas_share_a_claim_that_others_get_only_after_its_release(
        self, settings: Settings
    ) -> None:
        await declare.declare(settings)
        assert not await release(settings.amqp)
        async with running(settings, "one") as first, running(settings, "one") as replica:
            with pytest.raises(StateConflict, match="another state work on this virtual host: one"):
                await refused(settings, "two")
            with pytest.raises(StateConflict, match="running: 2"):
                await release(settings.amqp)
            # Broken connections hold the claim again, and requests are consumed as before.
            generation = replica.source.connection.generation
            for broker in (first, replica):
                broker.source.connection.request_reconnect()
            await eventually(lambda: replica.source.connection.generation > generation)
            await eventually(lambda: not any(replica.problems().values()))
            with pytest.raises(StateConflict):
                await refused(settings, "two")
        assert await release(settings.amqp)
        async with running(settings, "two") as other:
            await other.source.set_prefetch(REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(other)
            await delivery.ack()

    async def test_a_running_consumer_ends_when_another_state_has_taken_over(
        self, settings: Settings, vhost: str, rabbitmq: RabbitMQ
    ) -> None:
        """As after a time without a connection that was long enough for the claim to expire."""
        await declare.declare(settings)
        broker = Broker(settings)
        task = asyncio.create_task(broker.run("one"))
        await eventually(lambda: not any(broker.problems().values()))
        broker.source.connection.request_reconnect()
        arguments = {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "two",
        }
        rabbitmq.api("DELETE", f"queues/{vhost}/{STATE_QUEUE}")
        rabbitmq.api("PUT", f"queues/{vhost}/{STATE_QUEUE}", {"durable": True, "arguments": arguments})
        with pytest.raises(BaseExceptionGroup) as raised:
            await asyncio.wait_for(task, 180)
        assert raised.group_contains(StateConflict)

    async def test_a_user_that_may_not_claim_consumes_all_the_same(
        self, settings: Settings, vhost: str, rabbitmq: RabbitMQ
    ) -> None:
        await declare.declare(settings)
        rabbitmq.add_user(f"poor-{vhost}", vhost, configure="^$", write=".*", read=".*")
        url = rabbitmq.url(vhost, user=f"poor-{vhost}:poor-{vhost}")
        async with running(with_amqp(settings, url=url, declare=False), "one") as broker:
            assert broker.source.claim is not None
            assert broker.source.claim.is_refused
            await broker.source.set_prefetch(REQUESTS_QUEUE, 1)
            await submit(settings, REQUEST)
            [delivery] = await take(broker)
            await delivery.ack()


async def test_replicas_share_a_state_that_other_installations_and_clusters_do_not_have(
    kube: Replicas,
) -> None:
    other = KubernetesExecutor(kube.settings.model_copy(update={"instance": "other"}))
    async with kube.executor() as first, kube.executor() as replica, other:
        state_id = await first.state_id()
        assert state_id == await replica.state_id()
        assert await other.state_id() != state_id
        kube.server.namespace_uid = "of another cluster"
        assert await first.state_id() != state_id


async def refused(settings: Settings, state_id: str) -> None:
    """Raise the error of a consumer that is refused."""
    try:
        await asyncio.wait_for(Broker(settings).run(state_id), 180)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
