"""Fixtures for tests with a consumer process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.consumer import Consumer

MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def make_consumer(tmp_path: Path, amqp: AmqpSettings) -> Iterator[MakeConsumer]:
    """Return a factory of consumers on the test's virtual host, which are removed afterwards."""
    made: list[Consumer] = []

    def make(*, amqp_settings: AmqpSettings | None = None, real: bool = False, **variables: str) -> Consumer:
        consumer = Consumer(tmp_path, amqp_settings or amqp, real=real, **variables)
        consumer.fork = not real
        made.append(consumer)
        return consumer

    yield make
    for consumer in made:
        consumer.end_everything()


async def ask(settings: Settings, *requests: BuildRequest) -> None:
    """Publish requests, confirmed."""
    async with publishing(settings, wait_seconds=180) as publisher:
        requester = RequestPublisher(publisher, settings.tenant)
        for request in requests:
            await requester.request(request)
