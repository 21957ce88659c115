"""What is known of builds, as the store gives it and the JSON API tells it."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import BuildOptions, LogLine, Timings
from rabbit2docker_schemas.requests import BuildRequest


class Record(BaseModel):
    """One thing that is remembered."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class BuildState(StrEnum):
    """Where a build stands; the first five are not its end."""

    QUEUED = "queued"
    """Asked for, not answered yet."""
    WAITING = "waiting"
    FETCHING = "fetching"
    BUILDING = "building"
    PUSHING = "pushing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """The request was no build and will be none."""

    @property
    def is_end(self) -> bool:
        """Tell whether nothing follows."""
        return self in ENDS


ENDS = frozenset({BuildState.COMPLETED, BuildState.FAILED, BuildState.CANCELLED, BuildState.REJECTED})


class Problem(Record):
    """Why there is no image."""

    reason: str
    """Code of the failure or of the rejection."""
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
    """What is kept of one attempt's log."""

    attempt: int
    lines: int
    """Lines known in all: the number of the last one, plus one."""
    kept: int
    """Lines that can be had."""
    cut_first: int | None = None
    """First of the lines in the middle that were too many to keep; absent when none was cut."""
    cut_last: int | None = None


class Build(Record):
    """One build, or one request that is no build (yet)."""

    id: str
    """The build_id. A request that waits has the id that its build will have, unless it joins another build."""
    state: BuildState
    provider: str
    spec: str
    requester: str | None = None
    """Who asked first."""
    requesters: list[str] = []
    """Everybody who asked for it or shares it."""
    request_id: str
    """The request that began it."""
    requested_at: AwareDatetime
    started_at: AwareDatetime | None = None
    """When it was accepted."""
    ended_at: AwareDatetime | None = None
    build_name: str | None = None
    repo_url: str | None = None
    resolved_ref: str | None = None
    image: str | None = None
    """Name under which the image is, or will be, in the registry; with its digest once a forced build has ended."""
    digest: str | None = None
    size: int | None = None
    """Bytes of the layers in the registry."""
    cached: bool = False
    """The image existed."""
    attempt: int = 0
    message: str = ""
    """The latest progress, for a person."""
    problem: Problem | None = None
    cancelled_by: str | None = None
    timings: Timings = Timings()
    options: BuildOptions | None = None
    """What the request asked for beside the repository; absent when nothing."""
    logs: list[LogExtent] = []
    """What is kept of its log, an entry an attempt; only where one build is told."""


class BuildQuery(Record):
    """Which builds are wanted, newest first."""

    visible_to: str | None = None
    """Only builds that this person asked for or shares; None for all."""
    state: tuple[BuildState, ...] = ()
    requester: str | None = None
    """Who is among those who asked."""
    text: Annotated[str, Field(max_length=256)] = ""
    """Occurs in the spec, the repository's URL or the image's name."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: str | None = None
    """`next` of the page before."""


class BuildPage(Record):
    """Some of the builds that were wanted."""

    builds: list[Build]
    next: str | None = None
    """For `before` of the next page; absent on the last one."""


class StoredLine(LogLine):
    """A line of a log, with its number."""

    n: int


class BuildRecords(Protocol):
    """What the web side needs of the store. Raises StoreUnavailable when the database is away."""

    async def asked(self, request: BuildRequest, *, at: datetime) -> None:
        """Remember a request that is about to be published, under its request_id and requester. Safe to repeat."""

    async def shared(self, request_id: str, requester: str) -> None:
        """Remember that somebody else watches this request as their own. Safe to repeat."""

    async def put(self, events: Sequence[Event]) -> None:
        """Remember events, in one transaction; those that are known already change nothing."""

    async def build(self, id_: str) -> Build | None:
        """Return a build by its own id, the id of a request that led to it, or the id that request would have had."""

    async def builds(self, query: BuildQuery) -> BuildPage:
        """Return builds, newest first."""

    def events(self, build_id: str) -> AsyncGenerator[Event, None]:
        """Yield what is known of a build in order: accepted, progress, lines, gaps (also for what was cut), the end."""

    def lines(
        self, build_id: str, *, attempt: int | None = None, first: int = 0, last: int | None = None
    ) -> AsyncGenerator[StoredLine, None]:
        """Yield the kept lines `first` to `last`, both included, of an attempt, by default the latest."""

    async def check_rate_limit(self, who: str, *, limit: int, seconds: float, at: datetime) -> "Allowance":
        """Count a wish of somebody who may have `limit` of them in any `seconds`, and tell whether it is one too many."""


class Allowance(Record):
    """What is left of somebody's limit."""

    allowed: bool
    limit: int
    remaining: int
    reset_at: AwareDatetime
    """When the next wish is allowed, if none is left; else when all of them are there again."""
