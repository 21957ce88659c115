"""Faults happen, are noticed by Kubernetes, and leave a cluster behind that works."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.dev.machine import Unable

from tests.cluster.harness import faults, layout, processes
from tests.cluster.harness.kubectl import apply, get, kubectl, phase
from tests.cluster.test_cluster import IMAGES, has_ended, pod
from tests.support.waiting import eventually_blocking

pytestmark = pytest.mark.disruptive

NODE = "node-2"


@pytest.fixture(autouse=True)
def ours() -> None:
    if not faults.are_possible():
        pytest.skip("the processes of this cluster are not ours")


@pytest.fixture
def sleeper(namespace: str) -> Iterator[str]:
    """A pod that sleeps on the second node."""
    command = ("sh", "-c", "trap exit TERM; sleep 3600 & wait")
    apply(pod("sleeper", f"{IMAGES}busybox:1", *command, nodeName=NODE), namespace=namespace)
    eventually_blocking(lambda: phase("sleeper", namespace) == "Running")
    yield namespace
    kubectl("delete", "pod", "sleeper", "--now", "--ignore-not-found", namespace=namespace)


def is_ready(node: str) -> bool:
    conditions = get("node", node)["status"]["conditions"]
    return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)


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


def test_pods_keep_running_without_an_api_server(sleeper: str) -> None:
    with faults.api_server_down():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((layout.HOST, layout.API_PORT), timeout=10)
        assert not answers()
    assert phase("sleeper", sleeper) == "Running"
    restarts = get("pod", "sleeper", namespace=sleeper)["status"]["containerStatuses"][0]["restartCount"]
    assert restarts == 0


def test_a_dead_node_is_noticed_its_pods_leave_and_it_comes_back(sleeper: str) -> None:
    with faults.node_down(NODE):
        eventually_blocking(lambda: not is_ready(NODE), seconds=120)
        eventually_blocking(
            lambda: "deletionTimestamp" in get("pod", "sleeper", namespace=sleeper)["metadata"], seconds=120
        )
    assert is_ready(NODE)
    eventually_blocking(lambda: not get("pods", namespace=sleeper)["items"], seconds=120)
    apply(pod("next", f"{IMAGES}busybox:1", "true", nodeName=NODE), namespace=sleeper)
    eventually_blocking(lambda: has_ended("next", sleeper))
    assert phase("next", sleeper) == "Succeeded"


def test_the_pods_of_a_silent_node_keep_running(sleeper: str) -> None:
    uid = get("pod", "sleeper", namespace=sleeper)["metadata"]["uid"]
    with faults.kubelet_frozen(NODE):
        eventually_blocking(lambda: not is_ready(NODE), seconds=120)
        assert any(processes.pod_of(pid) == uid for pid in processes.all_processes())
    eventually_blocking(lambda: is_ready(NODE), seconds=120)


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
