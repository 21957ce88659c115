"""All errors of the service. The class states whether to try again.

    Rabbit2DockerError
     ├── RequestRejected          never: the request is invalid or not allowed; has a text for the requester
     │    ├── RegistryDenied          the registry does not accept the operator's credentials
     │    └── CredentialsRefused      a repository's host does not accept those of the tenant, or has an unknown key
     │         └── AppRefused         it gives the tenant's GitHub App no token for a repository
     ├── TransientError           yes: a dependency is away; names what is being waited for
     │    ├── ProviderUnavailable     a repository host did not answer, or limits the rate
     │    ├── RegistryUnavailable     it is unknown whether the registry has an image
     │    ├── LimitReached            a limit of the operator is used up; it ends by itself
     │    ├── ExecutorUnavailable     attempts cannot be created or read at the moment
     │    ├── EngineUnavailable       the Docker engine or its disk cannot be asked
     │    ├── BrokerUnavailable       RabbitMQ did not confirm
     │    │    └── MessageRefused     it works, but a queue of the message is full or has no majority
     │    ├── StreamUnavailable       the stream of one tenant takes no events
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

from dataclasses import dataclass
from enum import StrEnum
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


class RegistryDenied(RequestRejected):
    """The registry refuses the configured credentials, or there are none; only the operator can change that."""

    def __init__(self, message: str) -> None:
        """Take the `message` for users."""
        super().__init__(RejectReason.REGISTRY_DENIED, message, retryable=True)


class CredentialsRefused(RequestRejected):
    """A repository's host refuses the tenant's credentials, or is not the host they are for; the operator can change that."""

    def __init__(self, message: str, reason: RejectReason = RejectReason.CREDENTIALS_REFUSED) -> None:
        """Take the `message` for users; `reason` may be HOST_KEY_REFUSED."""
        super().__init__(reason, message, retryable=True)


class AppRefused(CredentialsRefused):
    """A host gives a tenant's GitHub App no token for a repository, which may be public all the same."""


class DependencyKind(StrEnum):
    """Kinds of what a request or a build depends on, as metrics label them."""

    HOST = "host"
    REPOSITORY = "repository"
    REGISTRY = "registry"
    EXECUTOR = "executor"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something outside the service that requests and builds need, and that may be away for hours."""

    kind: DependencyKind
    name: str = ""
    """Host name or address; empty where there is only one."""

    @property
    def title(self) -> str:
        """The name for people."""
        match self.kind:
            case DependencyKind.HOST | DependencyKind.REPOSITORY:
                return self.name
            case DependencyKind.REGISTRY:
                return f"the registry {self.name}"
            case DependencyKind.EXECUTOR:
                return "the executor"
            case DependencyKind.ENGINE:
                return "the Docker engine"


ENGINE: Final = Dependency(DependencyKind.ENGINE)
EXECUTOR: Final = Dependency(DependencyKind.EXECUTOR)


class TransientError(Rabbit2DockerError):
    """A dependency is away for now; the message names it."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, outage_of: Dependency | None = None
    ) -> None:
        """Take the `message` for users.

        `retry_after`: seconds until a retry makes sense, if the other side named them, which may be any number; it is
        limited to LONGEST_RETRY_AFTER. `outage_of`: the dependency that
        is away, where that is the cause: requests wait for its return, however often they are tried until then.
        """
        super().__init__(message)
        self.message = message
        self.retry_after = None if retry_after is None else min(max(0.0, retry_after), LONGEST_RETRY_AFTER)
        self.outage_of = outage_of


class ProviderUnavailable(TransientError):
    """A repository host did not answer, sent an invalid answer, or limits the rate."""


class RegistryUnavailable(TransientError):
    """The registry gave no answer about an image; unknown is not the same as absent."""


class LimitReached(TransientError):
    """A limit of the operator on builds is used up for now."""

    def __init__(self, message: str, *, limit: str, retry_after: float | None = None) -> None:
        """Take the `message` for users and the name of the `limit`; `retry_after` if its end is known."""
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


class ExecutorUnavailable(TransientError):
    """Attempts cannot be created, read or changed at the moment."""


class EngineUnavailable(TransientError):
    """The Docker engine does not answer, or refuses what it is asked for."""


class BrokerUnavailable(TransientError):
    """RabbitMQ did not confirm a message in time; it may or may not have been enqueued."""


class MessageRefused(BrokerUnavailable):
    """RabbitMQ works, but a queue of the message is full or has no majority. Other queues may have taken it."""


class StreamUnavailable(TransientError):
    """The stream of one tenant takes no events, so that its requests cannot be answered for now."""


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
