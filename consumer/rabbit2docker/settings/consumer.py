"""Settings of `rabbit2docker run`: builds, repositories, images and limits."""

from pathlib import Path

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds
from rabbit2docker.settings.constants import DEFAULT_GITHUB_HOSTNAME, DEFAULT_IMAGE_PREFIX


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

    prefix: str = DEFAULT_IMAGE_PREFIX
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
    github_hostname: str = DEFAULT_GITHUB_HOSTNAME
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
