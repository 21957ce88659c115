"""Settings of the connection to RabbitMQ."""

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group, Seconds


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
