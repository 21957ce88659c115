"""The whole tree of settings, read from the environment and a YAML file.

The only module that needs pydantic-settings: the client library does without it.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings.amqp import AmqpSettings
from rabbit2docker.settings.base import LogSettings
from rabbit2docker.settings.constants import (
    CONFIG_FILE_VARIABLE,
    DEFAULT_DOCKER_HOST,
    ENV_PREFIX,
    FOREIGN_PREFIXES,
    ExecutorKind,
    without_services,
)
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
from rabbit2docker.settings.engine import EngineSettings
from rabbit2docker.settings.hub import HubSettings
from rabbit2docker.settings.kubernetes import KubernetesSettings
from rabbit2docker.settings.policy import PolicySettings
from rabbit2docker.settings.tenants import Tenants, by_name, default_tenants
from rabbit2docker.settings.topology import TopologySettings


class Settings(BaseSettings):
    """All settings, by group."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    tenant: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Tenant of the requests that this program makes: the command line, or the hub service."""
    tenants: Tenants = Field(default_factory=default_tenants)
    """Tenants that `topology declare` creates streams for: a list of names, or settings by name."""
    instance: str = "rabbit2docker"
    """Name of this installation, part of `ce-source`."""
    executor: ExecutorKind = ExecutorKind.LOCAL
    """local or kubernetes."""
    amqp: AmqpSettings = AmqpSettings()
    topology: TopologySettings = TopologySettings()
    local: LocalSettings = LocalSettings()
    docker: DockerSettings = DockerSettings()
    engine: EngineSettings = EngineSettings()
    images: ImageSettings = ImageSettings()
    limits: LimitSettings = LimitSettings()
    shares: ShareSettings = ShareSettings()
    policy: PolicySettings = PolicySettings()
    builder: BuilderSettings = BuilderSettings()
    build_logs: BuildLogSettings = BuildLogSettings()
    providers: ProviderSettings = ProviderSettings()
    http: HttpSettings = HttpSettings()
    hub: HubSettings = HubSettings()
    log: LogSettings = LogSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

    @property
    def builder_image(self) -> str | None:
        """Return the image of build pods; None for an executor without pods."""
        return self.builder.image if self.executor is ExecutorKind.KUBERNETES else None

    @property
    def engine_address(self) -> str:
        """Return the DOCKER_HOST of the engine that builds."""
        if self.executor is ExecutorKind.KUBERNETES:
            return f"unix://{self.kubernetes.docker_socket}"
        return self.docker.host or os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST

    @property
    def engine_leases(self) -> Path:
        """Return the directory in which running builds hold their images."""
        if self.engine.disk.leases is not None:
            return self.engine.disk.leases.absolute()
        if self.executor is ExecutorKind.KUBERNETES:
            return Path(self.kubernetes.docker_socket).parent / "disk"
        return self.local.state_dir.absolute() / "engine"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give arguments precedence over the environment, and that over the YAML file."""
        path = os.environ.get(CONFIG_FILE_VARIABLE)
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, _NamedTenants(settings_cls))
        return (*sources, YamlConfigSettingsSource(settings_cls, yaml_file=path)) if path else sources


class _NamedTenants(EnvSettingsSource):
    """The environment, in which a list of tenants adds names to those of the file instead of hiding their settings."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings of the environment."""
        found = super().__call__()
        if "tenants" in found:
            found["tenants"] = by_name(found["tenants"])
        return found


def unknown_variables(environ: dict[str, str]) -> list[str]:
    """Return the variables with the prefix whose first word is no setting; pydantic-settings ignores them."""
    known = {name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name in without_services(environ)
        if name.startswith(ENV_PREFIX)
        and not name.startswith(FOREIGN_PREFIXES)
        and name != CONFIG_FILE_VARIABLE
        and name.removeprefix(ENV_PREFIX).split("__")[0].upper() not in known
    )


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises a ConfigurationError that names each invalid one and never shows a secret."""
    path = os.environ.get(CONFIG_FILE_VARIABLE)
    if path and not Path(path).is_file():
        raise ConfigurationError(f"{CONFIG_FILE_VARIABLE} names {path}, which is not a file.")
    if unknown := unknown_variables(dict(os.environ)):
        raise ConfigurationError(
            f"Unknown settings in the environment: {', '.join(unknown)}. `rabbit2docker settings` lists all names."
        )
    try:
        return Settings(**overrides)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}") from None
    except ValidationError as error:
        lines = [
            f"  {ENV_PREFIX}{'__'.join(str(part).upper() for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("The settings are invalid:\n" + "\n".join(lines)) from None
