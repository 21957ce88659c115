"""Names, choices and defaults of settings that are needed without pydantic, whose import takes long."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

ENV_PREFIX: Final = "RABBIT2DOCKER_"
CONFIG_FILE_VARIABLE: Final = "RABBIT2DOCKER_CONFIG"
FOREIGN_PREFIXES: Final = ("RABBIT2DOCKER_TEST_", "RABBIT2DOCKER_DEV_")
"""Variables of the development services and the tests, which are not settings."""

DEFAULT_TENANTS: Final = ("default",)
DEFAULT_VHOST: Final = "/"
DEFAULT_IMAGE_PREFIX: Final = "127.0.0.1:5000/r2d-"
DEFAULT_GITHUB_HOSTNAME: Final = "github.com"


class ExecutorKind(StrEnum):
    """The executor: the environment that attempts run in."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


class HubAuth(StrEnum):
    """Ways to authenticate clients of the hub's service."""

    JUPYTERHUB = "jupyterhub"
    TOKENS = "tokens"
    NONE = "none"


def is_configured(variables: Iterable[str]) -> bool:
    """Return whether one of these environment variables is a setting, in any case, so that defaults may not apply."""
    return any(
        name.startswith(ENV_PREFIX) and not name.startswith(FOREIGN_PREFIXES)
        for name in map(str.upper, variables)
    )
