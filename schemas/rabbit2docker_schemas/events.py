"""What is told about requests and builds. One model a kind; readers ignore fields they do not know."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from rabbit2docker_schemas.reasons import Category, FailureReason, RejectReason


class Kind(StrEnum):
    """The last word of a results routing key."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    PROGRESS = "progress"
    LOG = "log"
    GAP = "gap"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


REQUEST_KINDS: Final = frozenset({Kind.ACCEPTED, Kind.REJECTED})
TERMINAL_KINDS: Final = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.CANCELLED})


class Phase(StrEnum):
    """Where a build stands."""

    WAITING = "waiting"
    FETCHING = "fetching"
    BUILDING = "building"
    PUSHING = "pushing"


# A word of this version, or one that a later version has added: a reader that is older must not stumble over it.
AnyPhase = Annotated[Phase | str, Field(union_mode="left_to_right")]
AnyCategory = Annotated[Category | str, Field(union_mode="left_to_right")]
AnyFailureReason = Annotated[FailureReason | str, Field(union_mode="left_to_right")]
AnyRejectReason = Annotated[RejectReason | str, Field(union_mode="left_to_right")]


class EventData(BaseModel):
    """The JSON body of an event."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)
    kind: ClassVar[Kind]


class Timings(EventData):
    """Seconds spent in each stage; absent where a stage was not reached."""

    queued: float | None = None
    """From the request's timestamp (or its receipt) to the creation of the attempt."""
    waiting: float | None = None
    fetching: float | None = None
    building: float | None = None
    pushing: float | None = None


class BuildOptions(EventData):
    """What a request asked for beside the repository, as in the request itself."""

    force: bool = False
    subdir: str | None = None
    build_args: dict[str, str] = {}
    labels: dict[str, str] = {}
    appendix: str | None = None
    timeout_seconds: int | None = None


class Accepted(EventData):
    """The request is a build now, or has joined one, or its image exists."""

    kind = Kind.ACCEPTED
    request_id: str
    build_id: str
    build_name: str
    """BinderHub's build name."""
    provider: str
    spec: str
    resolved_ref: str
    repo_url: str
    image: str
    """Name and tag under which the image is, or will be, in the registry."""
    attached: bool = False
    """A build that runs (or ended a moment ago) was joined."""
    cached: bool = False
    """The image exists: a `completed` event follows at once."""
    requester: str | None = None
    options: BuildOptions | None = None
    """Absent when the request had none, and from services that do not tell them yet."""


class Rejected(EventData):
    """The request is no build and will be none."""

    kind = Kind.REJECTED
    request_id: str
    reason: AnyRejectReason
    message: str
    """For a person: what is wrong and what to do."""
    retryable: bool = False
    """The same request may be accepted later."""


class ProgressDetail(EventData):
    """Numbers and words behind a progress message, for bars and tables."""

    layers_done: int | None = None
    layers_total: int | None = None
    step: int | None = None
    steps: int | None = None
    waiting_for: str | None = None
    """What is being waited for, such as a pod's waiting reason."""
    retry_in_seconds: float | None = None
    failed_reason: AnyFailureReason | None = None
    """Why the attempt before this one failed."""


class Progress(EventData):
    """The build has come further, or waits for something else than before."""

    kind = Kind.PROGRESS
    build_id: str
    attempt: int
    """From 1; 0 while the build has no attempt yet."""
    phase: AnyPhase
    message: str
    """For a person."""
    detail: ProgressDetail = ProgressDetail()


class LogLine(EventData):
    """One line that the builder wrote."""

    phase: AnyPhase
    text: str
    ts: AwareDatetime
    """When the builder wrote it."""


class Log(EventData):
    """Lines `n`, `n`+1, … of an attempt. Keep the highest number seen: what is not above it is known already."""

    kind = Kind.LOG
    build_id: str
    attempt: int
    n: Annotated[int, Field(ge=0)]
    """Number of the first of these lines; each attempt counts from 0."""
    lines: list[LogLine]


class Gap(EventData):
    """Lines that exist nowhere any more."""

    kind = Kind.GAP
    build_id: str
    attempt: int
    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]
    """The last lost line; what follows has the number after it."""
    message: str = ""


class Completed(EventData):
    """The image is in the registry."""

    kind = Kind.COMPLETED
    build_id: str
    image: str
    digest: str
    """Digest of the manifest, as the registry reports it."""
    size: int | None = None
    """Bytes of the layers as the registry holds them, which is compressed; absent where it does not say."""
    resolved_ref: str
    cached: bool = False
    timings: Timings = Timings()
    attempt: int | None = None
    """Absent when the image existed."""
    lines: int | None = None
    """Lines that the attempt's log has in all."""
    repo2docker_version: str | None = None


class Failed(EventData):
    """The build ended without an image."""

    kind = Kind.FAILED
    build_id: str
    reason: AnyFailureReason
    category: AnyCategory
    message: str
    """For a person."""
    hint: str
    """What to do next."""
    exit_code: int | None = None
    """The builder's; absent if it left none."""
    failed_step: str | None = None
    """The step of the image build that failed, as the Dockerfile has it."""
    tail: list[str] = []
    """The last log lines."""
    attempt: int
    timings: Timings = Timings()
    lines: int | None = None
    """Lines that the attempt's log has in all."""


class Cancelled(EventData):
    """The build was ended on somebody's wish."""

    kind = Kind.CANCELLED
    build_id: str
    by: str
    """Who cancelled, as far as the cancel message says."""
    attempt: int
    """0 if no attempt had been made."""
    lines: int | None = None
    """Lines that the attempt's log has in all."""


RequestEventData = Accepted | Rejected
TerminalEventData = Completed | Failed | Cancelled
BuildEventData = Progress | Log | Gap | TerminalEventData
AnyEventData = RequestEventData | BuildEventData

MODEL_OF: Final[dict[Kind, type[AnyEventData]]] = {
    Kind.ACCEPTED: Accepted,
    Kind.REJECTED: Rejected,
    Kind.PROGRESS: Progress,
    Kind.LOG: Log,
    Kind.GAP: Gap,
    Kind.COMPLETED: Completed,
    Kind.FAILED: Failed,
    Kind.CANCELLED: Cancelled,
}
Major = Literal["v1"]
