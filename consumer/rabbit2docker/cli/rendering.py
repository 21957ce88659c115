"""Views of a build's events: live on a terminal, line by line in a pipe, as JSON for programs."""

import json
from types import TracebackType
from typing import Protocol, Self, assert_never

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from rabbit2docker.cli import texts
from rabbit2docker.cli.exits import Exit
from rabbit2docker.cli.output import printable, say
from rabbit2docker_schemas import events
from rabbit2docker_schemas.cloudevents import Event, event_type
from rabbit2docker_schemas.events import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Log,
    Rejected,
)


class View(Protocol):
    """A display of events, used as a context manager."""

    def __enter__(self) -> Self:
        """Start the display."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display."""

    def show(self, event: Event) -> None:
        """Show one event."""


def exit_code(event: Event) -> Exit | None:
    """Return the exit code of a terminal event, None for any other."""
    match event.data:
        case Completed():
            return Exit.COMPLETED
        case Failed():
            return Exit.FAILED
        case Rejected():
            return Exit.REJECTED
        case Cancelled():
            return Exit.CANCELLED
        case Accepted() | events.Progress() | Log() | Gap():
            return None
        case _:
            assert_never(event.data)


def as_json(event: Event) -> str:
    """Return an event as one line of JSON."""
    return json.dumps(
        {
            "id": event.id,
            "type": event_type(event.kind),
            "kind": event.kind.value,
            "time": event.time.isoformat(),
            "tenant": event.tenant,
            "subject": event.subject,
            "data": event.data.model_dump(mode="json", exclude_none=True),
        },
        ensure_ascii=False,
    )


def _timings(timings: events.Timings) -> str:
    known = timings.model_dump(exclude_none=True)
    return " · ".join(f"{stage} {texts.seconds(value)}" for stage, value in known.items())


def summary(event: Event) -> list[str]:
    """Return lines for people about the answer to a request or the end of a build; none for other events."""
    match event.data:
        case Accepted() as data:
            how = " (joined a running build)" if data.attached else ""
            how = how or (" (the image exists)" if data.cached else "")
            return [
                f"Accepted{how}",
                f"  build  {data.build_id}",
                f"  source {data.repo_url} at {data.resolved_ref}",
                f"  image  {data.image}",
                *([f"  note   {data.notice}"] if data.notice else []),
            ]
        case Rejected() as data:
            again = " Try again later." if data.retryable else ""
            return [f"Rejected ({data.reason}): {data.message}{again}"]
        case Completed() as data:
            size = f" ({texts.size(data.size)})" if data.size else ""
            lines = [f"Completed: {data.image}", f"  digest {data.digest}{size}"]
            lines += [f"  time   {_timings(data.timings)}"] if _timings(data.timings) else []
            return lines + [f"  Warning: {warning}" for warning in data.warnings]
        case Failed() as data:
            return [f"Failed ({data.reason}): {data.message}", f"  {data.hint}"]
        case Cancelled() as data:
            return [f"Cancelled by {data.by}"]
        case events.Progress() | Log() | Gap():
            return []
        case _:
            assert_never(event.data)


class JsonView:
    """One JSON object per line."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def show(self, event: Event) -> None:
        """Print the event."""
        say(as_json(event))


class PlainView:
    """Lines for pipes and files: log lines unchanged, everything else marked with `==>`."""

    def __init__(self) -> None:
        """Write to standard output."""
        self._last_progress = ""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def show(self, event: Event) -> None:
        """Print the event."""
        match event.data:
            case Log() as log:
                lines = [line.text for line in log.lines]
            case Gap() as gap:
                lines = [f"==> lines {gap.first} to {gap.last} were lost"]
            case events.Progress() as progress:
                text = f"==> {progress.phase}: {progress.message}"
                lines = [] if text == self._last_progress else [text]
                self._last_progress = text
            case _:
                lines = [f"==> {line.strip()}" for line in summary(event)]
        for line in lines:
            say(line, colours=True)


class RichView:
    """A live view for terminals: the log scrolls above a line with phase, progress and time."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.fields[phase]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        self._task = self._progress.add_task("Waiting for the answer", phase="requested", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; log and summary stay on the screen."""
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Draw the event."""
        match event.data:
            case Log() as log:
                for line in log.lines:
                    self._console.print(Text.from_ansi(printable(line.text, colours=True)), soft_wrap=True)
            case Gap() as gap:
                self._console.print(f"[yellow]lines {gap.first} to {gap.last} were lost[/]")
            case events.Progress() as progress:
                self._update(progress)
            case _:
                self._print_summary(event)

    def _update(self, progress: events.Progress) -> None:
        detail = progress.detail
        if detail.layers_total:
            done, total = detail.layers_done or 0, detail.layers_total
        else:
            done, total = (detail.step or 1) - 1, detail.steps or 0  # the running step is not done
        assert self._task is not None
        self._progress.update(
            self._task,
            phase=str(progress.phase),
            description=escape(printable(progress.message[:100])),
            completed=done,
            total=total or None,
        )

    def _print_summary(self, event: Event) -> None:
        style = {
            Exit.COMPLETED: "bold green",
            Exit.FAILED: "bold red",
            Exit.REJECTED: "bold red",
            Exit.CANCELLED: "bold yellow",
            None: "bold",
        }[exit_code(event)]
        first, *rest = summary(event)
        self._console.print(first, style=style, markup=False)
        for line in rest:
            self._console.print(line, markup=False)


def make_view(console: Console, *, json_lines: bool) -> View:
    """Return the view for JSON, a terminal or a pipe."""
    if json_lines:
        return JsonView()
    return RichView(console) if console.is_terminal else PlainView()
