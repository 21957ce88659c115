"""`build`, `list`, `status`, `logs`, `cancel`: what users do."""

import asyncio
import getpass
import json
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import unquote

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from rabbit2docker import logs as logs_
from rabbit2docker.cli import texts
from rabbit2docker.cli.exits import EXIT_HELP, Exit, err, explained, fail, out
from rabbit2docker.cli.options import AsJson, BuildArgs, Labels, Subdir, WaitSeconds, pairs
from rabbit2docker.cli.overview import BuildRow, rows
from rabbit2docker.cli.rendering import exit_code, make_view, summary
from rabbit2docker.client import BuildEvents, History
from rabbit2docker.repository_urls import from_url
from rabbit2docker.settings import LogSettings, load_settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority
from rabbit2docker_schemas.validation_messages import describe

T = TypeVar("T")
CANCEL_PATIENCE = 60.0
STATE_STYLES = {"completed": "green", "failed": "red", "rejected": "red", "cancelled": "yellow"}

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a build or of a request.")]


def _with_events(work: Callable[[BuildEvents], Awaitable[T]], wait: float) -> T:
    """Do what listens or asks."""

    async def go() -> T:
        settings = load_settings()
        async with BuildEvents(settings.amqp, settings.tenant, wait_seconds=wait) as events:
            return await work(events)

    return _run(go)


def _with_history(work: Callable[[History], Awaitable[T]], wait: float) -> T:
    """Do what only looks at the past."""

    async def go() -> T:
        settings = load_settings()
        async with History(settings.amqp, settings.tenant, wait_seconds=wait) as history:
            return await work(history)

    return _run(go)


INSIST_SECONDS: Final = 2.0
"""A Ctrl-C that has not ended the work for so long is passed on again."""


class _Interrupted(Exception):
    """Ctrl-C."""


def _run(go: Callable[[], Coroutine[None, None, T]]) -> T:
    with explained():
        # Only what a person has to know: the answer itself is on standard output.
        logs_.configure(LogSettings(level="warning", format="console"))
        try:
            return asyncio.run(_interruptible(go()))
        except _Interrupted:
            raise KeyboardInterrupt from None


async def _interruptible(work: Coroutine[None, None, T]) -> T:
    """Do the work until Ctrl-C; raises _Interrupted then.

    asyncio itself cancels once, and any library that loses that makes the Ctrl-C go unheard.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    heard = False

    def interrupt() -> None:
        nonlocal heard
        heard = True
        if not task.done():
            task.cancel()
            loop.call_later(INSIST_SECONDS, interrupt)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if heard:
            raise _Interrupted from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _target(first: str, second: str | None, ref: str | None) -> tuple[str, str]:
    """Return provider and spec of the arguments."""
    if "://" in first or first.startswith("git@"):
        if second is not None:
            fail("Give either a URL, or a provider and a spec.", Exit.USAGE)
        with explained():
            return from_url(first, ref, github_hostname=load_settings().providers.github_hostname)
    if second is None:
        fail(
            f"{first!r} is no URL, so a spec has to follow: `rabbit2docker build gh owner/repository/HEAD`.",
            Exit.USAGE,
        )
    if ref is not None:
        fail("--ref goes with a URL; with a provider, the ref is the last part of the spec.", Exit.USAGE)
    return first, second


def build(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PROVIDER|URL", help="A provider such as gh or git, or the URL of a repository."
        ),
    ],
    spec: Annotated[
        str | None,
        typer.Argument(metavar="[SPEC]", help="With a provider: as in BinderHub's /build/PROVIDER/SPEC."),
    ] = None,
    ref: Annotated[str | None, typer.Option(help="With a URL: branch, tag or commit. Default: HEAD.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even if the image exists.")] = False,
    subdir: Subdir = None,
    build_arg: BuildArgs = None,
    label: Labels = None,
    appendix: Annotated[
        Path | None, typer.Option(help="File with Dockerfile lines to append.", exists=True, dir_okay=False)
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Shorten the limit of the build: 90s, 30m, 1h.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="Give up if nobody picks the request up within this time: 10m, 1h.")
    ] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Let people who wait go first.")] = False,
    request_id: Annotated[
        str | None,
        typer.Option(
            help="Idempotency key: asking twice with the same one builds once. Default: a fresh one."
        ),
    ] = None,
    requester: Annotated[
        str | None, typer.Option(help="Who asks, for the record. Default: the login name.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow", help="Show progress and log until the end, or print the ids and leave."
        ),
    ] = True,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Ask for an image and follow its build.

    Ctrl-C ends the following, not the build: `rabbit2docker logs ID --follow` goes on with it,
    `rabbit2docker cancel ID` ends it.

    Examples: `rabbit2docker build gh binder-examples/requirements/HEAD`,
    `rabbit2docker build https://github.com/binder-examples/requirements --ref HEAD --force`
    """
    provider, wanted = _target(target, spec, ref)
    request = _request(
        provider=provider,
        spec=wanted,
        force=force,
        subdir=subdir,
        build_args=pairs(build_arg, "--build-arg"),
        labels=pairs(label, "--label"),
        appendix=appendix.read_text(encoding="utf-8") if appendix else None,
        timeout_seconds=int(_duration(timeout, "--timeout").total_seconds()) if timeout else None,
        not_after=datetime.now(UTC) + _duration(expires, "--expires") if expires else None,
        request_id=request_id,
        requester=requester or getpass.getuser(),
    )

    async def ask(events: BuildEvents) -> Exit:
        named = await events.submit(request, Priority.BULK if bulk else Priority.INTERACTIVE)
        if not follow:
            _tell_ids(named, as_json=as_json)
            return Exit.COMPLETED
        if not as_json:
            err.print(f"Asked for {provider} {wanted} (request {named})", markup=False)
        return await _follow(events.of_request(named), named, as_json=as_json)

    raise typer.Exit(_with_events(ask, wait))


