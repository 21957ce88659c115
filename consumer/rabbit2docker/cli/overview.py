"""Builds as rows, folded from their events."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never
from urllib.parse import unquote

from rich.table import Table
from rich.text import Text

from rabbit2docker.cli import texts
from rabbit2docker.cli.output import printable
from rabbit2docker.client.history import History
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Log,
    Progress,
    Rejected,
    TerminalEventData,
)

STATE_STYLES = {"completed": "green", "failed": "red", "rejected": "red", "cancelled": "yellow"}
ENTRIES_OF_A_BUILD = 3
"""Its beginning, its end, and now and then another request that joins it or a wait."""
_FIXED_WIDTH = 60
"""Columns for the id, the times and the state."""


@dataclass(slots=True)
class BuildRow:
    """One build, or one rejected request."""

    id: str
    """build_id; request_id of a rejected request."""
    state: str = "unknown"
    """Phase of a running build, or completed, failed, cancelled or rejected."""
    message: str = ""
    provider: str = ""
    spec: str = ""
    image: str = ""
    digest: str = ""
    requests: list[str] = field(default_factory=list)
    requester: str = ""
    attempt: int = 0
    lines: int = 0
    is_whole: bool = False
    """True if the row has the build's first event."""
    began: datetime | None = None
    ended: datetime | None = None
    end: Event | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
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
    if row.began is None:
        row.began, row.is_whole = event.time, _is_first(event)
    match event.data:
        case Accepted() as data:
            row.provider, row.spec, row.image = data.provider, data.spec, data.image
            row.requester = row.requester or data.requester or ""
            if data.request_id not in row.requests:
                row.requests.append(data.request_id)
            if row.state == "unknown":
                row.state = "waiting"
        case Progress() as data:
            is_late = data.is_place and bool(row.requests)
            if row.end is None and not is_late:
                row.state, row.message, row.attempt = str(data.phase), data.message, data.attempt
                row.lines = max(row.lines, data.lines or 0)
        case Log() as data:
            row.lines = max(row.lines, data.n + len(data.lines))
        case Gap():
            pass
        case Rejected() | Completed() | Failed() | Cancelled() as data:
            _apply_end(row, data)
            row.ended, row.end = event.time, event
        case _:
            assert_never(event.data)


def _is_first(event: Event) -> bool:
    match event.data:
        case Accepted() as data:
            return not data.attached
        case Progress() as data:
            return data.attempt == 0
        case _:
            return isinstance(event.data, Rejected)


def _apply_end(row: BuildRow, data: Rejected | TerminalEventData) -> None:
    match data:
        case Rejected():
            row.state, row.message, row.requests = "rejected", data.message, [data.request_id]
        case Completed():
            row.state, row.image, row.digest = "completed", data.image, data.digest
            row.message = "image existed" if data.cached else ""
        case Failed():
            row.state, row.message = "failed", f"{data.reason}: {data.message}"
        case Cancelled():
            row.state, row.message = "cancelled", f"by {data.by}"
        case _:
            assert_never(data)
    if not isinstance(data, Rejected):
        row.attempt, row.lines = data.attempt or row.attempt, max(row.lines, data.lines or 0)


def rows(events: Iterable[Event]) -> list[BuildRow]:
    """Return one row per build, in the order of their first events."""
    found: dict[str, BuildRow] = {}
    for event in events:
        _add(found, event)
    return list(found.values())


async def rows_of(events: AsyncGenerator[Event, None]) -> list[BuildRow]:
    """Return what `rows` returns, while the events are being read."""
    found: dict[str, BuildRow] = {}
    async with aclosing(events):
        async for event in events:
            _add(found, event)
    return list(found.values())


def _add(found: dict[str, BuildRow], event: Event) -> None:
    _apply(found.setdefault(event.subject, BuildRow(event.subject)), event)


async def newest_rows(
    history: History, since: datetime, is_wanted: Callable[[BuildRow], bool], limit: int
) -> list[BuildRow]:
    """Return the newest builds since a moment that are wanted, at most `limit`, the newest last."""
    found: list[BuildRow] = []
    async with aclosing(history.windows(since, newest=ENTRIES_OF_A_BUILD * limit)) as windows:
        async for window in windows:
            folded = await rows_of(window.events)
            found = [row for row in folded if is_wanted(row) and (row.is_whole or window.is_whole)]
            if len(found) >= limit:
                break
    found = found[-limit:]
    await _add_phases(history, [row for row in found if row.end is None])
    return list(filter(is_wanted, found))


async def _add_phases(history: History, running: list[BuildRow]) -> None:
    """Bring rows of running builds up to date with their phases, which are not in the index."""
    by_id = {row.id: row for row in running}
    if not by_id:
        return
    async with aclosing(history.phases_of(list(by_id))) as events:
        async for event in events:
            if row := by_id.get(event.subject):
                _apply(row, event)


def as_table(found: Iterable[BuildRow], width: int) -> Table:
    """Return a table for a terminal of `width` columns. Ids are never cut, so that they can be copied."""
    table = Table(box=None, pad_edge=False)
    for heading, columns in (("BUILD", 36), ("AGE", 4), ("TOOK", 6), ("STATE", 9)):
        table.add_column(heading, no_wrap=True, min_width=columns)
    rest = max(20, width - _FIXED_WIDTH)
    table.add_column("WHAT", no_wrap=True, overflow="ellipsis", max_width=rest // 2)
    table.add_column("NOTE", no_wrap=True, overflow="ellipsis", max_width=rest - rest // 2)
    for row in found:
        took = (row.ended - row.began).total_seconds() if row.ended and row.began else None
        what = f"{row.provider} {unquote(row.spec)}".strip()
        state = Text(row.state, style=STATE_STYLES.get(row.state, "cyan"))
        table.add_row(
            row.id,
            texts.age(row.began),
            texts.seconds(took),
            state,
            Text(printable(what)),
            Text(printable(row.message)),
        )
    return table
