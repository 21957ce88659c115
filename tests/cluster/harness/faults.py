"""Real faults on the cluster that is made here; other clusters are left alone, and these functions raise Unable.

Each one that takes something away has a context manager that brings it back, whatever happens in between.
"""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.dev.machine import Ledger, Started, Unable, locked, wait_until

from tests.cluster.harness import control, images, kubectl, layout, nodes, own, processes
from tests.cluster.harness.layout import API_PORT, HOST, LOCK
from tests.support.proxy import Proxy

_PATIENCE = 60.0


def are_possible() -> bool:
    """Return whether the cluster of this run is one whose processes are ours."""
    return os.environ.get("RABBIT2DOCKER_TEST_CLUSTER") == own.KIND


def api_server() -> Started:
    """Return the API server's process."""
    return _process(control.API_SERVER)


@contextmanager
def api_server_frozen() -> Iterator[None]:
    """Let the API server accept connections and never answer (SIGSTOP), until the end of the block."""
    with _frozen([api_server().pid]):
        yield


def kill_api_server() -> None:
    """Kill the API server: connections break, new ones are refused."""
    process = api_server()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive(), _PATIENCE)


def start_api_server() -> None:
    """Start the API server again and wait until it answers."""
    with locked(LOCK):
        control.start_one(control.API_SERVER, _ledger())
    own.wait_until_ready()


@contextmanager
def api_server_down() -> Iterator[None]:
    """Be without an API server until the end of the block."""
    kill_api_server()
    try:
        yield
    finally:
        start_api_server()


def kill_node(name: str) -> None:
    """Let a node die as in a power failure: kubelet, containerd and all processes of its pods, at once."""
    with locked(LOCK):
        nodes.kill(layout.node(name), _ledger())


def start_node(name: str) -> None:
    """Boot a node again and wait until it is ready. Its disk is as it was; its pods' processes are gone."""
    with locked(LOCK):
        nodes.start(layout.node(name), [images.provide()], _ledger())
    own.wait_until_ready()


@contextmanager
def node_down(name: str) -> Iterator[None]:
    """Be without a node until the end of the block."""
    kill_node(name)
    try:
        yield
    finally:
        start_node(name)


@contextmanager
def kubelet_frozen(name: str) -> Iterator[None]:
    """Let a node fall silent while its pods go on, as when its network fails, until the end of the block."""
    with _frozen([_process(f"{name}-kubelet").pid]):
        yield


def docker_daemons(node: str, namespace: str) -> list[int]:
    """Return the processes `dockerd` in a namespace's pods on a node."""
    pods = kubectl.get("pods", namespace=namespace)["items"]
    uids = [item["metadata"]["uid"] for item in pods if item["spec"].get("nodeName") == node]
    everything = nodes.find_processes(layout.node(node), _ledger())
    return sorted(p for p in everything if processes.name_of(p) == "dockerd" and processes.pod_of(p) in uids)


@contextmanager
def docker_api_frozen(node: str, namespace: str) -> Iterator[None]:
    """Let a docker-api accept connections and never answer, until the end of the block."""
    with _frozen(_some(docker_daemons(node, namespace), node)):
        yield


def kill_docker_api(node: str, namespace: str) -> None:
    """Kill the dockerd of a docker-api; the kubelet starts it again with the images that its volume keeps."""
    daemons = _some(docker_daemons(node, namespace), node)
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    gone = wait_until(lambda: not set(daemons) & set(docker_daemons(node, namespace)), _PATIENCE)
    assert gone


def api_server_proxy() -> Proxy:
    """Return a proxy before the API server; enter it, then use `kubeconfig_through(proxy.port, …)`."""
    _ledger()
    return Proxy(API_PORT, host=HOST)


def kubeconfig_through(port: int, file: Path) -> Path:
    """Write a kubeconfig for one program that reaches the API server by a port of loopback; return the file."""
    config = json.loads(kubectl.kubectl("config", "view", "--raw", "--flatten", "--output=json"))
    for item in config["clusters"]:
        item["cluster"]["server"] = f"https://127.0.0.1:{port}"
    return _write_private(file, config)


def _write_private(file: Path, config: dict[str, Any]) -> Path:
    file.touch(mode=0o600)
    file.write_text(json.dumps(config))
    return file


def _ledger() -> Ledger:
    if not are_possible():
        raise Unable("Faults need the cluster that `make test-cluster` makes of processes.")
    return layout.ledger()


def _process(name: str) -> Started:
    for item in _ledger().processes:
        if item.name == name and item.is_alive():
            return item
    raise Unable(f"{name} does not run.")


def _some(pids: list[int], node: str) -> list[int]:
    if not pids:
        raise Unable(f"No dockerd runs in a pod of {node}.")
    return pids


@contextmanager
def _frozen(pids: Iterable[int]) -> Iterator[None]:
    stopped = list(pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
