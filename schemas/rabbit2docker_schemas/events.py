"""Events about requests and builds: one model per kind. Readers ignore fields that they do not know."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final, assert_never

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from rabbit2docker_schemas.reasons import Category, FailureReason, RejectReason


class Kind(StrEnum):
    """Kind of an event: the last word of its routing key."""

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
    """Stage of a build."""

    WAITING = "waiting"
    FETCHING = "fetching"
    BUILDING = "building"
    PUSHING = "pushing"


# A value of this version or one that a later version added, which must not make an older reader fail.
AnyPhase = Annotated[Phase | str, Field(union_mode="left_to_right")]
AnyCategory = Annotated[Category | str, Field(union_mode="left_to_right")]
AnyFailureReason = Annotated[FailureReason | str, Field(union_mode="left_to_right")]
AnyRejectReason = Annotated[RejectReason | str, Field(union_mode="left_to_right")]

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number that every JSON reader, and every database, can hold."""
AttemptNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
ExitCode = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class EventData(BaseModel):
    """The JSON body of an event."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)
    kind: ClassVar[Kind]


class Timings(EventData):
    """Seconds spent in each stage; absent for a stage that was not reached."""

    queued: float | None = None
    """From the request's timestamp, or its receipt, to the creation of the attempt."""
    waiting: float | None = None
    fetching: float | None = None
    building: float | None = None
    pushing: float | None = None


class BuildOptions(EventData):
    """Options of a request beside the repository, as in the request itself."""

    force: bool = False
    """True also if the request has `cache` here."""
    keep_cache: bool = False
    """True if `force` of the request is `cache`."""
    subdir: str | None = None
    build_args: dict[str, str] = {}
    labels: dict[str, str] = {}
    appendix: str | None = None
    timeout_seconds: Count | None = None


class Accepted(EventData):
    """The request started a build, joined one, or named an image that exists."""

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
    """Name and tag of the image in the registry, which may not exist yet. `completed` has the name that counts: it is another
    one if tenants share their public images and the build had to read something with credentials."""
    attached: bool = False
    """True if the request joined a build that is running or ended a moment ago."""
    cached: bool = False
    """True if the image exists; a `completed` event follows at once."""
    requester: str | None = None
    options: BuildOptions | None = None
    """Absent if the request had none, and in events of older services."""
    notice: str | None = None
    """Text for people if not exactly what the request names is built, such as the default branch instead of `master`."""


class Rejected(EventData):
    """The request was refused and starts no build."""

    kind = Kind.REJECTED
    request_id: str
    reason: AnyRejectReason
    message: str
    """Text for people: what is wrong and what to do next."""
    retryable: bool = False
    """True if the same request may be accepted later."""

    @property
    def is_end(self) -> bool:
        """True if the request of this id ends with it: not if a further request has taken the id of an earlier one."""
        return self.reason != RejectReason.REQUEST_ID_REUSED


class ProgressDetail(EventData):
    """Details of a progress message in machine-readable form, for progress bars and tables."""

    layers_done: Count | None = None
    layers_total: Count | None = None
    step: Count | None = None
    steps: Count | None = None
    waiting_for: str | None = None
    """Cause of the wait, such as a pod's waiting reason."""
    retry_in_seconds: float | None = None
    retry_at: AwareDatetime | None = None
    """Time of the next try, such as the end of a rate limit."""
    gives_up_at: AwareDatetime | None = None
    """Time at which the request is rejected if what it waits for is still away."""
    failed_reason: AnyFailureReason | None = None
    """Failure reason of the previous attempt."""
    ahead: Count | None = None
    """Number of requests that are started before this one, while it waits for a free slot. It is true for a moment only."""
    expected_start: AwareDatetime | None = None
    """Time at which the request is started if others keep starting at the pace of late."""


class Progress(EventData):
    """The build made progress, or started to wait for something else."""

    kind = Kind.PROGRESS
    build_id: str
    attempt: AttemptNumber
    """Counted from 1; 0 while the build has no attempt yet."""
    phase: AnyPhase
    message: str
    """Text for people."""
    detail: ProgressDetail = ProgressDetail()
    lines: Count | None = None
    """Lines of the attempt's log before this; absent if no line shows the progress."""

    @property
    def is_new_phase(self) -> bool:
        """True for a new phase or wait, of which a build has a few, and not for one of its many steps or layers."""
        return self.detail.step is None and self.detail.layers_total is None

    @property
    def is_place(self) -> bool:
        """True if it says the place of a request that waits for a slot. After `accepted` it is out of date."""
        return self.detail.ahead is not None


