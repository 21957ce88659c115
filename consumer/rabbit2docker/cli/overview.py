"""Pure: what a stream of events says about each build, in one row."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Log,
    Progress,
    Rejected,
)


@dataclass(slots=True)
class BuildRow:
    """One build, or one request that became none."""

    id: str
    """The build_id; of a rejected request its request_id."""
    state: str = "unknown"
    """A phase while it runs, then completed, failed, cancelled or rejected."""
    message: str = ""
    provider: str = ""
    spec: str = ""
    image: str = ""
    digest: str = ""
    requests: list[str] = field(default_factory=list)
    requester: str = ""
    attempt: int = 0
    lines: int = 0
    began: datetime | None = None
    ended: datetime | None = None
    end: Event | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "id": self.id,
            "state": self.state,
            "message": self.message,
            "provider": self.provider,
            "spec": self.spec,
            "image": self.image,
            "digest": self.digest,
            "requests": self.requests,
            "requester": self.requester,
            "attempt": self.attempt,
            "lines": self.lines,
            "began": self.began.isoformat() if self.began else None,
            "ended": self.ended.isoformat() if self.ended else None,
            "end": self.end.data.model_dump(mode="json", exclude_none=True) if self.end else None,
        }


def _apply(row: BuildRow, event: Event) -> None:
    row.began = row.began or event.time
    match event.data:
        case Accepted() as data:
            row.provider, row.spec, row.image = data.provider, data.spec, data.image
            row.requester = row.requester or data.requester or ""
            if data.request_id not in row.requests:
                row.requests.append(data.request_id)
            if row.state == "unknown":
                row.state = "waiting"
        case Progress() as data if row.end is None:
            row.state, row.message, row.attempt = str(data.phase), data.message, data.attempt
        case Log() as data:
            row.lines = max(row.lines, data.n + len(data.lines))
        case _:
            _apply_end(row, event)


def _apply_end(row: BuildRow, event: Event) -> None:
    match event.data:
        case Rejected() as data:
            row.state, row.message, row.requests = "rejected", data.message, [data.request_id]
        case Completed() as data:
            row.state, row.image, row.digest = "completed", data.image, data.digest
            row.message = "image existed" if data.cached else ""
        case Failed() as data:
            row.state, row.message, row.attempt = "failed", f"{data.reason}: {data.message}", data.attempt
        case Cancelled() as data:
            row.state, row.message = "cancelled", f"by {data.by}"
        case _:
            return
    row.ended, row.end = event.time, event


def rows(events: Iterable[Event]) -> list[BuildRow]:
    """Return a row for each build, in the order in which they began."""
    found: dict[str, BuildRow] = {}
    for event in events:
        _apply(found.setdefault(event.subject, BuildRow(event.subject)), event)
    return list(found.values())
