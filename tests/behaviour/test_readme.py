"""What the README promises to programmers holds for one who knows nothing else."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.requests import BuildRequest
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import a_request

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def the_script() -> str:
    [script] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(script)


@pytest.mark.broker
@pytest.mark.timeout(120)
async def test_the_script_asks_for_a_build_and_prints_its_events(
    make_consumer: MakeConsumer, amqp: AmqpSettings
) -> None:
    await asyncio.to_thread(make_consumer().start_and_wait)
    request = a_request("readme", lines=3)
    named = '{"provider": "gh", "spec": "binder-examples/requirements/HEAD",'
    assert named in the_script()
    script = the_script().replace(named, f'{{"provider": "git", "spec": "{request.spec}",')
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", script],
        env={"RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value()},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kinds = [line.split(" ")[0].rpartition(".")[2] for line in result.stdout.splitlines()]
    assert {"accepted", "progress", "log"} < set(kinds)
    assert kinds[-1] == "completed"
    assert "line 2 of the build" in result.stdout


def test_the_script_has_about_ten_lines() -> None:
    assert len([line for line in the_script().splitlines() if line.strip()]) <= 12


def test_every_field_and_every_kind_is_named() -> None:
    for name in BuildRequest.model_fields:
        assert f"`{name}`" in README, name
    for kind in Kind:
        assert f".{kind}`" in README, kind
