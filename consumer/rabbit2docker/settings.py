"""Every knob of the service, once, with its unit and reason.

Read from the environment (`RABBIT2DOCKER_…`, `__` between levels) or from a YAML file named by
`RABBIT2DOCKER_CONFIG`; the environment wins. Unknown names are errors, in both.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from rabbit2docker.errors import ConfigurationError

ENV_PREFIX = "RABBIT2DOCKER_"
CONFIG_FILE_VARIABLE = "RABBIT2DOCKER_CONFIG"
# The development services and the tests keep their own variables under the same prefix.
FOREIGN_PREFIXES = ("RABBIT2DOCKER_TEST_", "RABBIT2DOCKER_DEV_")

Seconds = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    """One subject of the settings: misspelt names are refused, nothing changes after start."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ExecutorKind(StrEnum):
    """Where attempts run."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


class HubAuth(StrEnum):
    """How the service for a JupyterHub tells who asks."""

    JUPYTERHUB = "jupyterhub"
    TOKENS = "tokens"
    NONE = "none"


class AmqpSettings(Group):
    """The connection to RabbitMQ."""

    url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    """amqp:// or amqps:// URL with user, password and virtual host."""
    management_url: SecretStr | None = None
    """http(s) URL of the management API with user and password; needed to set policies, nothing else."""
    heartbeat: int = Field(default=15, ge=5, le=120)
    """Seconds between heartbeats: a black-holed connection is noticed after about three of them."""
    prefetch: int = Field(default=8, ge=1, le=100)
    """Requests in intake at once in one replica. They are held for seconds, never for a build."""
    publish_timeout: Seconds = 10.0
    """Seconds to wait for one confirm before the publish is tried again."""
    publish_window: int = Field(default=100, ge=1, le=1000)
    """Unconfirmed publishes in flight; more than about 100 gains nothing."""
    outbox_size: int = Field(default=10_000, ge=100)
    """Events held in memory while RabbitMQ is away. Log lines can be read again, so nothing is dropped: followers wait."""
    watchdog_after: Seconds = 30.0
    """Seconds a channel may be closed on a living connection before the connection is rebuilt."""
    declare: bool = True
    """Declare exchanges, queues and policies at start, where the user may; otherwise `topology declare` did it."""


class LocalSettings(Group):
    """Attempts as processes beside a local Docker engine."""

    state_dir: Path = Path("rabbit2docker-state")
    """Directory of the records: one folder an attempt. Must survive restarts, must not be shared by two services."""


class DockerSettings(Group):
    """The Docker engine that builds, and the credentials for its registry."""

    host: str | None = None
    """DOCKER_HOST for builders; unset means the engine's default socket."""
    config: Path | None = None
    """Directory of the docker `config.json` with registry credentials, read by builders and the registry check alike."""


class ImageSettings(Group):
    """Names of images and the registry that holds them."""

    prefix: str = "127.0.0.1:5000/r2d-"
    """Put before every image name: `registry/organisation/prefix-`."""
    registry_url: str | None = None
    """Base URL of the registry API; unset: derived from the prefix (https, but http for loopback)."""
    registry_timeout: Seconds = 10.0
    """Seconds for one answer of the registry."""
    check_registry: bool = True
    """Ask the registry before building. Off: every request builds."""


class LimitSettings(Group):
    """What a build may take."""

    concurrent_builds: int = Field(default=10, ge=1)
    """Live attempts over all replicas. At the limit requests wait in RabbitMQ."""
    reserved_for_interactive: int = Field(default=1, ge=0)
    """Slots that bulk requests never take."""
    build_seconds: int = Field(default=3600, ge=10)
    """Seconds one attempt may run."""
    idle_seconds: int = Field(default=1800, ge=10)
    """Seconds an attempt may run without printing a line."""
    attempts: int = Field(default=2, ge=1, le=5)
    """Attempts of one build when the infrastructure fails it."""
    message_bytes: int = Field(default=65_536, ge=1024)
    """Largest request body in bytes."""
    keep_ended_seconds: Seconds = 600.0
    """Seconds an ended build's record answers duplicates and late redeliveries."""


class BuilderSettings(Group):
    """The program of one attempt."""

    image: str = "quay.io/jupyterhub/repo2docker:2026.4.0"
    """Image of the build pods; the local executor uses the installed repo2docker."""
    repo2docker_args: list[str] = []
    """Further arguments for repo2docker."""
    docker_wait_seconds: int = Field(default=60, ge=1)
    """Seconds the builder waits for the Docker engine."""
    push_retries: int = Field(default=4, ge=0)
    """Further tries of a push after a failure that may pass."""
    user_name: str = "jovyan"
    """User in the image."""
    user_id: int = Field(default=1000, ge=1)
    """Id of the user in the image; repo2docker refuses 0."""


