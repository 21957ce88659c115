"""The examples in the README work as printed."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rabbit2docker import client
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.requests import BuildRequest
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import a_request

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
CONTRACT = (CHECKOUT / "docs/how-to/use-from-a-program.md").read_text(encoding="utf-8")


def scripts() -> list[str]:
    return [str(script) for script in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]


PLAIN, HUB = scripts()


async def output_of(script: str, named: str, instead: str, amqp: AmqpSettings) -> list[str]:
    """Run the script with a request that works here, and return its output."""
    assert named in script
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", script.replace(named, instead)],
        env={"RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value()},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "line 2 of the build" in result.stdout
    return result.stdout.splitlines()


@pytest.mark.broker
async def test_the_script_asks_for_a_build_and_prints_its_events(
    make_consumer: MakeConsumer, amqp: AmqpSettings
) -> None:
    await asyncio.to_thread(make_consumer().start_and_wait)
    spec = a_request("readme", lines=3).spec
    named = '{"provider": "gh", "spec": "binder-examples/requirements/HEAD",'
    lines = await output_of(PLAIN, named, f'{{"provider": "git", "spec": "{spec}",', amqp)
    kinds = [line.split(" ")[0].rpartition(".")[2] for line in lines]
    assert {"accepted", "progress", "log"} < set(kinds)
    assert kinds[-1] == "completed"


@pytest.mark.broker
async def test_a_hubs_own_code_asks_for_a_build_and_follows_it(
    make_consumer: MakeConsumer, amqp: AmqpSettings
) -> None:
    await asyncio.to_thread(make_consumer().start_and_wait)
    spec = a_request("readme", lines=3).spec
    named = 'provider="gh", spec="binder-examples/requirements/HEAD"'
    lines = await output_of(HUB, named, f'provider="git", spec="{spec}"', amqp)
    kinds = [line.split(" ")[0] for line in lines if " {" in line]
    assert {"accepted", "progress", "log"} < set(kinds)
    assert kinds[-1] == "completed"


def test_the_package_says_the_same_as_the_readme() -> None:
    assert HUB in (client.__doc__ or "")


@pytest.mark.parametrize("script", [PLAIN, HUB])
def test_the_scripts_have_about_ten_lines(script: str) -> None:
    assert len([line for line in script.splitlines() if line.strip()]) <= 12


def test_every_field_and_every_kind_is_named() -> None:
    for name in BuildRequest.model_fields:
        assert f"`{name}`" in CONTRACT, name
    for kind in Kind:
        assert f".{kind}`" in CONTRACT, kind


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len(README.split()) <= 900
