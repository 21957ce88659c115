"""A scan of a stream that is deleted in the middle, on a real RabbitMQ."""

from collections.abc import AsyncIterator

import aio_pika
import pytest

from rabbit2docker.amqp import declare, stream_scan
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.stream import StreamReader
from rabbit2docker.amqp.stream_scan import StreamScan
from rabbit2docker.errors import TopologyMismatch
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.routing import (
    REQUEST_LOG_EXCHANGE,
    REQUEST_LOG_STREAM,
    Priority,
    request_key,
)
from tests.support.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker
COUNT = 3_000
"""More than RabbitMQ sends in advance."""


async def fill(amqp: AmqpSettings, count: int) -> None:
    async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
        channel = await connection.channel(publisher_confirms=False)
        underlay = await channel.get_underlay_channel()
        key = request_key("default", Priority.INTERACTIVE)
        for _ in range(count):
            await underlay.basic_publish(b"{}", exchange=REQUEST_LOG_EXCHANGE, routing_key=key)
        await channel.set_qos(prefetch_count=1)  # answered once everything before it has been routed


async def exhaust(batches: AsyncIterator[object]) -> None:
    async for _ in batches:
        pass


@pytest.mark.parametrize(
    ("declared_again", "reason"), [(True, "deleted and declared again"), (False, "topology declare")]
)
async def test_a_scan_of_a_stream_that_is_deleted_ends_with_the_reason(
    settings: Settings,
    amqp: AmqpSettings,
    rabbitmq: RabbitMQ,
    vhost: str,
    monkeypatch: pytest.MonkeyPatch,
    declared_again: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(stream_scan, "MISSING_SECONDS", 1.0)
    await declare.declare(settings)
    await fill(amqp, COUNT)
    connection = ManagedChannel("test", amqp)
    async with connected(connection, 180):
        last = await StreamReader(connection, REQUEST_LOG_STREAM).last()
        assert last is not None
        batches = StreamScan(connection, REQUEST_LOG_STREAM, "first", last=last.offset).batches()
        await anext(batches)
        path = f"queues/{vhost}/{REQUEST_LOG_STREAM}"
        rabbitmq.api("DELETE", path)
        if declared_again:
            stream = {"durable": True, "arguments": {"x-queue-type": "stream"}}
            rabbitmq.api("PUT", path, stream)
            await fill(amqp, 1)
        with pytest.raises(TopologyMismatch, match=reason):
            await exhaust(batches)
