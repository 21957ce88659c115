"""Views of a replay: tables and a bar for people, JSON for programs."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import unquote

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rabbit2docker.cli import texts
from rabbit2docker.cli.console import err, out
from rabbit2docker.cli.output import printable, say
from rabbit2docker.cli.overview import STATE_STYLES
from rabbit2docker.replay.following import FollowedRequest
from rabbit2docker.replay.plan import Candidate, Totals
from rabbit2docker.replay.publication import Published, ReplayHeader, request_id_of
from rabbit2docker.replay.reading import LogReport

LISTED_ENDS: Final = 50
"""Requests without an image that the final table names."""
LISTED_REASONS: Final = 10


def described(content: Mapping[str, Any]) -> str:
    """Return provider and spec for people."""
    return f"{content['provider']} {unquote(content['spec'])}"


class ReplayView(Protocol):
    """A display of one replay, from its plan to its end."""

    def plan(self, candidate: Candidate) -> None:
        """Take one candidate of the plan; called from another thread."""

    def summary(
        self, totals: Totals, report: LogReport, *, seconds_between: float, is_published: bool
    ) -> None:
        """Show the plan."""

    def begin(self, total: int) -> None:
        """Show that publishing begins."""

    def published(self, published: Published) -> None:
        """Show that one is published."""

    def end_of_publication(self) -> None:
        """Show that all are published and not followed."""

    def following(self, counts: Counter[str]) -> None:
        """Show the number of requests by state."""

    def ends(self, requests: Iterable[FollowedRequest]) -> None:
        """Show the ends."""

    def close(self) -> None:
        """End the display."""


class JsonReplayView:
    """One JSON object per line: of the plan, of what is published, and of each end."""

    def __init__(self, header: ReplayHeader) -> None:
        """Show this replay."""
        self._header = header

    def _print(self, **values: Any) -> None:
        say(
            json.dumps(
                {name: value for name, value in values.items() if value is not None}, ensure_ascii=False
            )
        )

    def plan(self, candidate: Candidate) -> None:
        """Print the candidate."""
        newest = candidate.newest
        self._print(
            kind="excluded" if candidate.excluded else "planned",
            tenant=candidate.tenant,
            provider=candidate.content.get("provider"),
            spec=candidate.content.get("spec"),
            requests=candidate.requests,
            replay_of=candidate.original_id,
            requested_at=datetime.fromtimestamp(newest.time, UTC).isoformat(),
            outcome=newest.outcome.kind.value,
            reason=newest.outcome.reason or None,
            image=newest.outcome.image or None,
            repo2docker_version=newest.outcome.repo2docker or None,
            builder_image=newest.outcome.builder_image or None,
            request_id=None if candidate.excluded else request_id_of(self._header.replay, candidate),
            why=candidate.excluded or None,
        )

    def summary(
        self, totals: Totals, report: LogReport, *, seconds_between: float, is_published: bool
    ) -> None:
        """Print the numbers."""
        self._print(
            kind="summary",
            replay=self._header.replay if is_published else None,
            builds=totals.chosen,
            requests=totals.requests,
            excluded=dict(totals.excluded),
            read=report.requests,
            unreadable=dict(report.unreadable),
            force=self._header.force,
            dry_run=not is_published,
        )

    def begin(self, total: int) -> None:
        """Do nothing."""

    def published(self, published: Published) -> None:
        """Print the ids."""
        self._print(
            kind="published",
            tenant=published.candidate.tenant,
            request_id=published.request_id,
            replay_of=published.candidate.original_id,
            published_before=None if published.is_new else True,
        )

    def end_of_publication(self) -> None:
        """Do nothing."""

    def following(self, counts: Counter[str]) -> None:
        """Do nothing."""

    def ends(self, requests: Iterable[FollowedRequest]) -> None:
        """Print each end."""
        for request in requests:
            self._print(
                kind="ended",
                tenant=request.tenant,
                request_id=request.request_id,
                replay_of=request.replay_of,
                state=request.state,
                reason=request.reason or None,
                image=request.image or None,
                digest=request.digest or None,
            )

    def close(self) -> None:
        """Do nothing."""


class TextReplayView:
    """Tables on standard output, and one bar on standard error if that is a terminal."""

    def __init__(self, header: ReplayHeader, limit: int) -> None:
        """Show this replay, and at most `limit` builds of its plan."""
        self._header = header
        self._limit = limit
        self._table = Table(
            "TENANT", "REPOSITORY", "REQUESTS", "LAST", "OUTCOME", "BUILT WITH", box=None, pad_edge=False
        )
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._published = self._repeated = 0

    def plan(self, candidate: Candidate) -> None:
        """Add a row for a chosen candidate."""
        if candidate.excluded or self._table.row_count >= self._limit:
            return
        newest = candidate.newest
        self._table.add_row(
            candidate.tenant,
            Text(printable(described(candidate.content))),
            str(candidate.requests),
            texts.age(datetime.fromtimestamp(newest.time, UTC)),
            Text(printable(str(newest.outcome)), style=STATE_STYLES.get(newest.outcome.kind, "")),
            Text(printable(newest.outcome.repo2docker or newest.outcome.builder_image)),
        )

    def summary(
        self, totals: Totals, report: LogReport, *, seconds_between: float, is_published: bool
    ) -> None:
        """Print table and numbers."""
        if self._table.row_count:
            out().print(self._table)
        if totals.chosen > self._table.row_count:
            say(f"… and {totals.chosen - self._table.row_count:,} more; `--limit` lists more of them.")
        for line in _numbers(totals, report, self._header):
            say(line)
        if not totals.chosen:
            say("Nothing to publish." if is_published else "Nothing would be published.")
        elif not is_published:
            duration = texts.seconds(totals.chosen * seconds_between)
            say(f"Nothing is published yet: `--yes` does that, within {duration} at this rate.")

    def begin(self, total: int) -> None:
        """Print the id that resumes the replay, and start the bar."""
        say(f"Replay {self._header.replay}", err=True)
        if not err().is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err(), transient=True)
        self._task = self._progress.add_task("Publishing", total=total)
        self._progress.start()

    def published(self, published: Published) -> None:
        """Move the bar."""
        self._published += published.is_new
        self._repeated += not published.is_new
        self._update("Publishing", self._published + self._repeated)

    def _update(self, description: str, completed: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=description, completed=completed)

    def end_of_publication(self) -> None:
        """Print the number."""
        self.close()
        before = f" {self._repeated:,} had been published before." if self._repeated else ""
        say(f"{self._published:,} requests published.{before} `rabbit2docker list` shows their builds.")

    def following(self, counts: Counter[str]) -> None:
        """Move the bar."""
        ended = counts.total() - counts["not ended"]
        words = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        self._update(f"Building: {words}", ended)

    def ends(self, requests: Iterable[FollowedRequest]) -> None:
        """Print a table of numbers by tenant, and the requests that led to no image."""
        self.close()
        by_tenant: dict[str, Counter[str]] = {}
        without_image = Table("TENANT", "REQUEST", "REPOSITORY", "END", box=None, pad_edge=False)
        missing = 0
        for request in requests:
            by_tenant.setdefault(request.tenant, Counter())[request.state] += 1
            if request.state == "completed":
                continue
            missing += 1
            if missing <= LISTED_ENDS:
                end = f"{request.state}: {request.reason}" if request.reason else request.state
                without_image.add_row(
                    request.tenant, request.request_id, Text(printable(request.what)), Text(printable(end))
                )
        out().print(_by_tenant(by_tenant))
        if missing:
            out().print(without_image)
        if missing > LISTED_ENDS:
            say(f"… and {missing - LISTED_ENDS:,} more; `--json` lists all.")

    def close(self) -> None:
        """Stop the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _by_tenant(counts: dict[str, Counter[str]]) -> Table:
    states = [*STATE_STYLES]
    table = Table("TENANT", *map(str.upper, states), box=None, pad_edge=False)
    for tenant, found in sorted(counts.items()):
        table.add_row(tenant, *(str(found[state]) for state in states))
    return table


