"""Settings of `rabbit2docker run`: builds, repositories, images and limits."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds
from rabbit2docker.settings.constants import (
    DEFAULT_GITHUB_HOSTNAME,
    DEFAULT_GITLAB_HOSTNAME,
    DEFAULT_IMAGE_PREFIX,
    GITHUB_DATA_RESIDENCY,
    provider_hosts,
)


class LocalSettings(Group):
    """The local executor: attempts as processes next to a Docker engine."""

    state_dir: Path = Path("rabbit2docker-state")
    """Directory of the records, one folder per attempt. Must survive restarts and not be shared by two services."""
    confine: bool = True
    """Run repo2docker in namespaces of its own, in which nothing exists but the repository and the system's programs. The
    service does not start where the kernel does not allow them; without, repo2docker can read what the service can."""
    readable_paths: list[Path] = []
    """Additional files and directories that repo2docker may read, such as those that `builder.repo2docker_args` name."""


class DockerSettings(Group):
    """The Docker engine for builds, and the credentials for its registry."""

    host: str | None = None
    """DOCKER_HOST for builders; unset: the engine's default socket."""
    config: Path | None = None
    """Directory of Docker's `config.json` with registry credentials, for builders and for the registry check."""


class ImageSettings(Group):
    """Image names, and the registry that holds the images."""

    prefix: str = DEFAULT_IMAGE_PREFIX
    """Beginning of every image name: `registry/organisation/prefix-`."""
    registry_url: str | None = None
    """Base URL of the registry API; unset: derived from the prefix (https, but http for loopback)."""
    insecure_registries: list[str] = []
    """Registries, as `host` or `host:port`, that are asked without encryption. The Docker engine has such a list of its own."""
    registry_timeout: Seconds = 10.0
    """Timeout in seconds for one answer of the registry."""
    check_registry: bool = True
    """Reuse an image that the registry has already. Off: every request builds."""
    create_command: list[Annotated[str, Field(min_length=1)]] = []
    """Program and arguments that create a repository before the first push to it, for a registry such as ECR that does not,
    with `{repository}`, `{registry}` and `{image}` filled in. It runs beside the consumer, may take a minute, and may fail with
    `already exists`. Unset: none is needed."""


class LimitSettings(Group):
    """Limits on builds and requests."""

    concurrent_builds: int = Field(default=10, ge=1)
    """Live attempts over all replicas. At the limit, requests wait in RabbitMQ."""
    reserved_for_interactive: int = Field(default=1, ge=0)
    """Slots that bulk requests never occupy."""
    build_seconds: int = Field(default=3600, ge=10)
    """Seconds that one attempt may run."""
    idle_seconds: int = Field(default=1800, ge=10)
    """Seconds that an attempt may run without a new log line."""
    attempts: int = Field(default=2, ge=1, le=5)
    """Attempts at one build if the infrastructure fails."""
    interruptions: int = Field(default=6, ge=0)
    """Further attempts at one build that lost its Docker engine, node or registry; they do not count as `attempts`."""
    outage_seconds: Seconds = 21_600.0
    """Seconds that a request or a build waits for the return of a host, registry, Docker engine or executor."""
    retry_seconds: Annotated[float, Field(gt=0, le=604_800, allow_inf_nan=False)] | None = None
    """Seconds after which a request that keeps failing for another passing reason is rejected: its pauses, by
    `topology.retry_pauses`, add up to at least this, and the last one recurs. Unset: each pause once."""
    message_bytes: int = Field(default=65_536, ge=1024)
    """Largest request body in bytes."""
    keep_ended_seconds: Seconds = 600.0
    """Seconds that the record of an ended build is kept, to answer duplicates and late redeliveries."""


class ShareSettings(Group):
    """Shares of the build slots while more requests wait than can be built."""

    weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = {}
    """Weights of tenants, such as `{"course": 2}`: twice the slots and turns of a tenant with 1, which is the default."""
    max_builds: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Live attempts that a tenant may have at most, even if slots are free."""
    requester_builds: int = Field(default=3, ge=1)
    """Builds of one requester, running and next in turn. Further requests of the same requester get every fourth turn of the
    tenant while others wait."""


class BuilderSettings(Group):
    """The builder, the program that runs one attempt."""

    image: str = "quay.io/jupyterhub/repo2docker:2026.4.0"
    """Image of build pods; the local executor uses the installed repo2docker."""
    repo2docker_args: list[str] = []
    """Additional arguments for repo2docker."""
    fetch_seconds: int = Field(default=1800, ge=10)
    """Seconds that fetching a repository with its submodules may take."""
    fetch_retries: int = Field(default=3, ge=0)
    """Retries of a fetch after a fault that may pass, such as a cut connection."""
    fetch_depth: int = Field(default=1, ge=0)
    """Commits of history that are fetched; 0: all, with branches and tags, for packages that derive their version from it."""
    max_repository_bytes: int = Field(default=10 * 1024**3, ge=1024**2)
    """Largest repository in bytes on disk, with submodules, large files and git's own data."""
    max_repository_files: int = Field(default=1_000_000, ge=100)
    """Largest number of files in a repository with its submodules."""
    docker_wait_seconds: int = Field(default=60, ge=1)
    """Seconds that the builder waits for the Docker engine."""
    push_retries: int = Field(default=4, ge=0)
    """Retries of a push after a temporary failure."""
    user_name: str = "jovyan"
    """User name in the image."""
    user_id: int = Field(default=1000, ge=1)
    """User id in the image; repo2docker does not accept 0."""


