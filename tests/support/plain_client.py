"""Plain pika, as any client of another project: without reconnecting, screening or retrying."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

logging.getLogger("pika").setLevel(logging.CRITICAL)  # it reports each refusal


@contextmanager
def connected(url: str) -> Iterator[pika.BlockingConnection]:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0  # it answers none while the test does other things
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def publish(
    channel: BlockingChannel, exchange: str, key: str, body: bytes = b"{}", **properties: Any
) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties))
