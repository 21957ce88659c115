"""The end of an installation: each build ends once, its requesters learn of it, and nothing is left."""

from pathlib import Path

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.consumer.executors.attempt_names import next_attempt_name
from rabbit2docker.consumer.executors.base import AttemptStatus, StoredOutcome
from rabbit2docker.consumer.following.outcome import RETRY
from rabbit2docker.consumer.removal import BY, Removal
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Cancelled, Completed
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import Consumer, a_request
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.ports import free_port
from tests.support.promises import check_promises, ends_of, until_ended
from tests.support.records import a_spec
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
async def left_behind(make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings) -> Consumer:
    """A consumer that was killed with two builds under way, of which one has ended since."""
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(
        settings, a_request("long", lines=100_000, every=0.05), a_request("short", lines=40, every=0.05)
    )
    await eventually(lambda: consumer.builder_log().count("line 3 ") == 2)
    consumer.kill()
    await eventually(lambda: len(list(results(consumer))) == 1)
    return consumer


def results(consumer: Consumer) -> list[Path]:
    return list((consumer.directory / "state" / "attempts").glob("*/result.json"))


async def test_builds_that_no_consumer_follows_are_ended_reported_and_removed(
    left_behind: Consumer, amqp: AmqpSettings
) -> None:
    """Without RabbitMQ nothing is ended, as requesters would not learn of it."""
    nowhere = f"amqp://127.0.0.1:{free_port()}"
    result = left_behind.run_command("end-builds", "--seconds=2", RABBIT2DOCKER_AMQP__URL=nowhere)
    assert result.returncode == 1
    assert result.stderr.count("No end reported: ") == 2
    assert "run `rabbit2docker end-builds` again" in result.stderr
    assert len(left_behind.records()) == 2
    assert len(results(left_behind)) == 1

    result = left_behind.run_command("end-builds")

    assert result.returncode == 0, result.stderr
    assert "Builds ended and reported: 2" in result.stdout
    ends = check_promises(await until_ended(amqp, 2), ["long", "short"])
    assert isinstance(ends["short"], Completed)
    assert isinstance(ends["long"], Cancelled)
    assert ends["long"].by == BY
    assert left_behind.records() == []


async def test_nothing_is_asked_of_rabbitmq_when_no_build_is_under_way(settings: Settings) -> None:
    unreachable = AmqpSettings.model_validate({"url": f"amqp://127.0.0.1:{free_port()}"})

    async with MemoryExecutor(MemoryWorld()) as executor:
        removal = Removal(executor, settings.model_copy(update={"amqp": unreachable}))
        report = await removal.run(seconds=60)

    assert report.is_complete


@pytest.mark.parametrize("has_next", [False, True])
async def test_a_build_between_two_attempts_is_ended_without_another_one(
    settings: Settings, amqp: AmqpSettings, has_next: bool
) -> None:
    await declare.declare(settings)
    world = MemoryWorld()
    async with MemoryExecutor(world) as executor:
        first = a_spec("between")
        await executor.create(first, AttemptStatus(requests={"between": "digest"}))
        world.end(first.name, "docker_unavailable")
        outcome = StoredOutcome(kind=RETRY, data={"reason": "docker_unavailable", "message": "It died."})
        await executor.update_status(
            first.name, lambda status: status.model_copy(update={"outcome": outcome})
        )
        if has_next:
            name = next_attempt_name(first.name, 2)
            await executor.create(
                first.model_copy(update={"name": name, "attempt": 2}),
                AttemptStatus(requests={"between": "d"}),
            )

        report = await Removal(executor, settings).run(seconds=60)

    assert report.is_complete
    assert not world.records
    [end] = ends_of(await until_ended(amqp, 1)).values()
    assert isinstance(end.data, Cancelled)
    assert end.data.attempt == 1 + has_next
