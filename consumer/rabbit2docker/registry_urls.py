"""Addresses of image registries, for the consumer that looks images up and the hub that checks the registry alike."""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

DOCKER_HUB: Final = "docker.io"
"""Name of Docker Hub in the names of images."""
DOCKER_HUB_HOST: Final = "registry-1.docker.io"
"""Host of Docker Hub's API."""
DOCKER_HUB_NAMES: Final = frozenset((DOCKER_HUB, "index.docker.io", DOCKER_HUB_HOST))


def split_registry(image: str) -> tuple[str, str]:
    """Return registry and rest of an image's name, or of its beginning, with docker's default for the registry."""
    first, slash, rest = image.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return DOCKER_HUB, image
    return (DOCKER_HUB if first in DOCKER_HUB_NAMES else first), rest


def api_url(registry: str, override: str | None = None, unencrypted: Collection[str] = ()) -> str:
    """Return the base URL of a registry's API, without `/v2`.

    `override` and the `unencrypted` registries are the operator's settings.
    """
    if override:
        return override.rstrip("/").removesuffix("/v2")
    if registry == DOCKER_HUB:
        return f"https://{DOCKER_HUB_HOST}"
    is_plain = registry in unencrypted or _is_loopback(registry)
    return f"{'http' if is_plain else 'https'}://{registry}"


def _is_loopback(registry: str) -> bool:
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
