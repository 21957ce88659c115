"""Replays by the command line, on consumers of several tenants and versions of repo2docker."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.consumer import TOOLS
from tests.support.programs import COMMAND

TENANTS = ("alpha", "beta", "gamma")


def with_repo2docker(directory: Path, version: str) -> dict[str, str]:
    """Return the variables of a consumer that sees this version of repo2docker installed."""
    site = directory / f"site-{version}"
    information = site / f"jupyter_repo2docker-{version}.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: jupyter-repo2docker\nVersion: {version}\n"
    )
    return {"PYTHONPATH": f"{site}:{TOOLS / 'python'}"}


def variables_of(amqp: AmqpSettings) -> dict[str, str]:
    """Return the environment of a command on the test's virtual host."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBIT2DOCKER_")}
    return {**inherited, "RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value()}


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def command(
    amqp: AmqpSettings, *arguments: str, stdin: str = "", **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [COMMAND, *arguments],
            env={**variables_of(amqp), **variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    result = await asyncio.to_thread(run)
    assert "Traceback" not in result.stderr, result.stderr
    return result


async def planned(amqp: AmqpSettings, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what a dry run would publish, and its summary."""
    result = await command(amqp, "replay", "--json", "--wait", "180", *arguments)
    assert result.returncode == 0, result.stderr
    *lines, summary = json_lines(result.stdout)
    return [line for line in lines if line["kind"] == "planned"], summary


async def killed_after(amqp: AmqpSettings, count: int, *arguments: str) -> str:
    """Start a replay, give it no chance once it has published so many requests, and return its id."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("replay", "--json", "--yes", "--wait", "180", *arguments),
        env=variables_of(amqp),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    replay, published = "", 0
    async for data in process.stdout:
        line = json.loads(data)
        replay = line.get("replay", replay)
        published += line["kind"] == "published"
        if published == count:
            process.kill()
            break
    await process.stdout.read()
    await process.wait()
    assert published == count
    return replay


async def ask_as(settings: Settings, tenant: str, *requests: BuildRequest) -> None:
    """Publish requests of a tenant, confirmed."""
    async with publishing(settings, wait_seconds=180) as publisher:
        requester = RequestPublisher(publisher, tenant)
        for request in requests:
            await requester.request(request)


def answers_to_replays(events: Iterable[Event]) -> dict[str, Accepted]:
    """Return the acceptances of replayed requests, by request id."""
    found = [event.data for event in events if isinstance(event.data, Accepted)]
    return {data.request_id: data for data in found if data.request_id.startswith("replay-")}
