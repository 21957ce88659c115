"""The interface of an executor: durable records of attempts, their log lines, and the replicas that share them.

The records are the only durable state of the consumer: a service that starts reads them and continues. A record has
a part that never changes (`AttemptSpec`), a part that the service writes (`AttemptStatus`), and a part that the
executor observes (state, result, node).
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, NewType, Protocol, Self, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from rabbit2docker_schemas.events import Kind, Phase
from rabbit2docker_schemas.ids import BuildId, RequestId
from rabbit2docker_schemas.reasons import FailureReason
from rabbit2docker_schemas.requests import BuildRequest, with_unknown_fields
from rabbit2docker_schemas.tracing import Trace

AttemptName = NewType("AttemptName", str)
"""Name of a record, a DNS label of at most 63 characters; `attempt_names` forms it from the build name."""
RECORD_VERSION: Final = "1.0"
"""Version of the records that this service writes. The major version grows when an older service must not touch them."""


class Stored(BaseModel):
    """A part of a record as it is read. Unknown fields are ignored, so that an older version reads what a newer one wrote."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class VersionedPart(Stored):
    """A part of a record that services write, as `record_format` stores it. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: str = RECORD_VERSION
    """Version with which the part was created, as major.minor."""


class AttemptSpec(VersionedPart):
    """The build to run; fixed when the record is created."""

    name: AttemptName
    build_id: BuildId
    build_name: str
    attempt: int
    tenant: str
    request_id: RequestId
    """The request that started the build; others may have joined it since."""
    request: SerializeAsAny[BuildRequest]
    repo_url: str
    resolved_ref: str
    source_ref: str | None = None
    """Full name of the ref at which the commit was found, for servers that do not give out commits by their ids."""
    content_provider: str
    image: str
    private_image: str | None = None
    """Name of the image if some of its content needs credentials; None if `image` is the tenant's own in any case."""
    fingerprint: str
    """Equal for builds of one tenant that would produce the same image, so that a request may join another's build."""
    timeout_seconds: int
    idle_seconds: int
    queued_at: AwareDatetime
    """Time of publication if the request has one, else time of receipt."""
    created_at: AwareDatetime
    avoid: tuple[str, ...] = ()
    """Nodes on which earlier attempts of the build failed because of the infrastructure."""
    interruptions: int = 0
    """Earlier attempts that ended because an engine, a node or the registry went away. They are not the build's doing."""
    is_last: bool = False
    """True if no further attempt may follow: what the build needs was away for too long."""
    generation: str = ""
    """Distinguishes this build from an earlier one of the same request that was forgotten. Part of event ids."""
    trace: Trace | None = None
    """Trace context of the request that started the build."""
    builder_image: str | None = None
    """Image of the pod that builds; None where the builder runs without one."""

    def is_same_attempt(self, other: "AttemptSpec") -> bool:
        """Return whether both are of the same attempt of a build, whatever their names."""
        own, others = ((spec.build_id, spec.generation, spec.attempt) for spec in (self, other))
        return own == others

    @field_validator("request", mode="before")
    @classmethod
    def _keep_unknown_fields(cls, value: object) -> object:
        return with_unknown_fields(BuildRequest, value) if isinstance(value, dict) else value


class StoredOutcome(Stored):
    """The outcome of an attempt, decided once: kind and data of the terminal event, or that another attempt follows."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    """`completed`, `failed`, `cancelled` or `retry`."""
    data: dict[str, Any]


class Answer(Stored):
    """The part of a request's `accepted` event that does not follow from the spec of its build."""

    model_config = ConfigDict(extra="allow", frozen=True)

    provider: str
    spec: str
    requester: str | None = None
    trace: Trace | None = None
    notice: str | None = None
    force: bool = False
    keep_cache: bool = False
    timeout_seconds: int | None = None


class AttemptStatus(VersionedPart):
    """The part of a record that the service writes."""

    requests: dict[str, str] = {}
    """Digests of the requests that share the build, by request id."""
    unanswered: dict[str, Answer] = {}
    """Answers that may not be published yet, by request id. Any replica publishes them before it publishes the end."""
    confirmed_line: int = -1
    """Number of the last line up to which RabbitMQ has confirmed all; -1 for none."""
    cancelled_by: str | None = None
    """Set before the builder is stopped, so that the cause of its end is known after a crash."""
    cancel_reason: str | None = None
    """`cancelled` if a user cancelled the build; a failure reason such as `timeout` if the service stopped it."""
    cancel_message: str | None = None
    """Explanation for users, where the service stopped the build and the reason needs one."""
    outcome: StoredOutcome | None = None
    reported: bool = False
    """True once RabbitMQ has confirmed the terminal event, or the record of the next attempt exists."""
    reported_at: AwareDatetime | None = None

    @property
    def is_joinable(self) -> bool:
        """True while a further request can join the build: not once it is being cancelled or its outcome is decided."""
        return self.outcome is None and self.cancelled_by is None and not self.reported

    @property
    def has_just_completed(self) -> bool:
        """True between a completed outcome and its report, when not everybody can know the image yet."""
        return self.outcome is not None and self.outcome.kind == Kind.COMPLETED and not self.reported


class ImageOrigin(Stored):
    """Labels of the image, as the engine has it."""

    created: AwareDatetime
    request_id: str
    build_id: str
    builder: str = ""
    version: str = ""