def _request(**fields: object) -> BuildRequest:
    given = {name: value for name, value in fields.items() if value not in (None, {})}
    try:
        return BuildRequest.model_validate(given)
    except ValidationError as error:
        fail(describe(error, BuildRequest.model_fields), Exit.USAGE)


def _duration(text: str, option: str) -> timedelta:
    try:
        return texts.parse_duration(text)
    except ValueError as error:
        fail(f"{option}: {error}.", Exit.USAGE)


def _tell_ids(request_id: str, *, as_json: bool) -> None:
    build_id = build_id_of(load_settings().tenant, request_id)
    if as_json:
        typer.echo(json.dumps({"request_id": request_id, "build_id": build_id}))
    else:
        typer.echo(f"request {request_id}")
        typer.echo(f"build   {build_id} (unless it joins one that runs already)")


async def _follow(events: AsyncGenerator[Event, None], id_: str, *, as_json: bool) -> Exit:
    code: Exit | None = None
    try:
        with make_view(out, json_lines=as_json) as view:
            async with aclosing(events):
                async for event in events:
                    view.show(event)
                    code = exit_code(event)
        return Exit.FAILED if code is None else code
    except asyncio.CancelledError:
        if not as_json:
            err.print(
                f"\nThe build goes on. `rabbit2docker logs --follow {id_}` shows it, "
                f"`rabbit2docker cancel {id_}` ends it.",
                markup=False,
            )
        raise


async def _known(history: History, id_: str) -> list[Event]:
    events = [event async for event in history.so_far(id_)]
    if not events:
        fail(
            f"Nothing is known of {id_}. `rabbit2docker list` shows what is; a tenant sees its own builds only "
            f"(RABBIT2DOCKER_TENANT).",
            Exit.NOT_FOUND,
        )
    return events


