"""The store's models of builds, which the JSON API returns, and the interface of the store."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import BuildOptions, LogLine, Timings
from rabbit2docker_schemas.requests import BuildRequest


class Record(BaseModel):
    """Base of the store's models."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class BuildState(StrEnum):
    """State of a build; the first five are not terminal."""

    QUEUED = "queued"
    """Requested, not answered yet."""
    WAITING = "waiting"
    FETCHING = "fetching"
    BUILDING = "building"
    PUSHING = "pushing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """The request never became a build."""

    @property
    def is_end(self) -> bool:
        """True for a terminal state."""
        return self in ENDS


ENDS = frozenset({BuildState.COMPLETED, BuildState.FAILED, BuildState.CANCELLED, BuildState.REJECTED})


class Problem(Record):
    """The reason why there is no image."""

    reason: str
    """Code of the failure or rejection."""
    category: str | None = None
    """user, infrastructure, operator or timeout; absent for rejections."""
    message: str
    """For a person."""
    hint: str = ""
    """What to do next."""
    exit_code: int | None = None
    failed_step: str | None = None
    tail: list[str] = []
    """The last log lines."""
    retryable: bool = False


class LogExtent(Record):
    """The stored part of one attempt's log."""

    attempt: int
    lines: int
    """Lines in all: the number of the last known one, plus one."""
    kept: int
    """Lines that are stored."""
    cut_first: int | None = None
    """First of the lines that were cut from the middle; absent when none was."""
    cut_last: int | None = None


class Build(Record):
    """One build, or one request that is not a build (yet)."""

    id: str
    """The build_id. A waiting request has the id that its build will have, unless it joins another build."""
    state: BuildState
    provider: str
    spec: str
    requester: str | None = None
    """The first requester."""
    requesters: list[str] = []
    """All requesters, including those of joined requests."""
    request_id: str
    """The request that started it."""
    requested_at: AwareDatetime
    started_at: AwareDatetime | None = None
    """Time of its acceptance."""
    ended_at: AwareDatetime | None = None
    build_name: str | None = None
    repo_url: str | None = None
    resolved_ref: str | None = None
    notice: str | None = None
    """Text for people if not exactly what the request names is built, such as the default branch instead of `master`."""
    image: str | None = None
    """Name that the image has, or will have, in the registry; with its digest once a forced build has ended, or if the
    image existed."""
    digest: str | None = None
    size: int | None = None
    """Bytes of the layers in the registry."""
    cached: bool = False
    """The image existed."""
    attempt: int = 0
    message: str = ""
    """The latest progress, for a person."""
    retry_at: AwareDatetime | None = None
    """Time of the next try, while the build waits for one."""
    warnings: list[str] = []
    """Texts for people about content that the image lacks."""
    problem: Problem | None = None
    cancelled_by: str | None = None
    timings: Timings = Timings()
    options: BuildOptions | None = None
    """Options of the request; absent when it has none."""
    logs: list[LogExtent] = []
    """Extent of its stored log, one entry per attempt; only in answers about a single build."""


class BuildQuery(Record):
    """A query for builds, newest first."""

    visible_to: str | None = None
    """Only builds that this user requested or joined; None for all."""
    state: tuple[BuildState, ...] = ()
    requester: str | None = None
    """Only builds with this name among the requesters."""
    text: Annotated[str, Field(max_length=256)] = ""
    """Text that occurs in the spec, the repository's URL or the image's name."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: str | None = None
    """`next` of the page before."""


class BuildPage(Record):
    """One page of builds."""

    builds: list[Build]
    next: str | None = None
    """For `before` of the next page; absent on the last one."""


class StoredLine(LogLine):
    """A line of a log, with its number."""

    n: int


class Batch(Record):
    """Requests that were made together."""

    id: str
    kind: str
    """prebuild or replay."""
    size: int | None = None
    """Number of its requests; absent if it is not known beforehand, as for a replay."""
    began_at: AwareDatetime
    """Time of the first answer."""
    counts: dict[BuildState, int]
    """Answered requests by the state of their builds."""
    answered: int
    """Requests that were accepted or rejected. The others wait, or have expired."""
    ended: int
    """Requests whose builds have ended, or that were rejected."""
    over: bool
    """True if all have ended; without a size, all that were answered."""


class BatchRequest(Record):
    """One request of a batch and what became of it."""

    request_id: str
    build_id: str
    state: BuildState
    provider: str = ""
    """Empty for a request that was rejected; as is `spec`."""
    spec: str = ""
    image: str | None = None
    digest: str | None = None
    reason: str | None = None
    """Code of the failure or rejection."""
    message: str = ""
    """For a person: the failure or rejection, or the latest progress."""
    seconds: float | None = None
    """Time from its answer to its end."""


class BatchReport(Batch):
    """A batch with its requests."""

    requests: list[BatchRequest]


class CommitStatus(Record):
    """A commit whose host is to know how its build goes."""

    request_id: str
    provider: str
    repository: str
    """Its name at the host."""
    sha: str
    announced: bool = False
    """The host knows that the build is requested."""
    tries: int = 0
    """Failed tries to write the next status."""


class BuildRecords(Protocol):
    """The store as the web side uses it. Raises StoreUnavailable when the database is away."""

    async def record_request(self, request: BuildRequest, *, at: datetime) -> None:
        """Store a request that is about to be published, under its request_id and requester. Safe to repeat."""

    async def record_share(self, request_id: str, requester: str) -> None:
        """Store a further requester of a request. Safe to repeat."""

    async def add_commit_status(self, status: CommitStatus, *, at: datetime) -> None:
        """Store a commit status that is to be written. Safe to repeat."""

    async def put(self, events: Sequence[Event]) -> None:
        """Store events in one transaction; repeats change nothing."""

    async def build(self, id_: str) -> Build | None:
        """Return a build by its id, the id of a request that led to it, or the id that the request's own build would have."""

    async def builds(self, query: BuildQuery) -> BuildPage:
        """Return builds, newest first."""

    @property
    def batches(self) -> "BatchRecords":
        """The batches."""

    def events(self, build_id: str) -> AsyncGenerator[Event, None]:
        """Yield the events of a build in order: accepted, progress, lines, gaps (also for cut lines), the end."""

    def lines(
        self, build_id: str, *, attempt: int | None = None, first: int = 0, last: int | None = None
    ) -> AsyncGenerator[StoredLine, None]:
        """Yield the stored lines `first` to `last`, both included, of an attempt, by default the latest."""

    async def check_rate(self, requester: str, *, limit: int, seconds: float, at: datetime) -> "Allowance":
        """Count a request against a limit of `limit` in any `seconds`, and return whether it is allowed.

        A request over the limit is not counted.
        """


class BatchRecords(Protocol):
    """The batches in the store, as far as their builds are visible to a user; None: all."""

    async def listed(self, visible_to: str | None, *, limit: int) -> list[Batch]:
        """Return the latest batches, newest first."""

    async def exists(self, id_: str, visible_to: str | None) -> bool:
        """Return whether there is a batch of which the user may see any build."""

    async def find(self, id_: str, visible_to: str | None) -> BatchReport | None:
        """Return a batch with its requests, in the order of their answers."""


class Allowance(Record):
    """Result of a rate-limit check."""

    allowed: bool
    limit: int
    remaining: int
    reset_at: AwareDatetime
    """Time of the next allowed request, if none remains; else the time when all of them are available again."""
