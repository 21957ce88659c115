"""The cluster that is put together here: two nodes of plain processes on this machine."""

import json
import shutil
from pathlib import Path

from deploy.dev.machine import Unable, is_debian_root, need_packages, say, timed, wait_until

from tests.cluster.harness import (
    beside,
    control,
    images,
    keda,
    keys,
    layout,
    network,
    nodes,
    policies,
    processes,
    programs,
)
from tests.cluster.harness.layout import (
    BASE_IMAGE,
    BIN,
    IMAGES,
    KUBECONFIG,
    LOGS,
    NODES,
    PRIVATE_REGISTRY,
    REGISTRY,
    STATE,
)

KIND = "own"
_READY = 180.0
_GOODBYE = 5.0  # the API server would wait much longer for those that watch it
_PACKAGES = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "nft": "nftables",
    "ip": "iproute2",
    "openssl": "openssl",
    "unshare": "util-linux",
    "mount": "mount",
    "git": "git",
    "debootstrap": "debootstrap",
}


def prepare() -> None:
    """Compile the programs and make the images, as far as the cache lacks them; raises Unable."""
    if not is_debian_root():
        raise Unable(
            "No cluster can be had here: set KUBECONFIG to one, start a Docker engine that can pull images, "
            "or run this as root on Debian, where a cluster is made."
        )
    need_packages(_PACKAGES, "A Kubernetes cluster")
    programs.provide()
    images.provide()


def up() -> dict[str, str]:
    """Start what does not run and return the variables that say where everything is; raises Unable."""
    network.refuse_if_taken()
    prepare()
    archive = images.provide()
    for directory in (STATE, LOGS):
        directory.mkdir(parents=True, exist_ok=True)
    ledger = layout.ledger()
    network.up()
    keys.provide()
    control.start(ledger)
    for node in NODES:
        nodes.start(node, [archive], ledger)
    beside.start(ledger)
    _push_base()
    with timed("Waiting for the nodes"):
        wait_until_ready()
    return variables()


def variables() -> dict[str, str]:
    """Return where everything is."""
    return {
        "KUBECONFIG": str(KUBECONFIG),
        "RABBIT2DOCKER_TEST_CLUSTER": KIND,
        "RABBIT2DOCKER_TEST_CLUSTER_REGISTRY": REGISTRY,
        "RABBIT2DOCKER_TEST_CLUSTER_PRIVATE_REGISTRY": PRIVATE_REGISTRY,
        "RABBIT2DOCKER_TEST_CLUSTER_BASE_IMAGE": f"{REGISTRY}/{BASE_IMAGE}",
        "RABBIT2DOCKER_TEST_CLUSTER_GIT_ROOT": str(beside.GIT_ROOT),
        "RABBIT2DOCKER_TEST_CLUSTER_GIT_URL": beside.git_url(),
        "RABBIT2DOCKER_TEST_CLUSTER_AMQP_URL": beside.AMQP_URL,
        "RABBIT2DOCKER_TEST_CLUSTER_MANAGEMENT_URL": beside.MANAGEMENT_URL,
        "RABBIT2DOCKER_TEST_CLUSTER_IMAGES": IMAGES,
        "RABBIT2DOCKER_TEST_CLUSTER_BIN": str(BIN),
    }


def wait_until_ready() -> None:
    """Wait until the API server answers, all nodes are ready, and pods can be made; raises Unable."""
    if not wait_until(_is_ready, _READY):
        raise Unable(f"The cluster did not become ready. The logs are in {LOGS}.\n{_nodes_text()}")


def down(*, wipe: bool = False) -> None:
    """End all of it and undo what was changed on the machine, also after a crash; harmless when there is nothing."""
    if network.other_owner():
        return  # nodes and control groups of that name are another checkout's
    ledger = layout.ledger()
    for node in NODES:
        if nodes.find_holder(node, ledger):
            say(f"Ending {node.name}")
        nodes.stop(node, ledger)
    beside.stop(ledger)
    keda.stop(ledger)
    for name in ("kwok", policies.NAME, *control.NAMES):
        for item in ledger.processes:
            if item.name == name:
                if item.is_alive():
                    say(f"Ending {name}")
                item.end(_GOODBYE)
    processes.remove_cgroups()
    network.down()
    policies.forget()
    ledger.path.unlink(missing_ok=True)
    layout.ENV.unlink(missing_ok=True)
    if wipe:
        shutil.rmtree(STATE, ignore_errors=True)


def load(archive: Path) -> None:
    """Import the images of an archive into every node."""
    ledger = layout.ledger()
    for node in NODES:
        nodes.import_archive(node, archive, ledger)


def _push_base() -> None:
    """Push the base image into the registry, from the node that has it."""
    mark = STATE / "registry" / "base-pushed"
    if not mark.exists():
        push("busybox:1", f"{REGISTRY}/{BASE_IMAGE}")
        mark.touch()


def push(image: str, name: str, *, login: str = "") -> None:
    """Push an image that the first node has under the name that it is to have in a registry; raises Unable."""
    ledger, user = layout.ledger(), ("--user", login) if login else ()
    ctr: list[str | Path] = [BIN / "ctr", "-n", "k8s.io", "images"]
    nodes.run_in(NODES[0], [*ctr, "tag", "--force", f"{IMAGES}{image}", name], ledger)
    nodes.run_in(NODES[0], [*ctr, "push", "--plain-http", *user, name], ledger)


def _is_ready() -> bool:
    try:
        control.kubectl("get", "--raw", "/readyz")
        found = json.loads(control.kubectl("get", "nodes", "--output=json"))["items"]
        control.kubectl("get", "serviceaccount", "default", "--namespace=default")
    except Unable:
        return False
    return {node.name for node in NODES} <= {
        item["metadata"]["name"] for item in found if _node_is_ready(item)
    }


def _node_is_ready(item: dict[str, object]) -> bool:
    status = item["status"]
    assert isinstance(status, dict)
    return any((c["type"], c["status"]) == ("Ready", "True") for c in status.get("conditions", []))


def _nodes_text() -> str:
    try:
        return control.kubectl("describe", "nodes")[-2000:]
    except Unable as problem:
        return str(problem)
