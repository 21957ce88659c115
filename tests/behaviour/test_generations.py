"""A request that comes again after its build was forgotten, with a real RabbitMQ and consumer process."""

import asyncio

import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.promises import captured, until_ended
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


async def test_a_request_repeated_after_its_record_was_deleted_is_a_build_with_an_end_of_its_own(
    make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings
) -> None:
    consumer = make_consumer(RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS="0.5")
    await asyncio.to_thread(consumer.start_and_wait)
    await ask(settings, a_request("one", fail=3))
    await until_ended(amqp, 1)
    await eventually(lambda: not consumer.records())
    await ask(settings, a_request("one", fail=3))

    async def two_ends() -> list[Event]:
        found = [event for event in await captured(amqp) if event.is_terminal]
        return found if len(found) == 2 else []

    first, second = await eventually(two_ends)
    assert first.subject == second.subject
    assert first.id != second.id
    assert consumer.stop() == 0