class BuildLogSettings(Group):
    """Log lines of builds as events."""

    batch_seconds: Seconds = 0.25
    """Longest wait of a line for others that share its message. A line that comes alone leaves at once, and lines wait the
    longer the more builds write at the same time."""
    batch_bytes: int = Field(default=32_768, ge=1024)
    """Size in bytes at which a batch is published at once."""
    tail_lines: int = Field(default=30, ge=1)
    """Number of last lines that a `failed` event repeats."""


class ProviderSettings(Group):
    """Repositories: which ones are allowed, and access to their hosts."""

    allow_private_addresses: bool = False
    """Allow loopback, link-local, private and cluster addresses in requests. For development machines."""
    timeout: Seconds = 10.0
    """Timeout in seconds for one answer of a repository host."""
    github_hostname: str = DEFAULT_GITHUB_HOSTNAME
    """Host name of GitHub or a GitHub Enterprise server."""
    github_api_url: str | None = None
    """Base URL of the GitHub API; unset: derived from the host name."""
    github_token: SecretStr | None = None
    """Token for the GitHub API: raises its limit from 60 to 5,000 look-ups an hour."""
    allow_secret_gists: bool = False
    """Build gists that are not listed; anyone with such a gist's id can read it."""
    gitlab_hostname: str = DEFAULT_GITLAB_HOSTNAME
    """Host name of GitLab.com or of another GitLab server, for the provider `gl`."""
    gitlab_api_url: str | None = None
    """Base URL of the GitLab API; unset: derived from the host name."""
    gitlab_token: SecretStr | None = None
    """Token for the GitLab API, with the scope `read_api`: for a higher limit of look-ups."""
    max_dataset_bytes: int = Field(default=10 * 1024**3, ge=1024)
    """Largest dataset in bytes, by what its host says of it and by what is downloaded and unpacked."""
    doi_url: str = "https://doi.org"
    """Base URL of the resolver for DOIs."""
    zenodo_url: str = "https://zenodo.org"
    """Base URL of Zenodo."""
    figshare_api_url: str = "https://api.figshare.com/v2"
    """Base URL of the Figshare API."""
    hydroshare_url: str = "https://www.hydroshare.org"
    """Base URL of HydroShare."""
    allowed_specs: dict[str, list[str]] = {}
    """Regular expressions per provider, matched from the start, ignoring case; without any, all repositories are allowed."""
    banned_specs: dict[str, list[str]] = {}
    """The same for repositories that are not allowed, in any spelling and also as another provider's;
    takes precedence over `allowed_specs`."""

    @property
    def github_api(self) -> str:
        """Base URL of the GitHub API."""
        return self.github_api_at(self.github_hostname)

    def github_api_at(self, host: str) -> str:
        """Return the base URL of the API of GitHub, or of a GitHub Enterprise server."""
        if host == self.github_hostname and self.github_api_url:
            return self.github_api_url
        has_own_host = host == DEFAULT_GITHUB_HOSTNAME or host.endswith(GITHUB_DATA_RESIDENCY)
        return f"https://api.{host}" if has_own_host else f"https://{host}/api/v3"

    def github_token_at(self, host: str) -> str | None:
        """Return the token for the API of the configured GitHub; None for that of another one."""
        return (
            self.github_token.get_secret_value()
            if self.github_token and host == self.github_hostname
            else None
        )

    @property
    def gitlab_api(self) -> str:
        """Base URL of the GitLab API."""
        return self.gitlab_api_url or f"https://{self.gitlab_hostname}/api/v4"

    @property
    def hosts(self) -> dict[str, str]:
        """The host names that can be chosen, by provider."""
        return provider_hosts(self.github_hostname, self.gitlab_hostname)


class HttpSettings(Group):
    """The HTTP server for health and metrics."""

    bind: str = "127.0.0.1:8090"
    """host:port of /health/live, /health/ready and /metrics; port 0: a free port."""