class LogLine(EventData):
    """One line of the builder's output."""

    phase: AnyPhase
    text: str
    ts: AwareDatetime
    """Time at which the builder wrote it."""
    clipped: bool | None = None
    """True if the engine dropped an unknown number of lines here, because a build step exceeded its limit of output, and
    the text says so; absent otherwise. Such lines have no numbers, so no `gap` event names them."""


class Log(EventData):
    """Lines `n`, `n`+1, … of an attempt. Readers keep the highest number seen and skip lines up to it."""

    kind = Kind.LOG
    build_id: str
    attempt: AttemptNumber
    n: Count
    """Number of the first of these lines; each attempt counts from 0."""
    lines: list[LogLine]


class Gap(EventData):
    """Log lines that are lost for good."""

    kind = Kind.GAP
    build_id: str
    attempt: AttemptNumber
    first: Count
    last: Count
    """The last lost line; the log continues with the next number."""
    message: str = ""


class Provenance(EventData):
    """Origin of an image, as its labels `org.opencontainers.image.…` and `io.rabbit2docker.…` state it, too."""

    source: str
    """Address of the repository or dataset."""
    revision: str
    """Commit, or version of the dataset, that the image was built from."""
    version: str
    """Branch, tag or version that the request named; the revision if it named none."""
    created: AwareDatetime
    """Time of the image build."""
    request_id: str
    """The request that started the image build."""
    build_id: str
    """The build that made the image: an earlier one if the engine had it already, such as after a failed push."""
    builder_version: str = ""
    """Version of rabbit2docker that built it."""


class Completed(EventData):
    """The image is in the registry."""

    kind = Kind.COMPLETED
    build_id: str
    image: str
    """Name and tag; with `@` and the digest after a forced build, and where the image existed: nodes may have an older one
    of that tag."""
    digest: str
    """Digest of the manifest, as the registry reports it."""
    size: Count | None = None
    """Compressed size of the layers in the registry, in bytes; absent if the registry does not report it."""
    resolved_ref: str
    cached: bool = False
    timings: Timings = Timings()
    attempt: AttemptNumber | None = None
    """Absent if the image existed."""
    lines: Count | None = None
    """Total number of lines in the attempt's log."""
    repo2docker_version: str | None = None
    builder_image: str | None = None
    """Image of the pod that built it; absent if none did, or if the image existed."""
    provenance: Provenance | None = None
    """Origin of the image; absent if the registry had it."""
    warnings: list[str] = []
    """Texts for people about content that the image lacks, such as files of Git LFS."""


class Failed(EventData):
    """The build ended without an image."""

    kind = Kind.FAILED
    build_id: str
    reason: AnyFailureReason
    category: AnyCategory
    message: str
    """Text for people: what happened and why."""
    hint: str
    """Text for people: what to do next."""
    exit_code: ExitCode | None = None
    """Exit code of the builder; absent if it left none."""
    failed_step: str | None = None
    """The failed step of the image build, as written in the Dockerfile."""
    tail: list[str] = []
    """The last log lines."""
    attempt: AttemptNumber
    timings: Timings = Timings()
    lines: Count | None = None
    """Total number of lines in the attempt's log."""


class Cancelled(EventData):
    """The build was cancelled on request."""

    kind = Kind.CANCELLED
    build_id: str
    by: str
    """Name of the requester, as given in the cancel message."""
    attempt: AttemptNumber
    """0 if there was no attempt yet."""
    lines: Count | None = None
    """Total number of lines in the attempt's log."""


RequestEventData = Accepted | Rejected
TerminalEventData = Completed | Failed | Cancelled
BuildEventData = Progress | Log | Gap | TerminalEventData
AnyEventData = RequestEventData | BuildEventData


def model_of(kind: Kind) -> type[AnyEventData]:
    """Return the model of an event kind."""
    match kind:
        case Kind.ACCEPTED:
            return Accepted
        case Kind.REJECTED:
            return Rejected
        case Kind.PROGRESS:
            return Progress
        case Kind.LOG:
            return Log
        case Kind.GAP:
            return Gap
        case Kind.COMPLETED:
            return Completed
        case Kind.FAILED:
            return Failed
        case Kind.CANCELLED:
            return Cancelled
        case _:
            assert_never(kind)


MODEL_OF: Final = {kind: model_of(kind) for kind in Kind}
"""The model of each event kind; mypy finds a kind without one in `model_of`."""
