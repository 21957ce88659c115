"""The steps of `prebuild`: request all builds, follow them to their ends or the deadline, report."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rabbit2docker.cli import texts
from rabbit2docker.cli.console import err, out
from rabbit2docker.cli.exits import Exit
from rabbit2docker.cli.output import printable, say
from rabbit2docker.cli.overview import STATE_STYLES, BuildRow, rows
from rabbit2docker.cli.prebuild_file import Entry
from rabbit2docker.cli.session import run_with_events
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.retry import retry_forever
from rabbit2docker_schemas.batches import PREBUILD, new_batch
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Log, Rejected
from rabbit2docker_schemas.routing import Priority

NOT_ENDED: Final = "not ended"
BAD_LINE: Final = "bad line"
RETRY_PAUSES: Final = (0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Wanted:
    """An entry of the file and what became of its request."""

    entry: Entry
    request_id: str = ""
    build_id: str = ""
    end: Event | None = None
    asked_at: datetime | None = None

    @property
    def row(self) -> BuildRow:
        """Return the end as a row of a list."""
        if self.end is None:
            state = BAD_LINE if self.entry.problem else NOT_ENDED
            return BuildRow(self.request_id, state=state, message=self.entry.problem)
        return rows([self.end])[0]

    @property
    def took(self) -> float | None:
        """Return the seconds from the request to its end."""
        if self.end is None or self.asked_at is None:
            return None
        return (self.end.time - self.asked_at).total_seconds()

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        row, request = self.row, self.entry.request
        found = {
            "lines": self.entry.lines,
            "text": self.entry.text,
            "provider": request.provider if request else None,
            "spec": request.spec if request else None,
            "request_id": self.request_id or None,
            "build_id": self.build_id or None,
            "state": row.state,
            "message": row.message or None,
            "image": row.image or None,
            "digest": row.digest or None,
            "seconds": self.took,
        }
        return {name: value for name, value in found.items() if value is not None}


def run_prebuild(
    entries: list[Entry], *, limit: timedelta | None, force: bool, requester: str, as_json: bool, wait: float
) -> Exit:
    """Build the entries and report; return the exit code."""
    wanted = [Wanted(entry) for entry in entries]
    work = partial(_build_all, wanted=wanted, limit=limit, force=force, requester=requester)
    run_with_events(work, wait)
    (_print_json if as_json else _print_report)(wanted)
    return Exit.COMPLETED if all(one.row.state == "completed" for one in wanted) else Exit.FAILED


async def _build_all(
    events: BuildEvents, *, wanted: list[Wanted], limit: timedelta | None, force: bool, requester: str
) -> None:
    began = datetime.now(UTC)
    until = began + limit if limit else None
    requested = [one for one in wanted if one.entry.request]
    batch = new_batch(PREBUILD, began, len(requested))
    tracker = Tracker(requested)
    with _bar(len(requested)) as show:
        try:
            async with asyncio.timeout(limit.total_seconds() if limit else None):
                async with _following(events, began, tracker, show) as following:
                    for number, one in enumerate(requested, 1):
                        one.request_id = batch.request_id(number)
                        await _submit(events, one, until=until, force=force, requester=requester)
                        tracker.expect(one)
                    await following
        except TimeoutError:
            say(
                "The deadline has passed. What runs goes on, and requests that no consumer has taken expire.",
                err=True,
            )
        except asyncio.CancelledError:
            say(
                "\nInterrupted. What has been requested goes on: the same command follows it again.", err=True
            )
            raise


@asynccontextmanager
async def _following(
    events: BuildEvents, since: datetime, tracker: "Tracker", show: "Show"
) -> AsyncIterator["asyncio.Task[None]"]:
    async def follow() -> None:
        async with aclosing(events.all(since=since)) as found:
            while not tracker.is_over:
                event = await anext(found)
                if not isinstance(event.data, Log):
                    tracker.push(event)
                    show(tracker.counts())

    task = asyncio.create_task(follow())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _submit(
    events: BuildEvents, one: Wanted, *, until: datetime | None, force: bool, requester: str
) -> None:
    assert one.entry.request is not None
    one.asked_at = datetime.now(UTC)
    request = one.entry.request.model_copy(
        update={
            "request_id": one.request_id,
            "requester": requester,
            "not_after": until,
            "force": force,
        }
    )
    # Under the same id: what was taken although it was not confirmed is not built twice.
    await retry_forever(
        lambda: events.submit(request, Priority.BULK), on=BrokerUnavailable, pauses=RETRY_PAUSES
    )


class Tracker:
    """Finds the ends of requests among all events of the tenant."""

    def __init__(self, wanted: list[Wanted]) -> None:
        """Wait for the ends of these."""
        self._open = len(wanted)
        self._wanted = wanted
        self._requests: dict[str, Wanted] = {}
        self._builds: dict[str, list[Wanted]] = {}
        self._answers: dict[str, Event] = {}
        """Answers that came before their request was known here."""
        self._ends: dict[str, Event] = {}
        """Of all builds: a request may join one that has just ended."""

    @property
    def is_over(self) -> bool:
        """Return whether all have ended."""
        return not self._open

    def counts(self) -> Counter[str]:
        """Return the number of requests by state."""
        return Counter(one.row.state for one in self._wanted)

    def expect(self, one: Wanted) -> None:
        """Follow a request that was published."""
        self._requests[one.request_id] = one
        if answer := self._answers.pop(one.request_id, None):
            self._answer(one, answer)

    def push(self, event: Event) -> None:
        """Take the next event."""
        match event.data:
            case Accepted(request_id=id_) | Rejected(request_id=id_):
                if one := self._requests.get(id_):
                    self._answer(one, event)
                else:
                    self._answers[id_] = event
            case _ if event.is_terminal:
                self._ends[event.subject] = event
                for one in self._builds.pop(event.subject, ()):
                    self._end(one, event)
            case _:
                pass

    def _answer(self, one: Wanted, answer: Event) -> None:
        if isinstance(answer.data, Accepted):
            one.build_id = answer.data.build_id
            if end := self._ends.get(one.build_id):
                self._end(one, end)
            else:
                self._builds.setdefault(one.build_id, []).append(one)
        elif not one.build_id:
            self._end(one, answer)

    def _end(self, one: Wanted, event: Event) -> None:
        if one.end is None:
            one.end = event
            self._open -= 1


class Show:
    """Moves the bar, if there is one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        """Take the bar's progress."""
        self._progress = progress
        self._task = progress.add_task("Building", total=total) if progress else None

    def __call__(self, counts: Counter[str]) -> None:
        """Show the counts."""
        if self._progress is not None and self._task is not None:
            words = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            ended = counts.total() - counts[NOT_ENDED]
            self._progress.update(self._task, description=words, completed=ended)


@contextmanager
def _bar(total: int) -> Iterator[Show]:
    if not err().is_terminal:
        yield Show(None, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True) as progress:
        yield Show(progress, total)


def _print_json(wanted: Iterable[Wanted]) -> None:
    for one in wanted:
        say(json.dumps(one.as_dict(), ensure_ascii=False))


def _print_report(wanted: list[Wanted]) -> None:
    table = Table("LINE", "REPOSITORY", "STATE", "TOOK", "NOTE", box=None, pad_edge=False)
    for one in wanted:
        row = one.row
        table.add_row(
            ", ".join(map(str, one.entry.lines)),
            Text(printable(one.entry.text)),
            Text(row.state, style=STATE_STYLES.get(row.state, "red")),
            texts.seconds(one.took),
            Text(printable(row.image if row.state == "completed" else row.message)),
        )
    out().print(table)
    counts = Counter(one.row.state for one in wanted)
    say(", ".join(f"{number:,} {state}" for state, number in sorted(counts.items())) + ".")
