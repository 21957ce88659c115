"""What every executor offers: durable records of attempts, their lines, and their end.

The record in the executor is the only memory of a build on the consumer side: a service that starts anew reads
the records and goes on. A record has a part that never changes (`AttemptSpec`), a part that the service writes
(`Marks`), and what the executor observes (state, result, place).
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, NewType, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from rabbit2docker_schemas.events import Phase
from rabbit2docker_schemas.ids import BuildId, RequestId
from rabbit2docker_schemas.reasons import FailureReason
from rabbit2docker_schemas.requests import BuildRequest

AttemptName = NewType("AttemptName", str)
"""Name of a record: the build name for attempt 1, with a suffix otherwise. At most 63 characters, a DNS label."""


class Stored(BaseModel):
    """A part of a record as it is written down; a newer version's fields do not break an older reader."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AttemptSpec(Stored):
    """What to build: fixed when the record is made."""

    name: AttemptName
    build_id: BuildId
    build_name: str
    attempt: int
    tenant: str
    request_id: RequestId
    """The request that started the build."""
    request: BuildRequest
    repo_url: str
    resolved_ref: str
    content_provider: str
    image: str
    fingerprint: str
    """Equal fingerprints mean the same production for the same tenant: a request may join it."""
    timeout_seconds: int
    idle_seconds: int
    queued_at: AwareDatetime
    """When the request was published, as far as it says, else when it was received."""
    created_at: AwareDatetime
    avoid: tuple[str, ...] = ()
    """Places where earlier attempts of the build failed for reasons of the infrastructure."""


class StoredOutcome(Stored):
    """How the attempt ended, decided once: the terminal event's kind and data, or the wish for another attempt."""

    kind: str
    """completed, failed, cancelled or retry."""
    data: dict[str, Any]


class AttemptStatus(Stored):
    """What the service notes on a record."""

    requests: dict[str, str] = {}
    """Digest of each request that shares the build, by request_id."""
    confirmed_line: int = -1
    """Every line up to this one is confirmed by RabbitMQ."""
    cancelled_by: str | None = None
    """Set before the builder is ended, so that its end is understood after any crash."""
    cancel_reason: str | None = None
    """`cancelled` for a person's wish, or a failure reason such as `timeout` when the service ended it."""
    cancel_message: str | None = None
    """What to tell people where the service ended it and the reason alone does not say enough."""
    outcome: StoredOutcome | None = None
    reported: bool = False
    """RabbitMQ has confirmed the terminal event (or the next attempt's record exists)."""
    reported_at: AwareDatetime | None = None


class BuilderResult(Stored):
    """What the builder says when it ends."""

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


class AttemptState(StrEnum):
    """What the executor sees of an attempt."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class ExternalEnd(Stored):
    """Why an attempt ended, or will have to be ended, as the executor sees it from outside of the builder."""

    reason: FailureReason
    message: str
    """For a person."""


class PendingDeadline(ExternalEnd):
    """Why a pending attempt is given up when it still does not run at `at`."""

    at: AwareDatetime


class Attempt(Stored):
    """A snapshot of a record."""

    spec: AttemptSpec
    status: AttemptStatus
    state: AttemptState
    result: BuilderResult | None = None
    """What the builder wrote; absent while it runs, and when it was ended before it could write."""
    external_end: ExternalEnd | None = None
    """What ended the builder from outside; absent where the builder's own words say it, or nobody knows."""
    waiting_for: str | None = None
    """Why a pending attempt does not run yet, in words for a person."""
    pending_deadline: PendingDeadline | None = None
    """When and why waiting any longer makes no sense."""
    node: str | None = None
    """Node or machine of the attempt."""
    created_by: str | None = None
    """The replica that made it; None where there is only one."""
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None

    @property
    def name(self) -> AttemptName:
        """Return the record's name."""
        return self.spec.name

    @property
    def is_live(self) -> bool:
        """Tell whether the attempt takes a slot: it may still run."""
        return self.state is not AttemptState.ENDED


@dataclass(frozen=True, slots=True)
class BuilderLine:
    """One numbered line of the builder."""

    n: int
    ts: str
    """RFC 3339."""
    phase: Phase
    text: str
    progress: dict[str, int] | None = None
    """layers_done and layers_total while pushing, step and steps while building."""


@dataclass(frozen=True, slots=True)
class MissingLines:
    """Lines `first`..`last` can no longer be read anywhere."""

    first: int
    last: int


Lines = list[BuilderLine] | MissingLines


@dataclass(frozen=True, slots=True)
class Changed:
    """A record is new or differs from before."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Removed:
    """A record is gone, by us or from outside."""

    name: AttemptName


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that existed when watching began has been told."""


Change = Changed | Removed | Synced


@dataclass(frozen=True, slots=True)
class Members:
    """The replicas that live, as this one sees them."""

    me: str
    live: frozenset[str]
    """Empty of `me` while this replica cannot prove to the others that it lives: then it owns nothing."""


class Executor(Protocol):
    """Creates attempts and knows how they are. All methods may raise ExecutorUnavailable."""

    checkpoint_seconds: float
    """The number of the last confirmed line is written down at most this often: a writing costs an fsync or a call."""

    async def __aenter__(self) -> Self:
        """Open it; raises ConfigurationError when it cannot work as configured."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; attempts run on."""

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Make the record and start the builder, or return the record of that name, whatever it is about.

        The flag tells whether it was made now. Safe to repeat after a crash at any point: a record without a
        builder gets one. Raises NameTaken when something that is no record has the name.
        """

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None when there is no such record."""

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status as one step: `change` is given the current ones and may be called again on conflict.

        Returns the snapshot after it. Raises RecordMissing.
        """

    def changes(self) -> AsyncIterator[Change]:
        """Tell every record, then Synced, then each change until the iterator is closed. One reader."""

    def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Read the lines above number `after` in order, as they are written, to the last one of an attempt that ended.

        Raises RecordMissing.
        """

    async def cancel(self, name: AttemptName) -> None:
        """End the builder (SIGTERM, then SIGKILL after a grace); returns when asked, not when it has ended.

        Mark `cancelled_by` before. Nothing happens to an attempt that has ended or is unknown.
        """

    async def forget(self, name: AttemptName) -> None:
        """Remove the record and the log of an attempt that has ended; unknown names are fine."""

    def members(self) -> AsyncIterator[Members]:
        """Tell which replicas live, at once and whenever that changes, until the iterator is closed. One reader."""

    def problems(self) -> Mapping[str, str | None]:
        """Return what has to be well for the executor to be ready: None for each that is, else what is wrong."""

    async def sweep(self) -> None:
        """Remove leftovers that belong to no record; the cleaner of one replica calls it now and then."""
