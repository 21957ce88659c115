"""A RabbitMQ of three nodes on this machine, with ports of their own on loopback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from tests.support.containers import Container
from tests.support.ports import free_port
from tests.support.rabbitmq import IMAGE, Management
from tests.support.waiting import eventually_blocking

NODES = 3
START_SECONDS = 240
_COOKIE = "rabbit2docker-tests"
_CONFIGURATION = """
loopback_users = none
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.target_cluster_size_hint = 3
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one node."""

    amqp: int
    management: int
    distribution: int


class Node(Management):
    """One node of the cluster."""

    def __init__(self, name: str, ports: Ports, container: Container) -> None:
        self.name, self.ports, self.container = name, ports, container
        super().__init__(f"http://guest:guest@127.0.0.1:{ports.management}/")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports.amqp}"

    def url(self, vhost: str) -> str:
        return f"amqp://guest:guest@{self.address}/{quote(vhost, safe='')}"

    def running_nodes(self) -> int:
        """Return how many nodes of the cluster this one sees running; 0 if it does not answer itself."""
        try:
            return sum(node["running"] for node in self.api("GET", "nodes"))
        except OSError:
            return 0

    def version(self) -> str:
        """Return the version of RabbitMQ, such as 4.0.5."""
        return str(self.api("GET", "overview")["rabbitmq_version"])

    def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression in the node, also while RabbitMQ pauses in it."""
        control = ["rabbitmqctl", "-n", self.name, "--erlang-cookie", _COOKIE]
        code, output = self.container.execute(*control, "eval", expression)
        assert code == 0, output
        return output.decode()

    def kill(self) -> None:
        self.container.kill()

    def start_again(self) -> None:
        self.container.restart()


class Cluster:
    """Three nodes. The name service of Erlang runs beside them, as it must outlive each."""

    def __init__(self) -> None:
        self.containers: list[Container] = []
        self.nodes: list[Node] = []

    def start(self) -> None:
        """Start all nodes and wait until each sees the others."""
        epmd = free_port()
        name_service = ["epmd", "-address", "127.0.0.1", "-port", str(epmd)]
        self.containers.append(
            Container.start(IMAGE, [], command=" ".join(name_service), on_host_network=True)
        )
        ports = {f"r{n}@localhost": Ports(free_port(), free_port(), free_port()) for n in range(1, NODES + 1)}
        peers = "".join(
            f"cluster_formation.classic_config.nodes.{n} = {name}\n" for n, name in enumerate(ports, start=1)
        )
        for name, own in ports.items():
            configuration = _CONFIGURATION.format(amqp=own.amqp, management=own.management) + peers
            container = Container.start(
                IMAGE,
                [],
                environment={
                    "RABBITMQ_NODENAME": name,
                    "RABBITMQ_DIST_PORT": str(own.distribution),
                    "ERL_EPMD_PORT": str(epmd),
                    "RABBITMQ_CONFIG_FILE": "/tests/rabbitmq.conf",
                    "RABBITMQ_ENABLED_PLUGINS_FILE": "/tests/enabled_plugins",
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-setcookie {_COOKIE}",
                },
                files={
                    "/tests/rabbitmq.conf": configuration.encode(),
                    "/tests/enabled_plugins": b"[rabbitmq_management].\n",
                },
                on_host_network=True,
            )
            self.containers.append(container)
            self.nodes.append(Node(name, own, container))
        self.wait_until_whole()

    def cut(self, one: Node, other: Node) -> None:
        """Cut the connection between two nodes, which both still see the third, until `heal`.

        The nodes share the loopback interface, where no rule distinguishes them: each refuses the other's handshake.
        """
        keeps_apart = one.version().startswith("4.0.")
        for here, there in ((one, other), (other, one)):
            # RabbitMQ 4.0 keeps nodes apart itself that have lost each other once, and pauses as a whole in a longer cut.
            # Newer versions let them connect at once with a cookie that both have for each other.
            cookie = "cut" if keeps_apart else f"cut by {here.name}"
            refuse = f"erlang:set_cookie('{there.name}', '{cookie}')"
            here.evaluate(f"{refuse}, erlang:disconnect_node('{there.name}').")

    def heal(self, one: Node, other: Node) -> None:
        """Let two nodes connect again."""
        for here, there in ((one, other), (other, one)):
            here.evaluate(f"erlang:set_cookie('{there.name}', '{_COOKIE}').")

    def wait_until_whole(self) -> None:
        """Wait until each node sees all of them running."""
        eventually_blocking(self.is_whole, seconds=START_SECONDS)

    def is_whole(self) -> bool:
        """Return whether each node answers and sees all of them running."""
        return all(node.running_nodes() == NODES for node in self.nodes)

    @property
    def addresses(self) -> str:
        """Return the addresses of all nodes, as the setting has them."""
        return json.dumps([node.address for node in self.nodes])

    def remove(self) -> None:
        for container in reversed(self.containers):
            container.remove()


@contextmanager
def running() -> Iterator[Cluster]:
    """Run a cluster of one's own."""
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
