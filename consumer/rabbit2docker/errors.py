"""All errors of the service. The class answers the question "try again?".

    Rabbit2DockerError
     ├── RequestRejected          never: the request is wrong or refused; says why in words for a person
     ├── TransientError           yes: something we need is away; says what is being waited for
     │    ├── ProviderUnavailable     a repository host did not answer, or limits us
     │    ├── RegistryUnavailable     the registry can not say whether an image exists
     │    ├── ExecutorUnavailable     attempts cannot be created or read at the moment
     │    ├── BrokerUnavailable       RabbitMQ did not confirm
     │    └── StoreUnavailable        the hub's database is away
     ├── StoreRefused             no: the database takes this value never
     ├── RecordMissing            no: the executor does not know the attempt
     ├── NameTaken                under another name: something that is no record has this one
     ├── AccessRefused            no: RabbitMQ refuses the user, password, virtual host or permission
     ├── TopologyMismatch         no: an exchange or queue is missing or differs; says which
     └── ConfigurationError       no: the settings cannot work; ends the program

Libraries' own exceptions are translated where the library is called, with `raise … from`, and never pass further.
"""

from rabbit2docker_schemas.reasons import RejectReason


class Rabbit2DockerError(Exception):
    """Base of everything the service raises on purpose."""


class RequestRejected(Rabbit2DockerError):
    """The request can never become a build as it stands."""

    def __init__(self, reason: RejectReason, message: str, *, retryable: bool = False) -> None:
        """Take the `reason` for programs and the `message` for a person; `retryable`: the same may work later."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


class TransientError(Rabbit2DockerError):
    """Something needed is away for now; the message says what is being waited for."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take the `message` for a person, and seconds until a retry makes sense where the other side told them."""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ProviderUnavailable(TransientError):
    """A repository host did not answer, answered nonsense, or limits the rate."""


class RegistryUnavailable(TransientError):
    """The registry cannot tell whether an image exists: absent is not the same as unknown."""


class ExecutorUnavailable(TransientError):
    """Attempts cannot be created, read or changed at the moment."""


class BrokerUnavailable(TransientError):
    """RabbitMQ did not confirm a message in time; it may or may not have been enqueued."""


class StoreUnavailable(TransientError):
    """The database in which the hub remembers builds is away."""


class StoreRefused(Rabbit2DockerError):
    """The database will never take this value."""


class RecordMissing(Rabbit2DockerError):
    """The executor does not know the attempt (any more)."""


class NameTaken(Rabbit2DockerError):
    """Something that is no record of ours has the name."""


class AccessRefused(Rabbit2DockerError):
    """RabbitMQ refuses the user, the password, the virtual host or a permission."""


class TopologyMismatch(Rabbit2DockerError):
    """An exchange, queue or stream is missing, or exists with other arguments."""


class ConfigurationError(Rabbit2DockerError):
    """The settings cannot work; the message says what to change."""
