"""The topology as RabbitMQ definitions, for an import without a connection of ours. No I/O."""

from typing import Any

from rabbit2docker.amqp.topology import BindingSpec, ExchangeSpec, QueueSpec, Topology
from rabbit2docker.amqp.users import UserSpec


def as_definitions(topology: Topology, *, vhost: str) -> dict[str, Any]:
    """Return RabbitMQ definitions, for `load_definitions` or `rabbitmqctl import_definitions`.

    Users have no password hash: logging in as one of them takes `rabbitmqctl change_password` first.
    """
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user_definition(user) for user in topology.users],
        "permissions": [_permission_definition(user, vhost) for user in topology.users],
        "topic_permissions": [
            {"user": user.name, "vhost": vhost, "exchange": exchange, "write": write, "read": read}
            for user in topology.users
            for exchange, write, read in user.topics
        ],
        "exchanges": [_exchange_definition(exchange, vhost) for exchange in topology.exchanges],
        "queues": [_queue_definition(queue, vhost) for queue in topology.queues],
        "bindings": [_binding_definition(binding, vhost) for binding in topology.bindings],
    }


def _user_definition(user: UserSpec) -> dict[str, Any]:
    return {
        "name": user.name,
        "password_hash": "",
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": list(user.tags),
    }


def _permission_definition(user: UserSpec, vhost: str) -> dict[str, Any]:
    return {
        "user": user.name,
        "vhost": vhost,
        "configure": user.configure,
        "write": user.write,
        "read": user.read,
    }


def _exchange_definition(exchange: ExchangeSpec, vhost: str) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": vhost,
        "type": exchange.type,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": exchange.arguments,
    }


def _queue_definition(queue: QueueSpec, vhost: str) -> dict[str, Any]:
    return {
        "name": queue.name,
        "vhost": vhost,
        "durable": True,
        "auto_delete": False,
        "arguments": queue.arguments,
    }


def _binding_definition(binding: BindingSpec, vhost: str) -> dict[str, Any]:
    return {
        "source": binding.exchange,
        "vhost": vhost,
        "destination": binding.queue,
        "destination_type": "queue",
        "routing_key": binding.key,
        "arguments": {},
    }
