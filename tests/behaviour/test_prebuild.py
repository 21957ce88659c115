"""`prebuild` and `images` on a real RabbitMQ."""

import asyncio
from pathlib import Path

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.batches import batch_of
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import Consumer, a_request
from tests.support.replays import command, json_lines

pytestmark = pytest.mark.broker


@pytest.fixture
async def consumer(make_consumer: MakeConsumer) -> Consumer:
    consumer = make_consumer()
    await asyncio.to_thread(consumer.start_and_wait)
    return consumer


class TestPrebuild:
    async def test_a_list_is_built_and_each_line_has_its_end_in_the_report(
        self, consumer: Consumer, amqp: AmqpSettings, tmp_path: Path
    ) -> None:
        good = [f"git {a_request(name).spec}" for name in ("one", "two")]
        file = tmp_path / "workshop.txt"
        file.write_text("\n".join(["# a workshop", *good, "no repository", good[0]]))
        result = await command(amqp, "prebuild", str(file), "--deadline", "1h", "--json", "--wait", "180")
        assert result.returncode == 1
        assert "Line 4 is left out: " in result.stderr
        one, two, bad = json_lines(result.stdout)
        assert (one["lines"], one["state"]) == ([2, 5], "completed")
        assert one["digest"].startswith("sha256:")
        assert (two["lines"], two["state"]) == ([3], "completed")
        batches = {batch_of(each["request_id"]) for each in (one, two)}
        assert {batch.size for batch in batches if batch} == {2}
        assert len(batches) == 1
        assert (bad["lines"], bad["state"]) == ([4], "bad line")
        listed = await command(amqp, "images", "--format", "csv", "--wait", "180")
        assert listed.stdout.count("sha256:") == 2

    async def test_at_the_deadline_the_rest_is_said_to_have_no_end(
        self, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await declare.declare(settings)
        result = await command(
            amqp,
            *("prebuild", "-", "--deadline", "2s", "--wait", "180"),
            stdin=f"git {a_request('one').spec}\n",
        )
        assert result.returncode == 1
        assert "The deadline has passed." in result.stderr
        assert "1 not ended." in result.stdout
