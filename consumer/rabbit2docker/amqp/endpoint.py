"""Addresses of RabbitMQ and the login there: the nodes of a cluster, TLS, and credentials from files."""

import random
import socket
from pathlib import Path

from pydantic import SecretStr
from yarl import URL

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import AmqpSettings


class Endpoint:
    """The addresses for connections of one role. Files are read again for each connection."""

    def __init__(self, settings: AmqpSettings, role: str) -> None:
        """Take the `role` for RabbitMQ's list of connections. Raises ConfigurationError for settings that cannot work."""
        self._settings = settings
        self._name = f"rabbit2docker {role} {socket.gethostname()}"
        self.url = self.urls()[0]
        """One of the addresses, for texts; its credentials may be out of date."""

    def urls(self) -> list[URL]:
        """Return the URL of each node, in random order. Raises ConfigurationError."""
        settings = self._settings
        url = _amqp_url(settings)
        if settings.password_file is not None:
            url = url.with_user(url.user or "guest").with_password(read_secret(settings.password_file))
        tls = {
            "cafile": settings.ca_file,
            "certfile": settings.certificate_file,
            "keyfile": settings.key_file,
            "auth": "external" if settings.external else None,
        }
        given = {key: str(value) for key, value in tls.items() if value is not None}
        url = url.update_query(heartbeat=settings.heartbeat, name=self._name, **given)
        nodes = [_at_node(url, node) for node in settings.nodes] or [url]
        return random.sample(nodes, len(nodes))


def read_secret(path: Path) -> str:
    """Return the content of a file without the line end behind it. Raises ConfigurationError."""
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def secret_of(value: SecretStr | None, file: Path | None) -> str:
    """Return a secret that is in a setting or, with precedence, in a file; empty if it is in neither."""
    if file is not None:
        return read_secret(file)
    return value.get_secret_value() if value is not None else ""


def vhost_of(settings: AmqpSettings) -> str:
    """Return the virtual host of the AMQP URL, `/` where it names none. Raises ConfigurationError."""
    return _amqp_url(settings).path.removeprefix("/") or "/"


def address_of(url: URL) -> str:
    """Return host and port of a URL for texts, without user and password."""
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"


def _amqp_url(settings: AmqpSettings) -> URL:
    try:
        url = URL(secret_of(settings.url, settings.url_file))
    except ValueError:
        url = URL()
    if url.scheme not in ("amqp", "amqps") or not url.host:
        name = (
            "RABBIT2DOCKER_AMQP__URL" if settings.url_file is None else f"The content of {settings.url_file}"
        )
        raise ConfigurationError(f"{name} must be amqp://user:password@host:port/vhost or amqps://…")
    return url


def _at_node(url: URL, node: str) -> URL:
    try:
        address = URL(f"{url.scheme}://{node}")
        port = address.explicit_port
    except ValueError:
        address, port = URL(), None
    if not address.host or address.path.strip("/") or address.user:
        raise ConfigurationError(f"RABBIT2DOCKER_AMQP__NODES must list host or host:port, not {node!r}.")
    return url.with_host(address.host).with_port(port)
