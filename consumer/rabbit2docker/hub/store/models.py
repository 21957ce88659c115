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


class BuildRecords(Protocol):
    """The store as the web side uses it. Raises StoreUnavailable when the database is away."""

    async def record_request(self, request: BuildRequest, *, at: datetime) -> None:
        """Store a request that is about to be published, under its request_id and requester. Safe to repeat."""

    async def record_share(self, request_id: str, requester: str) -> None:
        """Store a further requester of a request. Safe to repeat."""

    async def put(self, events: Sequence[Event]) -> None:
        """Store events in one transaction; repeats change nothing."""

    async def build(self, id_: str) -> Build | None:
        """Return a build by its id, the id of a request that led to it, or the id that the request's own build would have."""

    async def builds(self, query: BuildQuery) -> BuildPage:
        """Return builds, newest first."""

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


class Allowance(Record):
    """Result of a rate-limit check."""

    allowed: bool
    limit: int
    remaining: int
    reset_at: AwareDatetime
    """Time of the next allowed request, if none remains; else the time when all of them are available again."""
