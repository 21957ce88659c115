"""The operator's rules on a real RabbitMQ: a request waits at a limit, and a changed file needs no restart."""

import asyncio
from pathlib import Path

import pytest
import yaml

from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Progress, Rejected
from rabbit2docker_schemas.ids import build_id_of
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.promises import captured, ends_of, until_answered
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


async def test_a_request_waits_at_a_limit_and_goes_on_when_the_operator_raises_it(
    make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"policy": {"tenant_builds": 1}, "topology": {"retry_pauses": [1, 2, 3]}}))
    consumer = make_consumer(RABBIT2DOCKER_CONFIG=str(file))
    await asyncio.to_thread(consumer.start_and_wait)
    await ask(settings, a_request("one", lines=20_000, every=0.05))
    await until_answered(amqp)
    await ask(settings, a_request("two"))

    async def waits() -> list[Progress]:
        progress = [event.data for event in await captured(amqp) if isinstance(event.data, Progress)]
        return [data for data in progress if data.build_id == build_id_of("default", "two")]

    [waiting] = await eventually(waits)
    assert waiting.message.startswith("The tenant default has 1 build running, and the limit is 1.")
    assert (waiting.phase, waiting.attempt) == ("waiting", 0)
    file.write_text(
        yaml.safe_dump(
            {"policy": {"tenant_builds": 2}, "providers": {"banned_specs": {"git": [".*/three/"]}}}
        )
    )
    await until_answered(amqp, 2)
    await ask(settings, a_request("three"))
    found = await until_answered(amqp, 3)
    answers = [event.data for event in found if isinstance(event.data, Accepted | Rejected)]
    assert {(type(answer), answer.request_id) for answer in answers} == {
        (Accepted, "one"),
        (Accepted, "two"),
        (Rejected, "three"),
    }
    assert build_id_of("default", "one") not in ends_of(found)
    [rejected] = [answer for answer in answers if isinstance(answer, Rejected)]
    assert rejected.reason == "not_allowed"
    assert 'rabbit2docker_requests_limited_total{limit="tenant_builds"}' in consumer.get("/metrics")[1]
