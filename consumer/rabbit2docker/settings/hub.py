"""Settings of `rabbit2docker hub`, the service for a JupyterHub."""

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds
from rabbit2docker.settings.constants import HubAuth


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
