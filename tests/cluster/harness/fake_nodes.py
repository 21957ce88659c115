"""Nodes that exist only in the API server: kwok plays their kubelets, and pods on them cost nothing."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.dev.machine import locked

from tests.cluster.harness import layout, programs
from tests.cluster.harness.control import start_program
from tests.cluster.harness.kubectl import apply, get, kubectl
from tests.cluster.harness.layout import BIN, HOST, KUBECONFIG, LOCK

TAINT = "kwok.x-k8s.io/node"
"""Keeps other pods away from fake nodes: those that are to run there tolerate it and select the label of the same name."""
_ANNOTATION = "kwok.x-k8s.io/node"
_MANAGER = "kwok"


@contextmanager
def fake_nodes(count: int, *, pods: int = 110) -> Iterator[str]:
    """Have that many fake nodes; gives the value of the label `TAINT` that only they carry."""
    group = f"fake-{uuid.uuid4().hex[:8]}"
    _start_manager()
    apply(*(_node(f"{group}-{number}", group, pods) for number in range(count)))
    try:
        kubectl("wait", "--for=condition=Ready", "node", f"--selector={TAINT}={group}", "--timeout=60s")
        yield group
    finally:
        _remove(group)


def placement(group: str) -> dict[str, object]:
    """Return what a pod's spec needs to run on the fake nodes of a group."""
    return {"nodeSelector": {TAINT: group}, "tolerations": [{"key": TAINT, "operator": "Exists"}]}


def _start_manager() -> None:
    flags = (
        f"--kubeconfig={KUBECONFIG}",
        f"--config={programs.stages()}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={_ANNOTATION}=fake",
        "--server-address=127.0.0.1:10247",
        f"--node-ip={HOST}",
        "--cidr=10.245.0.0/16",
        "--node-lease-duration-seconds=40",
    )
    with locked(LOCK):
        start_program(_MANAGER, [BIN / "kwok", *flags], layout.ledger())


def _end_manager() -> None:
    with locked(LOCK):
        ledger = layout.ledger()
        for item in ledger.processes:
            if item.name == _MANAGER:
                item.end()
        ledger.remove(_MANAGER)


def _node(name: str, group: str, pods: int) -> dict[str, object]:
    size = {"cpu": "1k", "memory": "1Ti", "pods": str(pods)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {_ANNOTATION: "fake"},
            "labels": {TAINT: group, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "spec": {"taints": [{"key": TAINT, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"allocatable": size, "capacity": size},
    }


def _remove(group: str) -> None:
    """Remove nodes and pods; pods first, for without a kubelet nothing confirms their end."""
    nodes = {item["metadata"]["name"] for item in get("nodes", selector=f"{TAINT}={group}")["items"]}
    for pod in get("pods", all_namespaces=True)["items"]:
        if pod["spec"].get("nodeName") in nodes:
            now = ("--force", "--grace-period=0", "--ignore-not-found")
            kubectl("delete", "pod", pod["metadata"]["name"], *now, namespace=pod["metadata"]["namespace"])
    kubectl("delete", "node", f"--selector={TAINT}={group}")
    if not get("nodes", selector=TAINT)["items"]:
        _end_manager()
