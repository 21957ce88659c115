"""Names, addresses and places of the cluster that is made here."""

from dataclasses import dataclass
from pathlib import Path

from deploy.dev.machine import RUN, SYSTEM_PATH, Ledger

STATE = RUN / "cluster"
ENV = STATE / "env"
BIN = STATE / "bin"
LOGS = STATE / "logs"
KEYS = STATE / "keys"
KUBECONFIG = STATE / "admin.kubeconfig"
LOCK = RUN / "cluster.lock"
"""Outside of STATE, which can be removed while the lock is held."""
TESTS_LOCK = RUN / "cluster-tests.lock"
"""Held by a run of tests on the cluster."""
TESTS_LOCKED = "RABBIT2DOCKER_TEST_CLUSTER_LOCKED"
"""Variable that is set while the command that started pytest holds that lock."""
SOURCES = Path(__file__).parent / "programs"

IMAGES = "rabbit2docker.test/"
PAUSE_IMAGE = f"{IMAGES}pause:1"

# The numbers are fixed, so there is one such cluster on a machine. Nodes need addresses that are not loopback.
NODES_NETWORK = "10.90.0.0/24"
HOST = "10.90.0.1"
PODS_NETWORK = "10.244.0.0/16"
SERVICES_NETWORK = "10.96.0.0/24"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
"""Nothing answers there: the services of tests have addresses, not names."""
BRIDGE = "r2dnodes"
ROUTING_TABLE = 9000
CGROUP = "rabbit2docker-cluster"

API_PORT = 6443
REGISTRY_PORT = 5000
PRIVATE_REGISTRY_PORT = 5001
GIT_PORT = 9418
AMQP_PORT = 5672
MANAGEMENT_PORT = 15672
API_URL = f"https://{HOST}:{API_PORT}"
REGISTRY = f"{HOST}:{REGISTRY_PORT}"
PRIVATE_REGISTRY = f"{HOST}:{PRIVATE_REGISTRY_PORT}"
"""A registry that nothing can be pulled from without an account."""
BASE_IMAGE = "base:1"
"""The image busybox once more, in the registry: what Dockerfiles of tests begin with."""

PATH = f"{BIN}:{SYSTEM_PATH}"
"""Only Debian's programs and ours: a containerd or an iptables of the machine's owner must not be met."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a mount namespace of its own in which containerd and kubelet run at their usual paths."""

    number: int

    @property
    def name(self) -> str:
        """Return what Kubernetes calls it; also the name of the process that holds its namespace."""
        return f"node-{self.number}"

    @property
    def directory(self) -> Path:
        """Return where the node's /run, /var/lib and /var/log are kept."""
        return STATE / self.name

    @property
    def address(self) -> str:
        """Return its address on the bridge."""
        return f"10.90.0.{self.number}"

    @property
    def pods_bridge(self) -> str:
        """Return the network device that its pods are plugged into."""
        return f"r2dpods{self.number}"

    @property
    def pods_network(self) -> str:
        """Return the addresses of its pods."""
        return f"10.244.{self.number}.0/24"

    @property
    def pods_gateway(self) -> str:
        """Return the address that its pods send everything to."""
        return f"10.244.{self.number}.1"

    @property
    def cgroup(self) -> str:
        """Return the control group of its pods, below the root of each hierarchy."""
        return f"{CGROUP}/{self.name}"


NODES = (Node(1), Node(2))


def node(name: str) -> Node:
    """Return the node of that name."""
    return next(item for item in NODES if item.name == name)


def ledger() -> Ledger:
    """Read what was started."""
    return Ledger(STATE / "started.json")
