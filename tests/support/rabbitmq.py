"""A real RabbitMQ in a container, with a virtual host of its own for each test."""

import json
import os
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rabbit2docker.settings import AmqpSettings
from tests.support.certificates import write_certificates
from tests.support.containers import Container, exclusive, run_directory, shared
from tests.support.waiting import PATIENCE, eventually_blocking

IMAGE = os.environ.get("RABBIT2DOCKER_TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")
DATA = "/var/lib/rabbitmq"
_CONFIGURATION = """
loopback_users = none
listeners.tcp.default = 5672
listeners.ssl.default = 5671
ssl_options.cacertfile = /tests/ca.pem
ssl_options.certfile = /tests/server.pem
ssl_options.keyfile = /tests/server-key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
management.tcp.port = 15672
management.ssl.port = 15671
management.ssl.cacertfile = /tests/ca.pem
management.ssl.certfile = /tests/server.pem
management.ssl.keyfile = /tests/server-key.pem
"""
_DEPTHS = """
Depth = fun(Queue) ->
    case amqqueue:get_type(Queue) of
        rabbit_quorum_queue ->
            Leader = amqqueue:get_pid(Queue),
            {ok, {_, Total}, _} = ra:leader_query(Leader, {rabbit_fifo, query_messages_total, []}),
            Total;
        _ ->
            [{messages, Total}] = rabbit_amqqueue:info(Queue, [messages]),
            Total
    end
end,
Depths = [{element(4, amqqueue:get_name(Queue)), Depth(Queue)} || Queue <- rabbit_amqqueue:list(<<"%s">>)],
rabbit_json:encode(maps:from_list(Depths)).
"""
"""What `rabbitmqctl list_queues` shows of a quorum queue is up to five seconds old; this asks the queues themselves."""
_PLUGINS = "[rabbitmq_management, rabbitmq_auth_mechanism_ssl].\n"


def certificates() -> Path:
    """Return the directory of the certificates that all brokers of a run have."""
    directory = run_directory() / "certificates"
    with exclusive(directory):
        if not directory.exists():
            write_certificates(directory)
    return directory


class Management:
    """A broker's management API, with the user guest."""

    def __init__(self, url: str) -> None:
        """Take the URL, credentials in it."""
        self.url_of_management = url

    def api(self, method: str, path: str, body: Any = None) -> Any:
        parts = urlsplit(self.url_of_management)
        user = f"{parts.username}:{parts.password}".encode()
        request = urllib.request.Request(
            f"{parts.scheme}://{parts.hostname}:{parts.port}/api/{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={
                "Authorization": f"Basic {b64encode(user).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            data = answer.read()
            return json.loads(data) if data else None

    def new_vhost(self) -> str:
        vhost = f"test-{uuid.uuid4().hex[:12]}"
        self.api("PUT", f"vhosts/{vhost}", {})
        self.api("PUT", f"permissions/{vhost}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return vhost

    def delete_vhost(self, vhost: str) -> None:
        self.api("DELETE", f"vhosts/{vhost}")


class RabbitMQ(Management):
    """One broker in a container."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.port = container.ports[5672]
        super().__init__(f"http://guest:guest@127.0.0.1:{container.ports[15672]}/")

    @classmethod
    def start(cls, *, in_memory: bool = False) -> "RabbitMQ":
        """Start one and wait until it is ready. What it keeps in memory it loses when it is killed."""
        files = {f"/tests/{file.name}": file.read_bytes() for file in certificates().glob("*.pem")}
        files |= {
            "/tests/rabbitmq.conf": _CONFIGURATION.encode(),
            "/tests/enabled_plugins": _PLUGINS.encode(),
        }
        environment = {
            "RABBITMQ_CONFIG_FILE": "/tests/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/tests/enabled_plugins",
        }
        ports = [5672, 5671, 15672, 15671]
        data = DATA if in_memory else None
        broker = cls(Container.start(IMAGE, ports, environment=environment, files=files, in_memory=data))
        broker.wait_until_ready()
        return broker

    @classmethod
    def shared(cls) -> "RabbitMQ":
        """Return the broker that all tests of a run share.

        It writes to disk whatever is declared, several times; in memory that takes a third less of its processor time.
        """
        return cls(shared("rabbitmq", lambda: cls.start(in_memory=True).container))

    @property
    def management_url(self) -> str:
        return self.url_of_management

    def url(self, vhost: str, *, user: str = "guest:guest", port: int | None = None) -> str:
        return f"amqp://{user}@127.0.0.1:{port or self.port}/{quote(vhost, safe='')}"

    def settings(self, vhost: str) -> AmqpSettings:
        """Return settings for a virtual host, with the management API."""
        return AmqpSettings.model_validate(
            {"url": self.url(vhost), "management_url": self.management_url, "heartbeat": 5}
        )

    @contextmanager
    def own_vhost(self) -> Iterator[AmqpSettings]:
        """Make a virtual host, give settings for it, and delete it at the end."""
        vhost = self.new_vhost()
        try:
            yield self.settings(vhost)
        finally:
            self.delete_vhost(vhost)

    def _ctl(self, *arguments: str) -> tuple[int, bytes]:
        return self.container.execute("rabbitmqctl", *arguments)

    def is_ready(self) -> bool:
        # The listeners start last. A `rabbitmqctl` each time would take longer than RabbitMQ does.
        try:
            return all(
                self.api("GET", f"health/checks/port-listener/{port}")["status"] == "ok"
                for port in (5671, 5672)
            )
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        eventually_blocking(self.is_ready, seconds=120)
        code, output = self._ctl("await_startup")
        assert code == 0, output

    def add_user(self, name: str, vhost: str, *, configure: str, write: str, read: str) -> None:
        self.api("PUT", f"users/{name}", {"password": name, "tags": ""})
        self.api(
            "PUT",
            f"permissions/{quote(vhost, safe='')}/{name}",
            {"configure": configure, "write": write, "read": read},
        )

    def depth(self, vhost: str, queue: str) -> int:
        """Return how many messages a queue holds, in hand or not."""
        return self.depths(vhost)[queue]

    def depths(self, vhost: str) -> dict[str, int]:
        """Return the same of all queues. It takes a second: keep it out of event loops with connections."""
        code, output = self._ctl("eval", _DEPTHS % vhost)
        assert code == 0, output
        return dict(json.loads(json.loads(output.strip().removeprefix(b"<<").removesuffix(b">>"))))

    def settle(self) -> None:
        """Have it write down what it knows of streams in general.

        RabbitMQ 4.0.5 that is killed within seconds of its very first stream never finds any stream again.
        """
        vhost = self.new_vhost()
        arguments = {"x-queue-type": "stream"}
        self.api("PUT", f"queues/{vhost}/first", {"durable": True, "arguments": arguments})
        for command in ("stop_app", "start_app"):
            assert self._ctl(command)[0] == 0
        self.wait_until_ready()

    def kill(self) -> None:
        self.container.kill()

    def start_again(self) -> None:
        self.container.restart()
        self.wait_until_ready()

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        def set_watermark(value: str) -> None:
            self._ctl("set_vm_memory_high_watermark", value)

        set_watermark("0.000001")
        try:
            yield
        finally:
            set_watermark("0.6")


@contextmanager
def running() -> Iterator[RabbitMQ]:
    """Run a broker of one's own."""
    broker = RabbitMQ.start()
    try:
        yield broker
    finally:
        broker.container.remove()
