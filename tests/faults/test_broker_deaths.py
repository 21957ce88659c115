"""Outages of RabbitMQ lose no request and no log line."""

import asyncio

import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Completed
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.promises import captured, check_promises, lines_of, until_ended
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


MORTAL = pytest.mark.xdist_group("mortal-rabbitmq")


@MORTAL
async def test_rabbitmq_killed_during_builds_loses_no_request_and_no_line(
    make_consumer: MakeConsumer, mortal_rabbitmq: RabbitMQ
) -> None:
    amqp = mortal_rabbitmq.settings(mortal_rabbitmq.new_vhost())
    consumer = make_consumer(amqp_settings=amqp)
    consumer.start_and_wait()
    names = [f"build-{n}" for n in range(5)]
    await ask(Settings(amqp=amqp), *[a_request(name, lines=300, every=0.02) for name in names])
    await eventually(lambda: len(consumer.records()) == len(names))
    await asyncio.to_thread(mortal_rabbitmq.kill)
    await eventually(lambda: not consumer.is_ready())
    assert not consumer.has_ended()
    await asyncio.to_thread(mortal_rabbitmq.start_again)
    events = await until_ended(amqp, len(names))
    ends = check_promises(events, names)
    assert all(isinstance(end, Completed) for end in ends.values())
    assert all(
        len([line for line in log if line.startswith("line ")]) == 300 for log in lines_of(events).values()
    )


async def test_cut_and_black_holed_connections_lose_no_line(
    make_consumer: MakeConsumer, rabbitmq: RabbitMQ, vhost: str, amqp: AmqpSettings, settings: Settings
) -> None:
    async with Proxy(rabbitmq.port) as proxy:
        through = AmqpSettings.model_validate(
            {**amqp.model_dump(), "url": rabbitmq.url(vhost, port=proxy.port), "publish_timeout": 2}
        )
        consumer = make_consumer(amqp_settings=through, RABBIT2DOCKER_AMQP__PUBLISH_TIMEOUT="2")
        await asyncio.to_thread(consumer.start_and_wait)
        names = ["one", "two"]
        await ask(settings, *[a_request(name, lines=600, every=0.02) for name in names])
        for _ in range(3):
            await asyncio.sleep(1)
            proxy.cut()
        proxy.black_hole()
        await eventually(lambda: asyncio.to_thread(lambda: not consumer.is_ready()))
        proxy.cut()
        proxy.flow()
        events = await until_ended(amqp, len(names))
    check_promises(events, names)
    assert all(
        len([line for line in log if line.startswith("line ")]) == 600 for log in lines_of(events).values()
    )


async def test_the_consumer_waits_when_rabbitmq_is_away_at_its_start(
    make_consumer: MakeConsumer, rabbitmq: RabbitMQ, vhost: str, amqp: AmqpSettings, settings: Settings
) -> None:
    async with Proxy(rabbitmq.port) as proxy:
        proxy.refuse(True)
        through = AmqpSettings.model_validate(
            {**amqp.model_dump(), "url": rabbitmq.url(vhost, port=proxy.port)}
        )
        consumer = make_consumer(amqp_settings=through)
        consumer.start()
        await eventually(lambda: any("RabbitMQ unavailable" in line["event"] for line in consumer.lines()))
        assert not consumer.has_ended()
        assert (await asyncio.to_thread(consumer.get, "/health/live"))[0] == 200
        assert (await asyncio.to_thread(consumer.get, "/health/ready"))[0] == 503
        proxy.refuse(False)
        await eventually(lambda: asyncio.to_thread(consumer.is_ready))
        await ask(settings, a_request("one"))
        await until_ended(amqp, 1)
        assert await asyncio.to_thread(consumer.stop) == 0


async def test_a_wrong_password_is_reported_and_ends_the_consumer(
    make_consumer: MakeConsumer, rabbitmq: RabbitMQ, vhost: str, amqp: AmqpSettings
) -> None:
    wrong = AmqpSettings.model_validate({"url": rabbitmq.url(vhost, user="guest:secret-word")})
    consumer = make_consumer(amqp_settings=wrong)
    consumer.start()
    await eventually(consumer.has_ended)
    assert consumer.process is not None
    assert consumer.process.returncode == 4
    output = consumer.log.read_text()
    assert "check user and password" in output
    assert "secret-word" not in output
    assert "Traceback" not in output


@MORTAL
async def test_a_memory_alarm_holds_events_back_and_loses_none(
    make_consumer: MakeConsumer, mortal_rabbitmq: RabbitMQ
) -> None:
    amqp = mortal_rabbitmq.settings(mortal_rabbitmq.new_vhost())
    consumer = make_consumer(amqp_settings=amqp)
    consumer.start_and_wait()
    await ask(Settings(amqp=amqp), a_request("one", lines=200, every=0.02))
    await eventually(consumer.records)
    with mortal_rabbitmq.memory_alarm():
        await asyncio.sleep(6)
        assert not consumer.has_ended()
    await until_ended(amqp, 1)
    check_promises(await captured(amqp), ["one"])
