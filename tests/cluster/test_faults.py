"""Faults of the API server that no test of builds meets: test_bad_days.py has those of nodes, engines and outages."""

import asyncio
import socket
from pathlib import Path

import pytest
from deploy.dev.machine import Unable

from tests.cluster.harness import faults, layout
from tests.cluster.harness.kubectl import kubectl
from tests.support.waiting import eventually_blocking

pytestmark = pytest.mark.disruptive


@pytest.fixture(autouse=True)
def ours() -> None:
    if not faults.are_possible():
        pytest.skip("the processes of this cluster are not ours")


def answers() -> bool:
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=3s")
    except Unable:
        return False
    return True


def test_a_frozen_api_server_takes_connections_and_answers_nothing() -> None:
    with faults.api_server_frozen():
        socket.create_connection((layout.HOST, layout.API_PORT), timeout=10).close()
        assert not answers()
    eventually_blocking(answers)


async def test_one_program_can_be_cut_off_from_the_api_server(tmp_path: Path) -> None:
    async with faults.api_server_proxy() as proxy:
        config = faults.kubeconfig_through(proxy.port, tmp_path / "kubeconfig")
        assert f"https://127.0.0.1:{proxy.port}" in config.read_text()
        assert await _through(config) == 0
        proxy.refuse(True)
        assert await _through(config) != 0
        assert await asyncio.to_thread(answers)


async def _through(config: Path) -> int | None:
    command = ("kubectl", f"--kubeconfig={config}", "get", "--raw", "/readyz", "--request-timeout=10s")
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()
