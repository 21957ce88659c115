"""The whole tree of settings, read from the environment and a YAML file.

The only module that needs pydantic-settings: the client library does without it.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings.amqp import AmqpSettings
from rabbit2docker.settings.base import LogSettings
from rabbit2docker.settings.constants import (
    CONFIG_FILE_VARIABLE,
    DEFAULT_TENANTS,
    ENV_PREFIX,
    FOREIGN_PREFIXES,
    ExecutorKind,
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
)
from rabbit2docker.settings.hub import HubSettings
from rabbit2docker.settings.kubernetes import KubernetesSettings
from rabbit2docker.settings.topology import TopologySettings


class Settings(BaseSettings):
    """All settings, by group."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    tenant: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Tenant of the requests that this program makes: the command line, or the hub service."""
    tenants: list[str] = list(DEFAULT_TENANTS)
    """Tenants that `topology declare` creates streams for."""
    instance: str = "rabbit2docker"
    """Name of this installation, part of `ce-source`."""
    executor: ExecutorKind = ExecutorKind.LOCAL
    """local or kubernetes."""
    amqp: AmqpSettings = AmqpSettings()
    topology: TopologySettings = TopologySettings()
    local: LocalSettings = LocalSettings()
    docker: DockerSettings = DockerSettings()
    images: ImageSettings = ImageSettings()
    limits: LimitSettings = LimitSettings()
    builder: BuilderSettings = BuilderSettings()
    build_logs: BuildLogSettings = BuildLogSettings()
    providers: ProviderSettings = ProviderSettings()
    http: HttpSettings = HttpSettings()
    hub: HubSettings = HubSettings()
    log: LogSettings = LogSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

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
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, YamlConfigSettingsSource(settings_cls, yaml_file=path)) if path else sources


def unknown_variables(environ: dict[str, str]) -> list[str]:
    """Return the variables with the prefix whose first word is no setting; pydantic-settings ignores them."""
    known = {name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name in environ
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
    except ValidationError as error:
        lines = [
            f"  {ENV_PREFIX}{'__'.join(str(part).upper() for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("The settings are invalid:\n" + "\n".join(lines)) from None
