"""The users of `topology export`, under names of the test's own: users belong to the whole broker."""

from collections.abc import Iterable

from rabbit2docker.amqp.definitions import as_definitions
from rabbit2docker.amqp.topology import make_topology
from rabbit2docker.settings import AmqpSettings
from tests.support.rabbitmq import RabbitMQ


class ExportedUsers:
    """Topology and users as exported for some tenants, in one virtual host."""

    def __init__(self, rabbitmq: RabbitMQ, vhost: str, tenants: Iterable[str]) -> None:
        """Import the definitions, and set passwords."""
        self._rabbitmq, self._vhost = rabbitmq, vhost
        definitions = as_definitions(make_topology(tenants), vhost=vhost)
        del definitions["vhosts"]
        self.names = [user["name"] for user in definitions["users"]]
        for user in definitions["users"]:
            user["name"] = self.name(user["name"])
        for permission in (*definitions["permissions"], *definitions["topic_permissions"]):
            permission["user"] = self.name(permission["user"])
        rabbitmq.api("POST", "definitions", definitions)
        for user in definitions["users"]:
            tags = ",".join(user["tags"])
            rabbitmq.api("PUT", f"users/{user['name']}", {"password": user["name"], "tags": tags})

    def name(self, exported: str) -> str:
        return f"{exported}.{self._vhost}"

    def url(self, exported: str) -> str:
        name = self.name(exported)
        return self._rabbitmq.url(self._vhost, user=f"{name}:{name}")

    def management_url(self, exported: str) -> str:
        name = self.name(exported)
        return self._rabbitmq.management_url.replace("guest:guest", f"{name}:{name}")

    def settings(self, exported: str) -> AmqpSettings:
        return AmqpSettings.model_validate({"url": self.url(exported), "heartbeat": 60})

    def delete(self) -> None:
        for name in self.names:
            self._rabbitmq.api("DELETE", f"users/{self.name(name)}")
