"""All errors of the service. The class states whether to try again.

    Rabbit2DockerError
     ├── RequestRejected          never: the request is invalid or not allowed; has a text for the requester
     ├── TransientError           yes: a dependency is away; names what is being waited for
     │    ├── ProviderUnavailable     a repository host did not answer, or limits the rate
     │    ├── RegistryUnavailable     it is unknown whether the registry has an image
     │    ├── ExecutorUnavailable     attempts cannot be created or read at the moment
     │    ├── BrokerUnavailable       RabbitMQ did not confirm
     │    └── StoreUnavailable        the hub's database is away; StoreFull: its disk is full
     ├── StoreRefused             no: the database will never accept this value
     ├── RecordMissing            no: the executor has no such attempt
     ├── NameTaken                under another name: an object that is no record has this one
     ├── AccessRefused            no: RabbitMQ denies the user, password, virtual host or permission
     ├── TopologyMismatch         no: an exchange or queue is missing or differs; names it
     └── ConfigurationError       no: the settings cannot work; ends the program
          └── StateConflict           a consumer with other records works on the virtual host

Exceptions of libraries are translated where the library is called, with `raise … from`, and go no further.
"""

from typing import Final

from rabbit2docker_schemas.reasons import RejectReason

LONGEST_RETRY_AFTER: Final = 86_400.0
"""Seconds to which a wait is limited that another side asks for: it may name any number."""


class Rabbit2DockerError(Exception):
    """Base of everything the service raises on purpose."""


class RequestRejected(Rabbit2DockerError):
    """The request can never become a build as it stands."""

    def __init__(self, reason: RejectReason, message: str, *, retryable: bool = False) -> None:
        """Take the `reason` for programs and the `message` for the requester; `retryable`: it may work later."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


class TransientError(Rabbit2DockerError):
    """A dependency is away for now; the message names it."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take the `message` for users; `retry_after`: seconds until a retry makes sense, if the other side named them.

        The other side may name any number; it is limited to LONGEST_RETRY_AFTER.
        """
        super().__init__(message)
        self.message = message
        self.retry_after = None if retry_after is None else min(max(0.0, retry_after), LONGEST_RETRY_AFTER)


class ProviderUnavailable(TransientError):
    """A repository host did not answer, sent an invalid answer, or limits the rate."""


class RegistryUnavailable(TransientError):
    """The registry gave no answer about an image; unknown is not the same as absent."""


class ExecutorUnavailable(TransientError):
    """Attempts cannot be created, read or changed at the moment."""


class BrokerUnavailable(TransientError):
    """RabbitMQ did not confirm a message in time; it may or may not have been enqueued."""


class StoreUnavailable(TransientError):
    """The hub's database is away."""


class StoreFull(StoreUnavailable):
    """The disk of the hub's database is full."""


class StoreRefused(Rabbit2DockerError):
    """The database will never accept this value."""


class RecordMissing(Rabbit2DockerError):
    """The executor has no such attempt (any more)."""


class NameTaken(Rabbit2DockerError):
    """An object that is no record of this service has the name."""


class AccessRefused(Rabbit2DockerError):
    """RabbitMQ denies the user, the password, the virtual host or a permission."""


class TopologyMismatch(Rabbit2DockerError):
    """An exchange, queue or stream is missing, or exists with other arguments."""


class ConfigurationError(Rabbit2DockerError):
    """The settings cannot work; the message states what to change."""


class StateConflict(ConfigurationError):
    """A consumer with other records works on the same virtual host: both would end the same builds, differently."""
