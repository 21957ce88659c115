"""Names, choices and defaults of settings that are needed without pydantic, whose import takes long."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

ENV_PREFIX: Final = "RABBIT2DOCKER_"
CONFIG_FILE_VARIABLE: Final = "RABBIT2DOCKER_CONFIG"
FOREIGN_PREFIXES: Final = ("RABBIT2DOCKER_TEST_", "RABBIT2DOCKER_DEV_")
"""Variables of the development services and the tests, which are not settings."""

DEFAULT_TENANTS: Final = ("default",)
DEFAULT_VHOST: Final = "/"
DEFAULT_DOCKER_HOST: Final = "unix:///var/run/docker.sock"
DEFAULT_IMAGE_PREFIX: Final = "127.0.0.1:5000/r2d-"
DEFAULT_GITHUB_HOSTNAME: Final = "github.com"
GITHUB_DATA_RESIDENCY: Final = ".ghe.com"
"""End of the host names of GitHub Enterprise Cloud with data residency, whose API has a host of its own."""
DEFAULT_GITLAB_HOSTNAME: Final = "gitlab.com"


class ExecutorKind(StrEnum):
    """The executor: the environment that attempts run in."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


class HubAuth(StrEnum):
    """Ways to authenticate clients of the hub's service."""

    JUPYTERHUB = "jupyterhub"
    TOKENS = "tokens"
    NONE = "none"


_SERVICE_HOST: Final = "_SERVICE_HOST"
_SERVICE_VARIABLE: Final = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
"""Ends of the variables that Kubernetes sets in each pod of a namespace for each of its Services."""


def without_services(variables: Iterable[str]) -> list[str]:
    """Return the names without those that Kubernetes has made of a Service such as `rabbit2docker-hub`."""
    names = list(variables)
    services = {name.removesuffix(_SERVICE_HOST) for name in names if name.endswith(_SERVICE_HOST)}
    return [
        name
        for name in names
        if not any(
            name.startswith(service) and _SERVICE_VARIABLE.fullmatch(name.removeprefix(service))
            for service in services
        )
    ]


def is_configured(variables: Iterable[str]) -> bool:
    """Return whether one of these environment variables is a setting, in any case, so that defaults may not apply."""
    return any(
        name.startswith(ENV_PREFIX) and not name.startswith(FOREIGN_PREFIXES)
        for name in map(str.upper, without_services(variables))
    )


def provider_hosts(github: str, gitlab: str) -> dict[str, str]:
    """Return the host names by provider; a GitHub Enterprise server has its gists on a host of their own."""
    return {"gh": github, "gist": f"gist.{github}", "gl": gitlab}