def list_(
    since: Annotated[str, typer.Option(help="How far to look back: 30m, 24h, 7d.")] = "24h",
    state: Annotated[
        str | None,
        typer.Option(help="Only these: completed, failed, cancelled, rejected, or running for all others."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 50,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """List builds, newest last."""
    beginning = datetime.now(UTC) - _duration(since, "--since")

    async def look(history: History) -> list[BuildRow]:
        return rows([event async for event in history.since(beginning)])

    with err.status("Reading the events …") if err.is_terminal else nullcontext():
        found = _with_history(look, wait)
    if state:
        found = [row for row in found if row.state == state or (state == "running" and row.end is None)]
    _print_rows(found[-limit:], as_json=as_json)


def _print_rows(found: list[BuildRow], *, as_json: bool) -> None:
    if as_json:
        for row in found:
            typer.echo(json.dumps(row.as_dict(), ensure_ascii=False))
        return
    if not found:
        out.print("No builds in that time.")
        return
    table = Table(box=None, pad_edge=False)
    for heading, width in (("BUILD", 36), ("AGE", 4), ("TOOK", 6), ("STATE", 9)):
        table.add_column(heading, no_wrap=True, min_width=width)
    # Whatever the width of the terminal, an id stays whole: it is what one copies.
    rest = max(20, out.width - 60)
    table.add_column("WHAT", no_wrap=True, overflow="ellipsis", max_width=rest // 2)
    table.add_column("NOTE", no_wrap=True, overflow="ellipsis", max_width=rest - rest // 2)
    for row in found:
        took = (row.ended - row.began).total_seconds() if row.ended and row.began else None
        what = f"{row.provider} {unquote(row.spec)}".strip()
        state = Text(row.state, style=STATE_STYLES.get(row.state, "cyan"))
        table.add_row(row.id, texts.age(row.began), texts.seconds(took), state, Text(what), Text(row.message))
    out.print(table)


def status(id_: Id, as_json: AsJson = False, wait: WaitSeconds = 10.0) -> None:
    """Say where a build stands. Exits with the code of its end, 0 while it runs."""
    events = _with_history(lambda history: _known(history, id_), wait)
    found = [row for row in rows(events) if row.state != "unknown"] or rows(events)
    row = found[-1]
    if as_json:
        typer.echo(json.dumps(row.as_dict(), ensure_ascii=False))
    else:
        for key, value in row.as_dict().items():
            if key != "end" and value not in ("", None, []):
                out.print(f"{key:<10} {', '.join(value) if isinstance(value, list) else value}", markup=False)
        for line in summary(row.end)[1:] if row.end else []:
            out.print(line, markup=False)
    raise typer.Exit((exit_code(row.end) if row.end else None) or Exit.COMPLETED)


def logs(
    id_: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the build ends.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Put the time before each line.")
    ] = False,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Print the log of a build: what is there, or to its end."""

    async def follow_all(events: BuildEvents) -> Exit:
        await _known(events.history, id_)
        return await _follow(events.of(id_), id_, as_json=as_json)

    async def print_all(history: History) -> Exit:
        for event in await _known(history, id_):
            _print_lines(event, timestamps=timestamps, as_json=as_json)
        return Exit.COMPLETED

    if follow and not timestamps:
        raise typer.Exit(_with_events(follow_all, wait))
    raise typer.Exit(_with_history(print_all, wait))


def _print_lines(event: Event, *, timestamps: bool, as_json: bool) -> None:
    if not isinstance(event.data, Log):
        return
    for number, line in enumerate(event.data.lines, event.data.n):
        if as_json:
            said = {"attempt": event.data.attempt, "n": number, **line.model_dump(mode="json")}
            typer.echo(json.dumps(said, ensure_ascii=False))
        else:
            typer.echo(
                f"{line.ts.isoformat(timespec='milliseconds')} {line.text}" if timestamps else line.text
            )


def cancel(
    id_: Id,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait until the build has ended.")
    ] = True,
    requester: Annotated[str | None, typer.Option(help="Who cancels. Default: the login name.")] = None,
    wait: WaitSeconds = 10.0,
) -> None:
    """End a build, for everybody who shares it, or take back a request that is no build yet.

    Exits with 3 when it was cancelled, and with the code of its end when it ended otherwise.
    """
    by = requester or getpass.getuser()

    async def ask(events: BuildEvents) -> Exit:
        await events.cancel(id_, by=by)
        if not follow:
            return Exit.COMPLETED
        try:
            async with asyncio.timeout(CANCEL_PATIENCE):
                told = [event async for event in events.of(id_)]
        except TimeoutError:
            fail(f"Nothing has ended within {CANCEL_PATIENCE:.0f} seconds. Is {id_} right?", Exit.NOT_FOUND)
        for line in summary(told[-1]):
            out.print(line, markup=False)
        code = exit_code(told[-1])
        return Exit.FAILED if code is None else code

    raise typer.Exit(_with_events(ask, wait))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "Builds"
    app.command(rich_help_panel=panel, epilog=EXIT_HELP)(build)
    app.command("list", rich_help_panel=panel)(list_)
    for command in (status, logs, cancel):
        app.command(rich_help_panel=panel)(command)
