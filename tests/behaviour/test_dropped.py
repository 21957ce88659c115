"""Requests that RabbitMQ itself drops are answered, and end among the dead letters."""

import asyncio
from pathlib import Path

import aio_pika
import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.dead_letters import DeadLetter, dead_letters
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Rejected
from rabbit2docker_schemas.routing import (
    DEAD_QUEUE,
    DROPPED_QUEUE,
    REQUESTS_QUEUE,
    ROUTING_KEY_HEADER,
)
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.promises import until_answered
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


async def test_expired_requests_and_those_delivered_too_often_are_rejected_and_kept(
    make_consumer: MakeConsumer,
    amqp: AmqpSettings,
    settings: Settings,
    rabbitmq: RabbitMQ,
    vhost: str,
    tmp_path: Path,
) -> None:
    await declare.declare(settings)
    await ask(settings, a_request("poison"))
    await refuse_until_dropped(amqp, rabbitmq, vhost)
    consumer = make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1")
    await asyncio.to_thread(consumer.start_and_wait)
    assert (await rejections(amqp, 1))["poison"].reason == "delivery_limit"

    # While the only slot is taken, requests wait in RabbitMQ.
    await ask(settings, a_request("first", hold=tmp_path / "release"))
    events = await until_answered(amqp, 2)
    assert [event.data.request_id for event in events if isinstance(event.data, Accepted)] == ["first"]
    policy = {"pattern": r"^builds\.waiting\.default", "definition": {"message-ttl": 100}, "priority": 9}
    rabbitmq.api("PUT", f"policies/{vhost}/impatient", policy)
    forged = {ROUTING_KEY_HEADER: "request.other.interactive"}
    await publish(amqp, a_request("late").model_dump_json().encode(), forged)
    late = (await rejections(amqp, 3))["late"]
    assert late.reason == "expired"
    assert late.message == "The request waited longer than the operator of RabbitMQ allows. Send it again."

    await eventually(lambda: rabbitmq.depth(vhost, DEAD_QUEUE) == 2)
    letters = {letter.reason: letter for letter in await listed(amqp)}
    assert set(letters) == {"expired", "delivery_limit"}
    for letter in letters.values():
        assert letter.routing_key == "request.default.interactive"
    assert b"late" in letters["expired"].body
    await eventually(lambda: rabbitmq.depth(vhost, DROPPED_QUEUE) == 0)
    assert not [line for line in consumer.lines() if line["level"] == "error"]


async def refuse_until_dropped(amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str) -> None:
    """Return the only request to its queue until RabbitMQ drops it, as crashes of consumers would."""
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(REQUESTS_QUEUE, ensure=False)
        while (message := await queue.get(fail=False)) is not None:
            await message.reject(requeue=True)  # RabbitMQ 4.3 does not count `basic.nack`
    await eventually(lambda: rabbitmq.depth(vhost, DROPPED_QUEUE) == 1)


async def publish(amqp: AmqpSettings, body: bytes, headers: dict[str, str]) -> None:
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("builds", ensure=False)
        message = aio_pika.Message(body, headers={**headers}, delivery_mode=2)
        await exchange.publish(message, "request.default.interactive")


async def rejections(amqp: AmqpSettings, answers: int) -> dict[str, Rejected]:
    """Wait for so many answers; return the rejections among them by request id."""
    events = [event.data for event in await until_answered(amqp, answers)]
    return {data.request_id: data for data in events if isinstance(data, Rejected)}


async def listed(amqp: AmqpSettings) -> list[DeadLetter]:
    async with dead_letters(amqp) as letters:
        return await letters.listed()