def _numbers(totals: Totals, report: LogReport, header: ReplayHeader) -> Iterable[str]:
    selection = header.selection
    period = f"{selection.since:%Y-%m-%d %H:%M} to {selection.until:%Y-%m-%d %H:%M %Z}"
    yield f"{report.requests:,} requests read from the log, for the time from {period}."
    if report.oldest is None:
        yield "The log has no requests of that time: it is empty, or they are deleted by now."
    how = {
        True: ", without the engine's cache even if the image exists",
        "cache": ", even if the image exists",
    }
    if totals.chosen:
        once = " Equal ones are built once." if totals.requests > totals.chosen else ""
        forced = how.get(header.force, "") if header.force is not None else ""
        yield f"{totals.chosen:,} builds for {totals.requests:,} requests{forced}.{once}"
    yield from _left_out(totals.excluded, "left out")
    yield from _left_out(report.unreadable, "unreadable in the log")
    if report.events_unreadable:
        yield f"{report.events_unreadable:,} events cannot be read and do not count."


def _left_out(reasons: Counter[str], what: str) -> Iterable[str]:
    for reason, number in reasons.most_common(LISTED_REASONS):
        yield f"{number:,} {what}: {reason}."
    if len(reasons) > LISTED_REASONS:
        yield f"… and {len(reasons) - LISTED_REASONS} further reasons; `--json` lists all."
