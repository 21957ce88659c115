"""A real RabbitMQ in a container, with a virtual host of its own for each test."""

import json
import os
import random
import socket
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

from testcontainers.core.container import DockerContainer

from tests.support.waiting import eventually_blocking

IMAGE = os.environ.get("RABBIT2DOCKER_TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")


_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody has, below those that outgoing connections might take before it is listened on."""
    while True:
        port = random.randrange(11_000, 20_000)
        if port in _given:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port


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
        with urllib.request.urlopen(request, timeout=20) as answer:
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
    """One broker. Its ports are fixed, so that it is found again after a restart."""

    def __init__(self) -> None:
        self.port, self.management_port = free_port(), free_port()
        super().__init__(f"http://guest:guest@127.0.0.1:{self.management_port}/")
        self.container = DockerContainer(IMAGE).with_bind_ports(5672, self.port)
        self.container.with_bind_ports(15672, self.management_port)

    @property
    def management_url(self) -> str:
        return self.url_of_management

    def url(self, vhost: str, *, user: str = "guest:guest", port: int | None = None) -> str:
        return f"amqp://{user}@127.0.0.1:{port or self.port}/{quote(vhost, safe='')}"

    def is_ready(self) -> bool:
        try:
            self.api("GET", "overview")
            return not self.container.exec(["rabbitmqctl", "await_startup", "--timeout", "1"]).exit_code
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        eventually_blocking(self.is_ready, seconds=120)

    def add_user(self, name: str, vhost: str, *, configure: str, write: str, read: str) -> None:
        self.api("PUT", f"users/{name}", {"password": name, "tags": ""})
        self.api(
            "PUT",
            f"permissions/{quote(vhost, safe='')}/{name}",
            {"configure": configure, "write": write, "read": read},
        )

    def depth(self, vhost: str, queue: str) -> int:
        """Return how many messages a queue holds, in hand or not; exact, unlike the API's statistics."""
        answer = self.container.exec(
            [
                "rabbitmqctl",
                "--quiet",
                "list_queues",
                "--vhost",
                vhost,
                "name",
                "messages",
                "--formatter",
                "json",
            ]
        )
        depths = {item["name"]: item["messages"] for item in json.loads(answer.output)}
        return int(depths[queue])

    def close_connections(self) -> None:
        self.container.exec(["rabbitmqctl", "--quiet", "close_all_connections", "test"])

    def settle(self) -> None:
        """Have it write down what it knows of streams in general.

        RabbitMQ 4.0.5 that is killed within seconds of its very first stream never finds any stream again.
        """
        vhost = self.new_vhost()
        arguments = {"x-queue-type": "stream"}
        self.api("PUT", f"queues/{vhost}/first", {"durable": True, "arguments": arguments})
        for command in ("stop_app", "start_app"):
            assert not self.container.exec(["rabbitmqctl", command]).exit_code
        self.wait_until_ready()

    def kill(self) -> None:
        self.container.get_wrapped_container().kill()

    def start_again(self) -> None:
        self.container.get_wrapped_container().start()
        self.wait_until_ready()

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        def set_watermark(value: str) -> None:
            self.container.exec(["rabbitmqctl", "set_vm_memory_high_watermark", value])

        set_watermark("0.000001")
        try:
            yield
        finally:
            set_watermark("0.6")


@contextmanager
def running() -> Iterator[RabbitMQ]:
    """Run a broker."""
    rabbitmq = RabbitMQ()
    with rabbitmq.container:
        rabbitmq.wait_until_ready()
        yield rabbitmq
