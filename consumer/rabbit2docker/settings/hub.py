"""Settings of `rabbit2docker hub`, the service for a JupyterHub."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds
from rabbit2docker.settings.constants import HubAuth


class WebhookSettings(Group):
    """A repository whose pushes are built."""

    provider: Literal["gh", "gl"]
    """gh: GitHub, gl: GitLab; the server is that of `providers.github_hostname` or `providers.gitlab_hostname`."""
    repository: str = Field(min_length=3, max_length=500)
    """Owner and name, such as `course/lecture`; `*` stands for any text, as in `course/*`."""
    secret: SecretStr = Field(min_length=16)
    """The secret that is entered at GitHub, or the secret token at GitLab."""
    refs: list[str] = []
    """Branches and tags that are built, such as `["main", "v*"]`; unset: the default branch."""
    status_token: SecretStr | None = None
    """Token with which the state of each build is written to its commit. GitHub: with write access to commit statuses (classic:
    the scope `repo:status`); GitLab: with the scope `api` and the role Developer. Unset: it is not written."""

    def covers(self, provider: str, repository: str) -> bool:
        """Return whether a repository, by its name at the host, is the one or one of those that are registered here."""
        return self.provider == provider and fnmatchcase(repository.lower(), self.repository.lower())


class HubSettings(Group):
    """The service for a JupyterHub, with the HTTP interface of BinderHub."""

    bind: str | None = None
    """host:port; unset: that of JUPYTERHUB_SERVICE_URL, else 127.0.0.1:8585. Port 0: a free port."""
    base_url: str | None = Field(default=None, pattern=r"^/")
    """Path prefix of all URLs; unset: JUPYTERHUB_SERVICE_PREFIX, else `/`."""
    auth: HubAuth = HubAuth.JUPYTERHUB
    """jupyterhub: users and services with access to this service; tokens: `hub.tokens`; none: no authentication."""
    tokens: dict[str, SecretStr] = {}
    """With `auth: tokens`: the tokens, by the requester name that builds are recorded under."""
    allow_origin: str | None = None
    """Origin whose pages may read responses (`Access-Control-Allow-Origin`); unset: pages of the same origin only."""
    viewers: int = Field(default=5000, ge=1)
    """Event streams that may be open at once; further viewers are asked to try again."""
    viewers_per_user: int = Field(default=200, ge=0)
    """Event streams that one user (without authentication: one address) may have open at once; 0: up to `viewers`.
    Services have no limit of their own."""
    share_seconds: float = Field(default=10.0, ge=0)
    """Identical requests within this many seconds share one build request."""
    keepalive_seconds: Seconds = 25.0
    """Seconds of silence after which a comment is sent, so that proxies keep the connection open."""
    connect_seconds: Seconds = 30.0
    """Seconds that a request waits for RabbitMQ, as after a restart of both, before it fails."""
    drain_seconds: float = Field(default=5.0, ge=0)
    """Seconds after SIGTERM in which streams may still end by themselves; a second signal ends them at once. Clients of the
    others reconnect and resume."""
    public_url: str | None = Field(default=None, pattern=r"^https?://")
    """URL under which users reach the service, for links to builds; unset: JUPYTERHUB_PUBLIC_URL, else links are paths."""
    stalled_seconds: Seconds = 60.0
    """Seconds after which a viewer that reads nothing is disconnected."""
    name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?$")
    """Name of the durable queue, `hub.<name>.events`, that feeds the store; unset: `<tenant>.service`. The shipped
    permissions require the tenant's name, alone or followed by a dot and more."""
    store_url: SecretStr = SecretStr("sqlite:///rabbit2docker-hub.sqlite")
    """Database of builds and logs: sqlite:///file or postgresql://user:password@host/database. Several instances of the
    service may share a PostgreSQL database."""
    store_log_bytes: int = Field(default=4 * 1024 * 1024, ge=16_384)
    """Bytes of each attempt's log that are stored: one half from its head, the other from its tail."""
    store_bytes: int = Field(default=0, ge=0)
    """Bytes of logs that are stored in all; beyond it the logs of the builds that ended first are deleted. 0: any number."""
    store_days: float = Field(default=90.0, gt=0)
    """Days after which an ended build is deleted from the store."""
    admins: list[str] = []
    """Users who may view and cancel all builds, in addition to the administrators of the JupyterHub."""
    services: list[str] = []
    """Services that act for people: they may name the `requester` of a build, and see all builds. With `auth: jupyterhub`
    in addition to services that are administrators; with `auth: tokens` the names of their tokens."""
    requests_per_user: int = Field(default=300, ge=0)
    """Build requests that one person who is logged in may make in `requests_period_seconds`; 0: any number."""
    requests_per_service: int = Field(default=0, ge=0)
    """Build requests that one service may make in that time for itself; 0: any number."""
    requests_per_address: int = Field(default=60, ge=0)
    """Build requests that one address may make in that time without authentication; 0: any number."""
    requests_per_webhook: int = Field(default=60, ge=0)
    """Build requests that pushes to one repository may make in that time; 0: any number."""
    requests_period_seconds: Seconds = 3600.0
    """Seconds over which requests are counted."""
    ban_networks: dict[str, str] = {}
    """Networks that may not request builds, such as `{"192.0.2.0/24": "the lab"}`; the rejection shows the name."""
    webhooks: list[WebhookSettings] = []
    """Repositories whose pushes are built, as bulk requests. Their webhooks call `webhooks/github` or `webhooks/gitlab`."""
    dead_letters_url: SecretStr | None = None
    """AMQP URL of a user that may read `builds.dead`, such as rabbit2docker-dead-letters of `topology export`. With it,
    administrators have a page of the dead letters, and the API. TLS and `nodes` are those of `amqp`."""
    dead_letters_url_file: Path | None = None
    """File with that URL, in place of `dead_letters_url`."""
    dead_letters_of_all_tenants: bool = False
    """Handle the dead letters of all tenants, and those that name none, instead of this tenant's alone."""
    trusted_proxies: list[str] = ["127.0.0.0/8", "::1/128"]
    """Networks of the proxies in front of the service; their X-Forwarded-For is trusted for the client's address."""
    build_token_secret: SecretStr | None = Field(default=None)
    """Hexadecimal secret of BinderHub's build tokens (`?build_token=…`), shared with their issuer; unset: no token is valid."""