class BuilderResult(Stored):
    """The result that the builder writes before it exits."""

    reason: str
    exit_code: int
    message: str = ""
    image: str | None = None
    digest: str | None = None
    size: int | None = None
    timings: dict[str, float] = {}
    lines: int | None = None
    phase: str | None = None
    failed_step: str | None = None
    repo2docker_version: str | None = None
    provenance: ImageOrigin | None = None
    warnings: tuple[str, ...] = ()

    @field_validator("provenance", mode="wrap")
    @classmethod
    def _drop_unreadable(cls, value: object, validate: ValidatorFunctionWrapHandler) -> ImageOrigin | None:
        """Ignore labels that are not as the builder writes them: an image may be another builder's."""
        try:
            return cast("ImageOrigin | None", validate(value))
        except ValidationError:
            return None


class AttemptState(StrEnum):
    """The state of an attempt as the executor observes it."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class ExternalEnd(Stored):
    """The reason for an end that came from outside the builder, such as an evicted pod."""

    reason: FailureReason
    message: str
    """Explanation for users."""


class PendingDeadline(ExternalEnd):
    """The reason to fail an attempt that is still pending at `at`."""

    at: AwareDatetime


class Attempt(Stored):
    """A snapshot of a record."""

    spec: AttemptSpec
    status: AttemptStatus
    state: AttemptState
    result: BuilderResult | None = None
    """Written by the builder; None while it runs, and if it was killed before it could write."""
    external_end: ExternalEnd | None = None
    """Set if something other than the builder ended the attempt, and the executor knows what."""
    waiting_for: str | None = None
    """Why the attempt is still pending, as a text for users."""
    pending_deadline: PendingDeadline | None = None
    """Set if the attempt is unlikely to ever start."""
    node: str | None = None
    """The node or machine that runs the builder."""
    created_by: str | None = None
    """The replica that created the record; None where there is only one."""
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None

    @property
    def name(self) -> AttemptName:
        """The name of the record."""
        return self.spec.name

    @property
    def is_live(self) -> bool:
        """True until the builder has ended; the attempt takes a build slot."""
        return self.state is not AttemptState.ENDED


@dataclass(frozen=True, slots=True)
class BuilderLine:
    """One numbered line of the builder's log."""

    n: int
    ts: datetime
    phase: Phase
    text: str
    progress: dict[str, int] | None = None
    """`layers_done` and `layers_total` while pushing, `step` and `steps` while building."""
    clipped: bool = False
    """True if the engine dropped an unknown number of lines here; the text says so."""


@dataclass(frozen=True, slots=True)
class MissingLines:
    """The lines `first` to `last` are lost."""

    first: int
    last: int


Lines = list[BuilderLine] | MissingLines


@dataclass(frozen=True, slots=True)
class Changed:
    """A record was created, or differs from its previous snapshot."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Removed:
    """A record is gone, whether the service deleted it or not."""

    name: AttemptName


@dataclass(frozen=True, slots=True)
class Synced:
    """Every record that existed when reading began has been delivered."""


Change = Changed | Removed | Synced


@dataclass(frozen=True, slots=True)
class Members:
    """The live replicas, as this one sees them."""

    me: str
    live: frozenset[str]
    """Lacks `me` while this replica cannot renew its claim to be alive; it then owns no builds."""


class AttemptStore(Protocol):
    """Creates attempts, observes them, and keeps their records. All methods may raise ExecutorUnavailable."""

    checkpoint_seconds: float
    """Minimum pause between two writes of `confirmed_line` alone: each costs an fsync or an API call."""

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Create the record and start the builder, or return the existing record of that name, whatever its spec.

        The flag is True if the record was created by this call. Safe to repeat after a crash at any point: a record
        without a builder gets one. Raises NameTaken if an object that is not a record has the name.
        """

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None if there is no such record."""

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status atomically, and return the snapshot that results.

        `change` maps the current status to the new one; it is called again after a conflict. Raises RecordMissing.
        """

    def changes(self) -> AsyncIterator[Change]:
        """Yield every record, then Synced, then each change until the iterator is closed. For one reader at a time."""

    async def cancel(self, name: AttemptName) -> None:
        """Stop the builder with SIGTERM, then SIGKILL after a grace period. Returns before the builder has ended.

        Set `cancelled_by` in the status first. Has no effect on an attempt that has ended or does not exist.
        """

    async def delete(self, name: AttemptName) -> None:
        """Delete the record and the log of an attempt that has ended. Ignores names that do not exist."""

    async def sweep(self) -> None:
        """Remove resources that belong to no record. The cleaner of one replica calls it periodically."""


class LogSource(Protocol):
    """Reads the builders' logs."""

    def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Yield the lines numbered above `after` in order, as they are written, until the attempt has ended.

        Raises RecordMissing, ExecutorUnavailable.
        """


class Membership(Protocol):
    """Knows which replicas of the service are alive."""

    def members(self) -> AsyncIterator[Members]:
        """Yield the live replicas, at once and after each change, until closed. For one reader at a time."""


class EngineCheck(Protocol):
    """Knows whether builds would find a Docker engine."""

    engine_check_seconds: float
    """Pause between two checks while the engine answers."""

    async def engine_problem(self) -> str | None:
        """Return why no build can reach a Docker engine now, as a sentence for people; None if one can."""


class Executor(AttemptStore, LogSource, Membership, EngineCheck, Protocol):
    """A place where attempts run: a context manager that is all four."""

    async def __aenter__(self) -> Self:
        """Open it. Raises ConfigurationError if it cannot work as configured."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it. Builders continue to run."""

    async def state_id(self) -> str:
        """Return a name for the set of records, as `state_name` forms it. Raises ExecutorUnavailable.

        It is the same in all replicas that share the records, and in every later run on them.
        """

    def problems(self) -> Mapping[str, str | None]:
        """Return the conditions for readiness by name: None for each that holds, else a description of the problem."""
