"""The commands `list`, `status`, `logs` and `cancel`."""

import json
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rabbit2docker.cli.build import login_name
from rabbit2docker.cli.exits import EXIT_HELP, Exit, fail
from rabbit2docker.cli.options import AsJson, Id, WaitSeconds, parse_duration_option
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.cli.overview import BuildRow
    from rabbit2docker.client import BuildEvents, History
    from rabbit2docker_schemas.cloudevents import Event

CANCEL_SECONDS: Final = 60.0
"""Time within which a build must end after its cancellation."""


def list_(
    since: Annotated[str, typer.Option(help="Period to look back: 30m, 24h, 7d.")] = "24h",
    state: Annotated[
        str | None,
        typer.Option(help="Only builds that are completed, failed, cancelled, rejected or running."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of builds; the newest are shown.")] = 50,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """List the builds of your tenant, the newest last.

    Example: `rabbit2docker list --since 7d --state failed`
    """
    from datetime import UTC, datetime

    from rabbit2docker.cli.overview import newest_rows
    from rabbit2docker.cli.session import run_with_history

    beginning = datetime.now(UTC) - parse_duration_option(since, "--since")

    def is_wanted(row: "BuildRow") -> bool:
        return state in (None, row.state) or (state == "running" and row.end is None)

    found = run_with_history(lambda history: newest_rows(history, beginning, is_wanted, limit), wait)
    _print_rows(found, as_json=as_json)


def _print_rows(found: "list[BuildRow]", *, as_json: bool) -> None:
    if as_json:
        for row in found:
            say(json.dumps(row.as_dict(), ensure_ascii=False))
        return
    if not found:
        say("No builds match. `--since 7d` looks back further.")
        return
    from rabbit2docker.cli.console import out
    from rabbit2docker.cli.overview import as_table

    out().print(as_table(found, out().width))


def status(id_: Id, as_json: AsJson = False, wait: WaitSeconds = 10.0) -> None:
    """Show the state of a build. The exit code is that of its end, or 0 while it runs."""
    from rabbit2docker.cli.following import known
    from rabbit2docker.cli.overview import rows_of
    from rabbit2docker.cli.rendering import exit_code
    from rabbit2docker.cli.session import run_with_history

    found = run_with_history(lambda history: rows_of(known(history.state_of(id_), id_)), wait)
    row = ([row for row in found if row.state != "unknown"] or found)[-1]
    if as_json:
        say(json.dumps(row.as_dict(), ensure_ascii=False))
    else:
        _print_status(row)
    raise typer.Exit((exit_code(row.end) if row.end else None) or Exit.COMPLETED)


def _print_status(row: "BuildRow") -> None:
    from rabbit2docker.cli.rendering import summary

    for key, value in row.as_dict().items():
        if key != "end" and value not in ("", None, []):
            say(f"{key:<10} {', '.join(value) if isinstance(value, list) else value}")
    for line in summary(row.end)[1:] if row.end else []:
        say(line)


def logs(
    id_: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the build ends.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Put the time before each line; not with --follow.")
    ] = False,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Print the log of a build: the lines so far, or all lines until its end."""
    import sys
    from contextlib import aclosing

    from rabbit2docker.cli import following
    from rabbit2docker.cli.session import run_with_events, run_with_history

    async def follow_all(events: "BuildEvents") -> Exit:
        async with aclosing(following.known(events.history.state_of(id_), id_)) as past:
            await anext(past)
        return await following.follow(events.of(id_), id_, as_json=as_json)

    async def print_all(history: "History") -> Exit:
        async for event in following.known(history.so_far(id_), id_):
            _print_lines(event, timestamps=timestamps, as_json=as_json)
        return Exit.COMPLETED

    if follow and not timestamps:
        raise typer.Exit(run_with_events(follow_all, wait))
    # On a terminal, the lines themselves show how far reading is.
    raise typer.Exit(run_with_history(print_all, wait, has_bar=not sys.stdout.isatty()))


def _print_lines(event: "Event", *, timestamps: bool, as_json: bool) -> None:
    from rabbit2docker_schemas.events import Log

    if not isinstance(event.data, Log):
        return
    for number, line in enumerate(event.data.lines, event.data.n):
        if as_json:
            entry = {"attempt": event.data.attempt, "n": number, **line.model_dump(mode="json")}
            say(json.dumps(entry, ensure_ascii=False))
        else:
            time = f"{line.ts.isoformat(timespec='milliseconds')} " if timestamps else ""
            say(f"{time}{line.text}", colours=True)


def cancel(
    id_: Id,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait until the build has ended.")
    ] = True,
    requester: Annotated[
        str | None, typer.Option(help="Your name, for the record. Default: the login name.")
    ] = None,
    wait: WaitSeconds = 10.0,
) -> None:
    """End a build, for all requests that share it, or withdraw a request that has not started one.

    Exits with 3 once it is cancelled, or with the code of its end if it ended otherwise.
    """
    from rabbit2docker.cli.session import run_with_events

    by = requester or login_name()

    async def send(events: "BuildEvents") -> Exit:
        await events.cancel(id_, by=by)
        return await _confirm_end(events, id_) if follow else Exit.COMPLETED

    raise typer.Exit(run_with_events(send, wait))


async def _confirm_end(events: "BuildEvents", id_: str) -> Exit:
    import asyncio

    from rabbit2docker.cli.rendering import exit_code, summary

    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            received = [event async for event in events.of(id_)]
    except TimeoutError:
        fail(
            f"{id_} did not end within {CANCEL_SECONDS:.0f} seconds. Check the id with `rabbit2docker list`, "
            "and that a consumer is running.",
            Exit.NOT_FOUND,
        )
    for line in summary(received[-1]):
        say(line)
    code = exit_code(received[-1])
    return Exit.FAILED if code is None else code


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "Builds"
    app.command("list", rich_help_panel=panel)(list_)
    for command in (status, logs, cancel):
        app.command(rich_help_panel=panel, epilog=EXIT_HELP)(command)