class BuildLogSettings(Group):
    """How log lines of builds become events."""

    batch_seconds: Seconds = 0.25
    """Longest time a line waits for others before its batch is published."""
    batch_bytes: int = Field(default=32_768, ge=1024)
    """Size in bytes at which a batch is published at once."""
    tail_lines: int = Field(default=30, ge=1)
    """Last lines repeated in a `failed` event."""


class ProviderSettings(Group):
    """Where requests may come from."""

    allow_private_addresses: bool = False
    """Let requests name loopback, link-local, private and cluster addresses. For development machines."""
    timeout: Seconds = 10.0
    """Seconds for one answer of a repository host."""
    github_hostname: str = "github.com"
    """Host name of GitHub or a GitHub Enterprise server."""
    github_api_url: str | None = None
    """Base URL of the GitHub API; unset: derived from the host name."""
    github_token: SecretStr | None = None
    """Token for the GitHub API: 5,000 instead of 60 look-ups an hour."""
    allowed_specs: dict[str, list[str]] = {}
    """Regular expressions per provider, matched from the start without regard to case; none means all are allowed."""
    banned_specs: dict[str, list[str]] = {}
    """Likewise; looked at before the allowed ones."""


class HttpSettings(Group):
    """Health and metrics."""

    bind: str = "127.0.0.1:8090"
    """host:port of /health/live, /health/ready and /metrics; port 0 takes a free one."""


class HubSettings(Group):
    """The service for a JupyterHub, which speaks BinderHub's HTTP."""

    bind: str | None = None
    """host:port; unset: that of JUPYTERHUB_SERVICE_URL, else 127.0.0.1:8585. Port 0 takes a free one."""
    base_url: str | None = Field(default=None, pattern=r"^/")
    """Path before all addresses; unset: JUPYTERHUB_SERVICE_PREFIX, else `/`."""
    auth: HubAuth = HubAuth.JUPYTERHUB
    """jupyterhub: its users and services with access to this one; tokens: those below; none: everybody."""
    tokens: dict[str, SecretStr] = {}
    """With `auth: tokens`: who may ask, by the name that requests are recorded under."""
    allow_origin: str | None = None
    """Origin whose pages may read answers (`Access-Control-Allow-Origin`); unset: only pages of the same origin."""
    viewers: int = Field(default=5000, ge=1)
    """Builds that may be watched at once; who comes beyond is told to try again."""
    share_seconds: float = Field(default=10.0, ge=0)
    """Viewers who ask for the same within this time share one request."""
    keepalive_seconds: Seconds = 25.0
    """Seconds of silence after which a comment keeps proxies from closing the connection."""
    stalled_seconds: Seconds = 60.0
    """Seconds after which a viewer who takes nothing is let go."""
    name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?$")
    """Name of the durable queue, `hub.<name>.events`, that feeds the store; unset: `<tenant>.service`. With the shipped
    permissions it is the tenant's name or begins with it and a dot."""
    store_url: SecretStr = SecretStr("sqlite:///rabbit2docker-hub.sqlite")
    """Where builds and logs are remembered: sqlite:///file or postgresql://user:password@host/database. Several instances
    of the service may share a PostgreSQL."""
    store_log_bytes: int = Field(default=4 * 1024 * 1024, ge=16_384)
    """Bytes of each attempt's log that are remembered: half of them from its head, half from its tail."""
    store_days: float = Field(default=90.0, gt=0)
    """Days after its end that a build is forgotten."""
    admins: list[str] = []
    """Who sees and may end everybody's builds, beside the administrators of the JupyterHub."""
    requests_per_user: int = Field(default=60, ge=0)
    """Builds that one person (without names: one address) may ask for in `requests_period_seconds`; 0: any number."""
    requests_period_seconds: Seconds = 3600.0
    """Seconds in which `requests_per_user` are counted."""
    ban_networks: dict[str, str] = {}
    """Networks that may ask for nothing, such as `{"192.0.2.0/24": "the lab"}`; the name is told to who asks from there."""
    trusted_proxies: list[str] = ["127.0.0.0/8", "::1/128"]
    """Networks of the proxies before the service, whose X-Forwarded-For says who really asks."""
    build_token_secret: SecretStr | None = Field(default=None)
    """Hexadecimal secret of BinderHub's build tokens (`?build_token=…`), the same as where they are made; unset: none is valid."""


