"""Every setting, documented in place with its unit and reason.

Read from the environment (`RABBIT2DOCKER_…`, `__` between levels) or from a YAML file named by
`RABBIT2DOCKER_CONFIG`; the environment wins. Unknown names are errors in both.

Each name is imported on first use: the client library needs only `AmqpSettings`, and must not load the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rabbit2docker.settings.amqp import AmqpSettings
    from rabbit2docker.settings.base import LogSettings
    from rabbit2docker.settings.constants import CONFIG_FILE_VARIABLE, ENV_PREFIX, ExecutorKind, HubAuth
    from rabbit2docker.settings.consumer import (
        BuilderSettings,
        BuildLogSettings,
        DockerSettings,
        HttpSettings,
        ImageSettings,
        LimitSettings,
        LocalSettings,
        ProviderSettings,
        ShareSettings,
    )
    from rabbit2docker.settings.engine import DiskSettings, EngineSettings
    from rabbit2docker.settings.hub import HubSettings
    from rabbit2docker.settings.kubernetes import KubernetesSettings, TenantCredentials
    from rabbit2docker.settings.loading import (
        Settings,
        load_settings,
        unknown_variables,
    )
    from rabbit2docker.settings.policy import PolicySettings, TenantPolicy
    from rabbit2docker.settings.tenants import GitCredential, TenantSettings
    from rabbit2docker.settings.topology import TopologySettings

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "ENV_PREFIX",
    "AmqpSettings",
    "BuildLogSettings",
    "BuilderSettings",
    "DiskSettings",
    "DockerSettings",
    "EngineSettings",
    "ExecutorKind",
    "GitCredential",
    "HttpSettings",
    "HubAuth",
    "HubSettings",
    "ImageSettings",
    "KubernetesSettings",
    "LimitSettings",
    "LocalSettings",
    "LogSettings",
    "PolicySettings",
    "ProviderSettings",
    "Settings",
    "ShareSettings",
    "TenantCredentials",
    "TenantPolicy",
    "TenantSettings",
    "TopologySettings",
    "load_settings",
    "unknown_variables",
]

_MODULES: Final = (
    "constants",
    "base",
    "amqp",
    "topology",
    "tenants",
    "consumer",
    "engine",
    "kubernetes",
    "policy",
    "hub",
    "loading",
)
"""From the cheapest import to the dearest."""


def __getattr__(name: str) -> Any:
    """Import an exported name from its module."""
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                globals()[name] = getattr(found, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
