"""The nodes: containerd and kubelet, each pair in a mount namespace that makes it believe in a machine of its own."""

import json
import os
import subprocess
from pathlib import Path

from deploy.dev.machine import Ledger, Started, Unable, run, timed, wait_until

from tests.cluster.harness import keys, processes
from tests.cluster.harness.control import start_program, write_if_different
from tests.cluster.harness.layout import (
    BIN,
    DNS_SERVICE,
    LOGS,
    PATH,
    PAUSE_IMAGE,
    PRIVATE_REGISTRY,
    REGISTRY,
    STATE,
    Node,
)

_RESOLV_CONF = STATE / "resolv.conf"
# Mounts made in here vanish with the last process; those that pods share have to propagate among the node's own.
_HOLD = """
mount --make-rshared /
for d in run lib log; do
    case $d in run) to=/run ;; *) to=/var/$d ;; esac
    mount --rbind "$0/$d" $to
done
touch /run/held
exec sleep infinity
"""


def start(node: Node, archives: list[Path], ledger: Ledger) -> None:
    """Start a node, or what does not run of it; it has every image before the kubelet asks for one."""
    if not find_holder(node, ledger):
        # What an earlier life left running would disturb the new one; and after a boot /run is empty.
        kill(node, ledger)
        processes.empty(node.directory / "run")
    processes.make_cgroups(node)
    _configure(node)
    _hold(node, ledger)
    start_in(node, "containerd", ["containerd", "--config", node.directory / "containerd.toml"], ledger)
    _wait_for_containerd(node, ledger)
    for archive in archives:
        mark = node.directory / f"imported-{archive.name}"
        if not mark.exists():
            with timed(f"Importing images into {node.name}"):
                import_archive(node, archive, ledger)
            mark.touch()
    flags = (
        f"--config={node.directory / 'kubelet.yaml'}",
        f"--kubeconfig={keys.kubeconfig(node.name)}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    )
    start_in(node, "kubelet", ["kubelet", *flags], ledger)


def start_in(node: Node, program: str, command: list[str | Path], ledger: Ledger) -> None:
    """Start a daemon of the node."""
    holder = _holder(node, ledger)
    inside = ["nsenter", "-t", str(holder.pid), "-m", BIN / command[0], *command[1:]]
    start_program(f"{node.name}-{program}", inside, ledger)


def kill(node: Node, ledger: Ledger) -> None:
    """Let a node die as if its power had failed: nothing of it says goodbye."""
    processes.kill_all(lambda: find_processes(node, ledger))
    for name in _names(node):
        ledger.remove(name)
    processes.remove_cgroups(node.cgroup)


def find_processes(node: Node, ledger: Ledger) -> set[int]:
    """Return all processes of a node; each daemon leads to the node's namespace, also where another was killed."""
    started = [item.pid for item in ledger.processes if item.name in _names(node) and item.is_alive()]
    return processes.of_node(node, started)


def _names(node: Node) -> tuple[str, ...]:
    return (f"{node.name}-kubelet", f"{node.name}-containerd", node.name)


def stop(node: Node, ledger: Ledger) -> None:
    """End a node: the kubelet is asked to, the rest has nothing left to report to."""
    for item in ledger.processes:
        if item.name == f"{node.name}-kubelet":
            item.end()
    kill(node, ledger)


def run_in(node: Node, command: list[str | Path], ledger: Ledger) -> subprocess.CompletedProcess[str]:
    """Run a command in the node; paths are the node's. Raises Unable."""
    holder = _holder(node, ledger)
    environment = {**os.environ, "PATH": PATH}
    return run(["nsenter", "-t", str(holder.pid), "-m", *command], env=environment)


def import_archive(node: Node, archive: Path, ledger: Ledger) -> None:
    """Import an OCI archive or what `docker save` wrote."""
    command = [BIN / "ctr", "-n", "k8s.io", "images", "import", "--local", archive.resolve()]
    run_in(node, [str(part) for part in command], ledger)


def find_holder(node: Node, ledger: Ledger) -> Started | None:
    """Return the process that holds the node's namespace."""
    return next((item for item in ledger.processes if item.name == node.name and item.is_alive()), None)


def _holder(node: Node, ledger: Ledger) -> Started:
    holder = find_holder(node, ledger)
    if holder is None:
        raise Unable(f"{node.name} does not run.")
    return holder


def _hold(node: Node, ledger: Ledger) -> None:
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", _HOLD, str(node.directory)]
    start_program(node.name, [*command], ledger)
    held = node.directory / "run/held"
    if not wait_until(held.exists, 20) or not find_holder(node, ledger):
        raise Unable(f"{node.name} did not start:\n{(LOGS / f'{node.name}.log').read_text()[-1000:]}")


def _wait_for_containerd(node: Node, ledger: Ledger) -> None:
    def answers() -> bool:
        try:
            run_in(node, [BIN / "ctr", "version"], ledger)
        except Unable:
            return False
        return True

    if not wait_until(answers, 60):
        log = LOGS / f"{node.name}-containerd.log"
        raise Unable(f"containerd of {node.name} did not start:\n{log.read_text()[-2000:]}")


def _configure(node: Node) -> None:
    private = f"registries/{PRIVATE_REGISTRY}"
    for name in ("run/cni/net.d", "lib", "log", "registries/_default", private):
        (node.directory / name).mkdir(parents=True, exist_ok=True)
    _RESOLV_CONF.touch()
    files = {
        "run/cni/net.d/10-rabbit2docker.conflist": json.dumps(_cni(node), indent=2),
        # Whatever an image is called, only the registries of this machine are asked for it.
        "registries/_default/hosts.toml": f'server = "http://{REGISTRY}"\n',
        f"{private}/hosts.toml": f'server = "http://{PRIVATE_REGISTRY}"\n',
        "containerd.toml": _containerd(node),
        "kubelet.yaml": json.dumps(_kubelet(node), indent=2),
    }
    for name, text in files.items():
        write_if_different(node.directory / name, text)


def _cni(node: Node) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": node.pods_network}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": node.pods_bridge,
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": addresses,
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "rabbit2docker", "plugins": [bridge, port_map]}


def _containerd(node: Node) -> str:
    # Root in a container or a small virtual machine may not lower scores of the out-of-memory killer.
    return f"""version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{node.directory / "registries"}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/run/cni/net.d"
"""


def _kubelet(node: Node) -> dict[str, object]:
    few = "1%"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "healthzBindAddress": node.address,
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "nodeLeaseDurationSeconds": 12,  # renewed each three seconds; it has to fit several times into NODE_GRACE
        "failSwapOn": False,
        "resolvConf": str(_RESOLV_CONF),
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(keys.AUTHORITY)},
        },
        "authorization": {"mode": "Webhook"},
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": few,
            "nodefs.inodesFree": few,
            "imagefs.available": few,
            "imagefs.inodesFree": few,
        },
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        # The default is below /usr/libexec of the machine itself.
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
    }
