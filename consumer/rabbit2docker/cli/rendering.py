"""Shows a build's events as they come: alive on a terminal, line by line in a pipe, as JSON for programs."""

import json
import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from rabbit2docker.cli import texts
from rabbit2docker.cli.exits import Exit
from rabbit2docker_schemas import events
from rabbit2docker_schemas.cloudevents import Event, event_type
from rabbit2docker_schemas.events import Accepted, Cancelled, Completed, Failed, Gap, Log, Rejected


class View(Protocol):
    """Takes events."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def show(self, event: Event) -> None:
        """Show one event."""


def exit_code(event: Event) -> Exit | None:
    """Return the exit code if the event is an end."""
    match event.data:
        case Completed():
            return Exit.COMPLETED
        case Failed():
            return Exit.FAILED
        case Rejected():
            return Exit.REJECTED
        case Cancelled():
            return Exit.CANCELLED
        case _:
            return None


def as_json(event: Event) -> str:
    """Return an event as one line."""
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
    """Return what a request's answer or a build's end says, in lines for a person."""
    match event.data:
        case Accepted() as data:
            how = " (joined a build that runs already)" if data.attached else ""
            how = how or (" (the image exists already)" if data.cached else "")
            return [
                f"Accepted{how}",
                f"  build  {data.build_id}",
                f"  source {data.repo_url} at {data.resolved_ref}",
                f"  image  {data.image}",
            ]
        case Rejected() as data:
            again = " Asking again later may help." if data.retryable else ""
            return [f"Rejected ({data.reason}): {data.message}{again}"]
        case Completed() as data:
            size = f" ({texts.size(data.size)})" if data.size else ""
            lines = [f"Completed: {data.image}", f"  digest {data.digest}{size}"]
            return lines + ([f"  time   {_timings(data.timings)}"] if _timings(data.timings) else [])
        case Failed() as data:
            return [f"Failed ({data.reason}): {data.message}", f"  {data.hint}"]
        case Cancelled() as data:
            return [f"Cancelled by {data.by}"]
        case _:
            return []


class JsonView:
    """One JSON object a line."""

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, event: Event) -> None:
        """Print the event."""
        sys.stdout.write(as_json(event) + "\n")
        sys.stdout.flush()


class PlainView:
    """For pipes and files: each log line as it is, everything else marked with `==>`."""

    def __init__(self) -> None:
        """Write to standard output."""
        self._said = ""

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, event: Event) -> None:
        """Print the event."""
        match event.data:
            case Log() as log:
                lines = [line.text for line in log.lines]
            case Gap() as gap:
                lines = [f"==> lines {gap.first} to {gap.last} are lost"]
            case events.Progress() as progress:
                said = f"==> {progress.phase}: {progress.message}"
                lines = [] if said == self._said else [said]
                self._said = said
            case _:
                lines = [f"==> {line.strip()}" for line in summary(event)]
        # A log may hold characters that this output cannot show.
        encoding = sys.stdout.encoding or "utf-8"
        for line in lines:
            sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()


class RichView:
    """For terminals: the log scrolls, below it stand phase, time and how much is done."""

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
        """Begin to draw."""
        self._progress.start()
        self._task = self._progress.add_task("Waiting for an answer", phase="asked", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the log and the end on the screen."""
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Draw the event."""
        match event.data:
            case Log() as log:
                for line in log.lines:
                    self._console.print(Text.from_ansi(line.text), soft_wrap=True)
            case Gap() as gap:
                self._console.print(f"[yellow]lines {gap.first} to {gap.last} are lost[/]")
            case events.Progress() as progress:
                self._update(progress)
            case _:
                self._tell(event)

    def _update(self, progress: events.Progress) -> None:
        detail = progress.detail
        if detail.layers_total:
            done, total = detail.layers_done or 0, detail.layers_total
        else:
            done, total = (detail.step or 1) - 1, detail.steps or 0  # the step that runs is not done
        assert self._task is not None
        self._progress.update(
            self._task,
            phase=str(progress.phase),
            description=escape(progress.message[:100]),
            completed=done,
            total=total or None,
        )

    def _tell(self, event: Event) -> None:
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
    """Return the view that fits where the output goes."""
    if json_lines:
        return JsonView()
    return RichView(console) if console.is_terminal else PlainView()