class LogSettings(Group):
    """The service's own log."""

    level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """debug, info, warning or error."""
    format: str = Field(default="auto", pattern="^(auto|json|console)$")
    """auto: console on a terminal, JSON otherwise."""


class TenantCredentials(Group):
    """What builds of one tenant may use beyond what all may."""

    push_secret: str | None = None
    """Secret of type kubernetes.io/dockerconfigjson that this tenant's builds push and pull with, instead of the common one."""
    git_credentials: SecretStr | None = None
    """Lines `https://user:token@host` for private repositories; put into a Secret of each build, gone with it."""


class KubernetesSettings(Group):
    """Attempts as pods; read by the kubernetes executor."""

    namespace: str = "default"
    """Namespace of the build pods, of docker-api and of everything the service makes."""
    kubeconfig: Path | None = None
    """kubeconfig file; unset: the service account of the pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str | None = None
    """Context of the kubeconfig; unset: its current one."""
    docker_api_labels: dict[str, str] = {"app.kubernetes.io/component": "docker-api"}
    """Labels of the docker-api pods: a build runs on a node that has one of them."""
    docker_socket: str = "/var/run/rabbit2docker/docker-api/docker.sock"
    """Socket of docker-api on its node. Its directory is mounted, so that a new engine's socket is seen."""
    push_secret: str | None = None
    """Existing Secret of type kubernetes.io/dockerconfigjson with the registry credentials of all builds."""
    tenants: dict[str, TenantCredentials] = {}
    """Credentials of single tenants."""
    pending_seconds: int = Field(default=600, ge=10)
    """Seconds from its creation within which a pod has to run; a cluster autoscaler must be able to keep it."""
    termination_seconds: int = Field(default=20, ge=1, le=300)
    """Seconds between SIGTERM and SIGKILL for a build pod; the builder needs about eight to end its children."""
    run_as_user: int | None = 1000
    """User id in the build pod; unset: the image's own."""
    docker_group: int | None = 2375
    """Group that may use the socket (`dockerd --group`)."""
    cpu_request: str = "50m"
    """The work is done in docker-api: the pod itself clones and waits."""
    memory_request: str = "256Mi"
    """Memory set aside for the pod."""
    memory_limit: str | None = "1Gi"
    """Memory at which the pod is killed."""
    image_pull_policy: str | None = Field(default=None, pattern="^(Always|IfNotPresent|Never)$")
    """Always, IfNotPresent or Never; unset: as Kubernetes does by the tag."""
    image_pull_secrets: list[str] = []
    """Secrets to pull the builder image with."""
    node_selector: dict[str, str] = {}
    """Labels a node must have beside running docker-api."""
    tolerations: list[dict[str, Any]] = []
    """Taints that build pods tolerate, as in a pod's specification."""
    priority_class: str | None = None
    """PriorityClass of build pods."""
    labels: dict[str, str] = {}
    """Further labels of build pods."""
    annotations: dict[str, str] = {}
    """Further annotations of build pods."""
    env: dict[str, str] = {}
    """Further environment of the builder."""
    requests_per_second: float = Field(default=50.0, gt=0)
    """Calls to the API server in the long run; creations go first."""
    burst: int = Field(default=100, ge=1)
    """Calls that may be made at once after a quiet time."""
    lease_seconds: float = Field(default=10.0, ge=3, le=60)
    """A replica that has not renewed its Lease for this long is taken for dead, and its builds go to the others."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    tenant: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Tenant of the command line's own requests."""
    tenants: list[str] = ["default"]
    """Tenants whose streams `topology declare` makes."""
    instance: str = "rabbit2docker"
    """Name of this installation, part of `ce-source`."""
    executor: ExecutorKind = ExecutorKind.LOCAL
    """local or kubernetes."""
    amqp: AmqpSettings = AmqpSettings()
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
        """Arguments before the environment before the YAML file."""
        path = os.environ.get(CONFIG_FILE_VARIABLE)
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, YamlConfigSettingsSource(settings_cls, yaml_file=path)) if path else sources


def unknown_variables(environ: dict[str, str]) -> list[str]:
    """Variables with our prefix whose first word is no setting: pydantic-settings itself lets these pass."""
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
    """Read the settings; raises ConfigurationError that names each wrong one and never shows a secret."""
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
        raise ConfigurationError("The settings cannot be read:\n" + "\n".join(lines)) from None
