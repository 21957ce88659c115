"""Nodes of a RabbitMQ cluster that die, or lose each other, during builds."""

import asyncio
from contextlib import suppress

import pytest

from rabbit2docker.errors import MessageRefused
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Completed
from rabbit2docker_schemas.requests import BuildRequest
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.promises import check_promises, lines_of, until_ended
from tests.support.rabbitmq_cluster import Cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.rabbitmq_cluster

LINES = 200


async def ask_until_confirmed(settings: Settings, request: BuildRequest) -> None:
    """Publish a request again for as long as RabbitMQ refuses it because queues have no majority."""
    while True:
        with suppress(MessageRefused):
            return await ask(settings, request)


async def test_each_node_dies_during_builds_and_none_is_lost(
    cluster: Cluster, amqp: AmqpSettings, make_consumer: MakeConsumer
) -> None:
    settings = Settings(amqp=amqp)
    consumer = make_consumer(RABBIT2DOCKER_AMQP__NODES=cluster.addresses)
    await asyncio.to_thread(consumer.start_and_wait)
    names: list[str] = []

    async def build(moment: str, count: int = 3) -> None:
        new = [f"{moment}-{n}" for n in range(count)]
        for name in new:
            await ask_until_confirmed(settings, a_request(name, lines=LINES, every=0.02))
        names.extend(new)

    for number, node in enumerate(cluster.nodes):
        await build(f"before-{number}")
        await eventually(lambda: len(consumer.records()) == len(names))
        await asyncio.to_thread(node.kill)
        await build(f"without-{number}")
        await eventually(lambda: len(consumer.records()) == len(names))
        await eventually(lambda: asyncio.to_thread(consumer.is_ready))
        await asyncio.to_thread(node.start_again)
        await asyncio.to_thread(cluster.wait_until_whole)
    events = await until_ended(amqp, len(names))
    ends = check_promises(events, names)
    assert all(isinstance(end, Completed) for end in ends.values())
    assert all(
        len([line for line in log if line.startswith("line ")]) == LINES for log in lines_of(events).values()
    )
    assert not consumer.has_ended()


async def test_with_a_majority_away_requests_wait_and_nothing_is_lost(
    cluster: Cluster, amqp: AmqpSettings, make_consumer: MakeConsumer
) -> None:
    settings = Settings(amqp=amqp)
    consumer = make_consumer(RABBIT2DOCKER_AMQP__NODES=cluster.addresses)
    await asyncio.to_thread(consumer.start_and_wait)
    await ask(settings, a_request("before", lines=LINES, every=0.02))
    await eventually(lambda: len(consumer.records()) == 1)
    lost = cluster.nodes[1:]
    for node in lost:
        await asyncio.to_thread(node.kill)
    asking = asyncio.create_task(ask_until_confirmed(settings, a_request("during", lines=LINES, every=0.02)))
    await eventually(lambda: asyncio.to_thread(lambda: not consumer.is_ready()))
    for node in lost:
        await asyncio.to_thread(node.start_again)
    await asyncio.to_thread(cluster.wait_until_whole)
    await asking
    events = await until_ended(amqp, 2)
    ends = check_promises(events, ["before", "during"])
    assert all(isinstance(end, Completed) for end in ends.values())


async def test_two_nodes_that_lose_each_other_during_builds_cost_nothing(
    cluster: Cluster, amqp: AmqpSettings, make_consumer: MakeConsumer
) -> None:
    """Both still see the third, so that neither is in a minority by itself."""
    settings = Settings(amqp=amqp)
    consumer = make_consumer(RABBIT2DOCKER_AMQP__NODES=cluster.addresses)
    await asyncio.to_thread(consumer.start_and_wait)
    names: list[str] = []
    one, other, _ = cluster.nodes

    async def build(moment: str) -> None:
        new = [f"{moment}-{n}" for n in range(3)]
        for name in new:
            await ask_until_confirmed(settings, a_request(name, lines=LINES, every=0.02))
        names.extend(new)
        await eventually(lambda: len(consumer.records()) == len(names))

    await build("before")
    await asyncio.to_thread(cluster.cut, one, other)
    await eventually(lambda: asyncio.to_thread(lambda: not cluster.is_whole()))
    await build("apart")
    await eventually(lambda: asyncio.to_thread(consumer.is_ready))
    await asyncio.to_thread(cluster.heal, one, other)
    await asyncio.to_thread(cluster.wait_until_whole)
    await build("after")
    events = await until_ended(amqp, len(names))
    ends = check_promises(events, names)
    assert all(isinstance(end, Completed) for end in ends.values())
    assert all(
        len([line for line in log if line.startswith("line ")]) == LINES for log in lines_of(events).values()
    )
    assert not consumer.has_ended()
