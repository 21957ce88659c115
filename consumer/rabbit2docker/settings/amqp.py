"""Settings of the connection to RabbitMQ."""

from pathlib import Path

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds


class AmqpSettings(Group):
    """The connection to RabbitMQ."""

    url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    """amqp:// or amqps:// URL with user, password and virtual host."""
    url_file: Path | None = None
    """File with that URL, in place of `url`. Like all files here, it is read again at each connect: a new content needs no
    restart."""
    password_file: Path | None = None
    """File with the password, in place of the one in the URL."""
    nodes: list[str] = []
    """host or host:port of each node of a RabbitMQ cluster, in place of the one in the URL. They are tried in random order."""
    ca_file: Path | None = None
    """PEM file of the certificate authority for amqps:// and https://; unset: those of the system."""
    certificate_file: Path | None = None
    """PEM file of the client certificate for amqps://."""
    key_file: Path | None = None
    """PEM file of its key; unset: the key is in `certificate_file`."""
    external: bool = False
    """Log in with the client certificate (EXTERNAL) instead of user and password."""
    management_url: SecretStr | None = None
    """http(s) URL of the management API with user and password; needed only to see bindings and policies."""
    management_url_file: Path | None = None
    """File with that URL, in place of `management_url`."""
    entry_exchange: bool | None = None
    """Publish requests to the tenant's own exchange, `builds.entry.<tenant>`, instead of `builds`; unset: unless the tenant
    is `default`."""
    send_user_id: bool = True
    """Name the user of the URL as `user_id` of requests, which RabbitMQ validates. Off where RabbitMQ knows the user by
    another name, as with tokens or client certificates."""
    tenant_users: dict[str, str] = {}
    """For `rabbit2docker run`: the RabbitMQ user of a tenant, such as `{"alpha": "hub-alpha"}`. Messages of this tenant
    without its validated `user_id` count as forged, as do those of other tenants with it."""
    heartbeat: int = Field(default=15, ge=5, le=120)
    """Seconds between heartbeats. A connection that went silent is detected after about three of them."""
    prefetch: int = Field(default=8, ge=1, le=100)
    """Requests that one replica processes at once. A request is held for seconds, never for a whole build."""
    publish_timeout: Seconds = 10.0
    """Seconds to wait for a publisher confirm before the message is sent again."""
    publish_window: int = Field(default=100, ge=1, le=1000)
    """Unconfirmed messages in flight; more than about 100 gain nothing."""
    outbox_size: int = Field(default=10_000, ge=100)
    """Events held in memory while RabbitMQ is away. Nothing is dropped beyond it: followers wait, and read log lines again."""
    hub_queue_type: str | None = Field(default=None, pattern="^(quorum|classic)$")
    """Type of a hub's durable queue. classic: one node has it; quorum: the nodes of a cluster have copies, so that a lost one
    costs the hub nothing. Unset: quorum if `nodes` names several. A queue that exists is used as it is."""
    hub_backlog_bytes: int = Field(default=16 * 1024 * 1024, ge=65_536)
    """Bytes of each tenant's events held in memory while a hub's queue refuses them. Beyond it, the hub misses the oldest
    ones; the tenant's stream has them."""
    watchdog_after: Seconds = 30.0
    """Seconds that a channel may be dead on a living connection before both are opened anew."""
    declare: bool = True
    """Declare exchanges, queues and streams at start if the user may; otherwise run `topology declare` beforehand."""

    @property
    def has_management(self) -> bool:
        """Return whether the management API is configured."""
        return self.management_url is not None or self.management_url_file is not None

    @property
    def type_of_hub_queues(self) -> str:
        """Return the type of a hub's durable queue, quorum or classic."""
        return self.hub_queue_type or ("quorum" if len(self.nodes) > 1 else "classic")
