"""A real JupyterHub behind its real proxy."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from rabbit2docker.settings import AmqpSettings
from tests.faults.conftest import make_consumer
from tests.support.hub_service import Viewer
from tests.support.ports import free_port
from tests.support.waiting import eventually

__all__ = ["make_consumer"]

NODE = Path(os.environ.get("RABBIT2DOCKER_TEST_NODE_MODULES", ".run/node/node_modules")).resolve()


@dataclass(frozen=True, slots=True)
class Hub:
    address: str
    operator_token: str
    log: Path

    async def token_of(self, user: str) -> str:
        """Return a new token of a user, who is made if need be, as jupyterhub-fancy-profiles asks for one."""
        headers = {"Authorization": f"token {self.operator_token}"}
        async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
            url = f"{self.address}hub/api/users/{user}"
            async with session.post(url, raise_for_status=False) as answer:
                assert answer.status in (201, 409), await answer.text()
            async with session.post(f"{url}/tokens", json={"expires_in": 3600}) as answer:
                return str((await answer.json())["token"])

    def viewer(self, token: str = "") -> Viewer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return Viewer(f"{self.address}services/binder/", headers)


def start(
    hub: Hub, amqp: AmqpSettings, config: str, variables: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    proxy = shutil.which("configurable-http-proxy", path=f"{NODE / '.bin'}:{os.environ['PATH']}")
    assert proxy, "configurable-http-proxy is needed: `make test-hub` gets it from npm"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RABBIT2DOCKER_")},
        "RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value(),
        "HUB_DIRECTORY": str(hub.log.parent),
        "HUB_URL": hub.address,
        "HUB_PORT": hub.address.rpartition(":")[2].strip("/"),
        "HUB_API_PORT": str(free_port()),
        "HUB_PROXY_API_PORT": str(free_port()),
        "HUB_SERVICE_PORT": str(free_port()),
        "HUB_PROXY": proxy,
        "HUB_OPERATOR_TOKEN": hub.operator_token,
        "HUB_CHECK_TOKEN": hub.operator_token,
        **variables,
    }
    with hub.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "--config", Path(__file__).with_name(config)],
            cwd=hub.log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@asynccontextmanager
async def running(
    directory: Path, amqp: AmqpSettings, config: str = "jupyterhub_config.py", **variables: str
) -> AsyncIterator[Hub]:
    """Run one, with `rabbit2docker hub` as a service that it manages."""
    directory.mkdir()
    hub = Hub(f"http://127.0.0.1:{free_port()}/", secrets.token_hex(16), directory / "log")
    process = start(hub, amqp, config, variables)
    try:

        async def is_ready() -> bool:
            assert process.poll() is None, hub.log.read_text()
            try:
                return (await hub.viewer().raw("health"))[0] == 200
            except aiohttp.ClientError:
                return False

        await eventually(is_ready, seconds=90)
        yield hub
    finally:
        await asyncio.to_thread(end, process)


@pytest.fixture
async def hub(tmp_path: Path, amqp: AmqpSettings) -> AsyncIterator[Hub]:
    """Run one as the README has it."""
    async with running(tmp_path / "jupyterhub", amqp) as hub:
        yield hub
