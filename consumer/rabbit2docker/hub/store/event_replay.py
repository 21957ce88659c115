"""Replay of a stored build: its events in the order in which they were published."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from sqlalchemy import select

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.log_storage import Kept, kept_lines
from rabbit2docker.hub.store.projection import attempt_of
from rabbit2docker.hub.store.tables import BUILDS, EVENTS, LOGS
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import MODEL_OF, REQUEST_KINDS, TERMINAL_KINDS, Gap, Kind, Log
from rabbit2docker_schemas.ids import EventId, lines_event_id

CUT: Final = "The log was too long; these lines were not kept."
LOST: Final = "These lines never reached the hub."


class EventReplay:
    """The events of one build besides its log lines."""

    def __init__(
        self, tenant: str, build_id: str, events: Sequence[Event], logs: dict[int, "Extent"]
    ) -> None:
        """Take all events but log lines, ordered by time, and the extent of each attempt's log."""
        self._tenant = tenant
        self._build_id = build_id
        self._answers = [event for event in events if event.kind in REQUEST_KINDS]
        self._progress = [event for event in events if event.kind is Kind.PROGRESS]
        self._ends = [event for event in events if event.kind in TERMINAL_KINDS]
        self._logs = logs

    def answers(self) -> list[Event]:
        """Return the acceptances, or the rejection if there is none and nothing was built."""
        accepted = [event for event in self._answers if event.kind is Kind.ACCEPTED]
        is_build = accepted or self._progress or self._logs or self._ends
        return accepted if is_build else self._answers

    def ends(self) -> list[Event]:
        """Return the terminal event, if there is one."""
        return self._ends[:1]

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts that left any trace."""
        found = {attempt_of(event) for event in [*self._progress, *self._ends]} | set(self._logs)
        return sorted(found)

    def progress(self, attempt: int) -> list[Event]:
        """Return the progress events of an attempt."""
        return [event for event in self._progress if attempt_of(event) == attempt]

    def time_of(self, attempt: int) -> datetime:
        """Return the time of an attempt's latest event that is not a log line."""
        all_times = [event.time for event in [*self._answers, *self._progress, *self._ends]]
        own = [event.time for event in [*self._progress, *self._ends] if attempt_of(event) == attempt]
        return max(own or all_times, default=datetime.now(UTC))

    def total(self, attempt: int) -> int:
        """Return how many lines an attempt has, as far as any event says."""
        reported = [
            getattr(event.data, "lines", None) or 0 for event in self._ends if attempt_of(event) == attempt
        ]
        return max([self._logs[attempt].lines if attempt in self._logs else 0, *reported])

    def gap(self, attempt: int, first: int, last: int, time: datetime) -> Event:
        """Return a gap event for lines that are not stored."""
        extent = self._logs.get(attempt)
        is_cut = extent is not None and extent.is_cut_in(first, last)
        data = Gap(
            build_id=self._build_id, attempt=attempt, first=first, last=last, message=CUT if is_cut else LOST
        )
        id_ = lines_event_id(self._build_id, attempt, first, last, Kind.GAP)
        return Event(id_, self._tenant, time, data)

    def log(self, attempt: int, kept: Kept) -> Event:
        """Return stored lines as a log event."""
        data = Log(build_id=self._build_id, attempt=attempt, n=kept.first, lines=kept.lines)
        id_ = lines_event_id(self._build_id, attempt, kept.first, kept.last, Kind.LOG)
        return Event(id_, self._tenant, kept.lines[-1].ts, data)


class Extent:
    """The lines that an attempt is known to have, and the range of them that was cut."""

    def __init__(self, lines: int, cut_first: int | None, cut_last: int | None) -> None:
        """Take the number of lines, and the first and last line that was cut."""
        self.lines = lines
        self._cut = None if cut_first is None or cut_last is None else (cut_first, cut_last)

    def is_cut_in(self, first: int, last: int) -> bool:
        """Return whether any line between these two, both included, was cut."""
        return self._cut is not None and self._cut[0] <= last and first <= self._cut[1]


async def _load(database: Database, tenant: str, build_id: str) -> EventReplay:
    wanted = (
        select(EVENTS)
        .join(BUILDS, BUILDS.c.id == EVENTS.c.build_id)
        .where(BUILDS.c.tenant == tenant, EVENTS.c.build_id == build_id)
        .order_by(EVENTS.c.time, EVENTS.c.id)
    )
    logs = (
        select(LOGS.c.attempt, LOGS.c.lines, LOGS.c.cut_first, LOGS.c.cut_last)
        .join(BUILDS, BUILDS.c.id == LOGS.c.build_id)
        .where(BUILDS.c.tenant == tenant, LOGS.c.build_id == build_id)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(wanted)).mappings().all()
        extents = {attempt: Extent(*rest) for attempt, *rest in await connection.execute(logs)}
    events = []
    for row in rows:
        try:
            data = MODEL_OF[Kind(row["kind"])].model_validate(row["data"])
        except ValidationError:
            continue  # another version has stored an event that this one cannot read
        events.append(Event(EventId(row["id"]), tenant, row["time"], data, row["source"]))
    return EventReplay(tenant, build_id, events, extents)


async def replay(database: Database, tenant: str, build_id: str) -> AsyncGenerator[Event, None]:
    """Yield the stored events of a build: acceptances, each attempt's progress and lines in order, the end."""
    stored = await _load(database, tenant, build_id)
    for event in stored.answers():
        yield event
    for attempt in stored.attempts():
        async with aclosing(_attempt(database, stored, build_id, attempt)) as events:
            async for event in events:
                yield event
    for event in stored.ends():
        yield event


async def _attempt(
    database: Database, stored: EventReplay, build_id: str, attempt: int
) -> AsyncGenerator[Event, None]:
    progress, next_line = stored.progress(attempt), 0
    latest = stored.time_of(attempt)

    def before(moment: datetime) -> Iterator[Event]:
        while progress and progress[0].time <= moment:
            yield progress.pop(0)

    async with aclosing(kept_lines(database, build_id, attempt)) as chunks:
        async for kept in chunks:
            for event in before(kept.lines[0].ts):
                yield event
            if kept.first > next_line:
                yield stored.gap(attempt, next_line, kept.first - 1, kept.lines[0].ts)
            event = stored.log(attempt, kept)
            yield event
            next_line, latest = kept.last + 1, event.time
    for event in progress:
        yield event
    if next_line < (total := stored.total(attempt)):
        yield stored.gap(attempt, next_line, total - 1, latest)
