"""Pure: the current state of a build, computed from its events. Order and repetition make no difference."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from rabbit2docker.hub.store.models import Build, BuildState, LogExtent, Problem
from rabbit2docker.hub.store.tables import micros
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    BuildOptions,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Log,
    Progress,
    Rejected,
    Timings,
)
from rabbit2docker_schemas.requests import BuildRequest

NAME_CHARACTERS: Final = 256
"""Longest name that an index takes."""


@dataclass(slots=True)
class BuildRow:
    """A row of `r2d_builds`."""

    id: str
    tenant: str
    last_event_at: datetime
    state: str = BuildState.QUEUED
    request_id: str | None = None
    provider: str | None = None
    spec: str | None = None
    requester: str | None = None
    options: Any = None
    requested_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    build_name: str | None = None
    repo_url: str | None = None
    resolved_ref: str | None = None
    notice: str | None = None
    image: str | None = None
    digest: str | None = None
    size: int | None = None
    cached: bool = False
    attempt: int = 0
    phase: str | None = None
    message: str = ""
    retry_at: datetime | None = None
    progress_key: str | None = None
    outcome: Any = None
    rejection: Any = None

    @property
    def has_begun(self) -> bool:
        """True if it is known to be a build: it was accepted, or an event came that only builds have."""
        return bool(self.started_at or self.progress_key or self.attempt or self.outcome)

    @property
    def is_whole(self) -> bool:
        """True if both its beginning and its end are known."""
        return bool(self.started_at and self.outcome)


@dataclass(slots=True)
class RequestRow:
    """A row of `r2d_requests`."""

    tenant: str
    id: str
    own_id: str
    provider: str
    spec: str
    build_id: str | None = None
    requester: str | None = None
    options: Any = None
    requested_at: datetime | None = None
    accepted_at: datetime | None = None
    accepted: Any = field(default=None)

    @property
    def leads_to(self) -> str:
        """Id of the build that the request started or joined."""
        return self.build_id or self.own_id


def attempt_of(event: Event) -> int:
    """Return the attempt that an event belongs to, 0 for none."""
    return getattr(event.data, "attempt", None) or 0


def apply_request(row: RequestRow, request: BuildRequest, at: datetime) -> None:
    """Enter the request as its requester made it."""
    row.requested_at = min(at, row.requested_at or at)
    row.requester = row.requester or request.requester
    row.options = row.options or options_of(request)


def apply_accepted(row: RequestRow, accepted: Accepted, at: datetime) -> None:
    """Enter the acceptance."""
    row.build_id = accepted.build_id
    row.accepted_at = at
    row.requester = row.requester or accepted.requester
    if accepted.options is not None:
        row.options = accepted.options.model_dump(mode="json", exclude_defaults=True)
    row.accepted = {
        "build_name": accepted.build_name,
        "repo_url": accepted.repo_url,
        "resolved_ref": accepted.resolved_ref,
        "image": accepted.image,
        "cached": accepted.cached,
        "notice": accepted.notice,
    }


def options_of(request: BuildRequest) -> dict[str, Any] | None:
    """Return the options of a request, None if it has none."""
    return request.options().model_dump(mode="json", exclude_defaults=True) or None


def apply_requests(row: BuildRow, requests: list[RequestRow]) -> None:
    """Enter the facts of a build that stand in its requests; the request that started it goes first."""
    if not requests:
        return

    def place(request: RequestRow) -> tuple[bool, int, str]:
        first = request.accepted_at or request.requested_at
        return (request.own_id != row.id, 0 if first is None else micros(first), request.id)

    first = min(requests, key=place)
    row.request_id, row.provider, row.spec = first.id, first.provider, first.spec
    row.requester, row.options = first.requester, first.options
    row.requested_at = min(moment for moment in (first.requested_at, first.accepted_at) if moment is not None)
    row.last_event_at = max(row.last_event_at, row.requested_at)
    answered = [request for request in requests if request.accepted]
    if answered:
        answer = min(answered, key=place)
        row.started_at = answer.accepted_at
        row.build_name, row.repo_url = answer.accepted["build_name"], answer.accepted["repo_url"]
        row.notice = answer.accepted.get("notice")
        row.cached = row.cached or any(request.accepted["cached"] for request in answered)
        if not row.outcome or row.outcome["kind"] != BuildState.COMPLETED:
            row.resolved_ref, row.image = answer.accepted["resolved_ref"], answer.accepted["image"]
    update_state(row)


def apply_event(row: BuildRow, event: Event) -> None:
    """Enter an event of the build, or the rejection of the request that would have started it."""
    row.last_event_at = max(row.last_event_at, event.time)
    row.attempt = max(row.attempt, attempt_of(event))
    data = event.data
    match data:
        case Progress():
            key = f"{micros(event.time):020d} {event.id}"
            if row.progress_key is None or key > row.progress_key:
                row.progress_key, row.phase, row.message = key, str(data.phase), data.message
                row.retry_at = data.detail.retry_at
        case Completed() | Failed() | Cancelled():
            _apply_end(row, event, data)
        case Rejected():
            problem = Problem(reason=str(data.reason), message=data.message, retryable=data.retryable)
            row.rejection = {"at": event.time.isoformat(), "problem": problem.model_dump(mode="json")}
        case Log() | Gap() | Accepted():
            pass
    update_state(row)


def _apply_end(row: BuildRow, event: Event, end: Completed | Failed | Cancelled) -> None:
    if row.outcome and row.ended_at is not None and row.ended_at > event.time:
        return  # a request that came again started the build anew, and that has ended, too
    row.ended_at = event.time
    outcome: dict[str, Any] = {"kind": end.kind.value}
    match end:
        case Completed():
            row.image, row.digest, row.size = end.image, end.digest, end.size
            row.resolved_ref, row.cached = end.resolved_ref, row.cached or end.cached
            outcome["warnings"] = end.warnings
            outcome["timings"] = end.timings.model_dump(mode="json", exclude_none=True)
        case Failed():
            fields = set(Problem.model_fields) - {"retryable"}
            outcome["problem"] = end.model_dump(mode="json", include=fields)
            outcome["timings"] = end.timings.model_dump(mode="json", exclude_none=True)
        case Cancelled():
            outcome["by"] = end.by
    row.outcome = outcome


def update_state(row: BuildRow) -> None:
    """Set the build's state from everything that is known of it."""
    if row.outcome:
        row.state = BuildState(row.outcome["kind"])
        return
    row.ended_at = None
    if row.has_begun:
        # A rejection then belongs to another request that took the same id.
        known = {BuildState.WAITING, BuildState.FETCHING, BuildState.BUILDING, BuildState.PUSHING}
        phase = row.phase or BuildState.WAITING
        row.state = BuildState(phase) if phase in known else BuildState.BUILDING
    elif row.rejection:
        row.state = BuildState.REJECTED
        row.ended_at = datetime.fromisoformat(row.rejection["at"])
    else:
        row.state = BuildState.QUEUED


def as_build(row: BuildRow, requesters: list[str], logs: list[LogExtent]) -> Build:
    """Return the row as the store's model. Its request must be known."""
    outcome, state = row.outcome or {}, BuildState(row.state)
    problem = row.rejection["problem"] if state is BuildState.REJECTED else outcome.get("problem")
    return Build(
        id=row.id,
        state=state,
        provider=row.provider or "",
        spec=row.spec or "",
        requester=row.requester,
        requesters=sorted(requesters, key=lambda name: (name != row.requester, name)),
        request_id=row.request_id or "",
        requested_at=row.requested_at or row.last_event_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        build_name=row.build_name,
        repo_url=row.repo_url,
        resolved_ref=row.resolved_ref,
        notice=row.notice,
        image=row.image,
        digest=row.digest,
        size=row.size,
        cached=row.cached,
        attempt=row.attempt,
        message=row.message,
        retry_at=None if state.is_end else row.retry_at,
        warnings=outcome.get("warnings") or [],
        problem=None if problem is None else Problem.model_validate(problem),
        cancelled_by=outcome.get("by"),
        timings=Timings.model_validate(outcome.get("timings") or {}),
        options=None if row.options is None else BuildOptions.model_validate(row.options),
        logs=logs,
    )
