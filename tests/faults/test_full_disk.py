"""A full disk under the state directory delays builds and loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Completed, Progress
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.disks import a_small_disk, fill
from tests.support.promises import captured, check_promises, lines_of, until_ended
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a separate disk of two megabytes."""
    with a_small_disk(tmp_path / "state", "2m") as state:
        yield state


async def test_a_request_that_meets_a_full_disk_is_built_once_there_is_space(
    small_disk: Path, make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    ballast = fill(small_disk)
    await ask(settings, a_request("one"))

    async def is_requeued() -> bool:
        events = await captured(amqp)
        return any(isinstance(e.data, Progress) and e.data.detail.retry_in_seconds for e in events)

    await eventually(is_requeued)
    ballast.unlink()
    await until_ended(amqp)
    assert isinstance(check_promises(await captured(amqp), ["one"])["one"], Completed)


async def test_a_disk_that_fills_during_a_build_loses_no_line(
    small_disk: Path, make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings
) -> None:
    consumer = make_consumer()
    consumer.start_and_wait()
    await ask(settings, a_request("one", lines=400, every=0.02))
    await eventually(lambda: "line 40 " in consumer.builder_log())
    ballast = fill(small_disk)
    # The last page of the log still takes some lines, so the log may grow a little more before it stops.
    sizes = [-1]

    def has_stopped() -> bool:
        sizes.append(len(consumer.builder_log()))
        return sizes[-1] == sizes[-2]

    await eventually(has_stopped)
    consumer.kill()
    consumer.start()
    ballast.unlink()
    await until_ended(amqp)
    events = await captured(amqp)
    assert isinstance(check_promises(events, ["one"])["one"], Completed)
    [log] = lines_of(events).values()
    assert [line for line in log if line.startswith("line ")] == [
        f"line {n} of the build" for n in range(400)
    ]
