"""The command `prebuild`."""

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rabbit2docker.cli.build import login_name
from rabbit2docker.cli.exits import EXIT_HELP, Exit, errors_explained, fail
from rabbit2docker.cli.options import AsJson, WaitSeconds, parse_duration_option
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.cli.prebuild_file import Entry


def prebuild(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="List of repositories, one per line as `URL`, `URL REF` or `PROVIDER SPEC`, or CSV with the columns "
            "repository, ref, provider, spec, subdir. `-` reads standard input.",
        ),
    ],
    deadline: Annotated[
        str | None,
        typer.Option(help="End after this time: 90m, 2h. What no consumer has taken by then is not built."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the images exist.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the file, and name its bad lines.")
    ] = False,
    requester: Annotated[
        str | None, typer.Option(help="Your name, for the record. Default: the login name.")
    ] = None,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Build the images of a list of repositories, as before a workshop, and report what became of each.

    They are bulk requests, which delay no person. Images that exist are not built again. Bad lines are named, and the
    others are built. Exits with 0 if all images are there, else with 1.

    Examples:

    \b
        rabbit2docker prebuild workshop.txt --deadline 2h
        echo https://github.com/binder-examples/requirements | rabbit2docker prebuild - --json
    """
    entries = _read(file)
    for entry in entries:
        if entry.problem:
            say(f"Line {entry.lines[0]} is left out: {entry.problem.rstrip('.')}.", err=True)
    if check or all(entry.problem for entry in entries):
        _end_of_check(entries)
    limit = parse_duration_option(deadline, "--deadline") if deadline else None
    from rabbit2docker.cli.prebuild_run import run_prebuild

    raise typer.Exit(
        run_prebuild(
            entries,
            limit=limit,
            force=force,
            requester=requester or login_name(),
            as_json=as_json,
            wait=wait,
        )
    )


def _end_of_check(entries: "list[Entry]") -> NoReturn:
    bad = sum(1 for entry in entries if entry.problem)
    say(f"{len(entries) - bad:,} builds, {bad:,} bad lines.")
    raise typer.Exit(Exit.FAILED if bad else Exit.COMPLETED)


def _read(file: str) -> "list[Entry]":
    from rabbit2docker.cli.prebuild_file import read_entries
    from rabbit2docker.settings import load_settings

    try:
        data = _bytes_of(file)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or error}.", Exit.USAGE)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        fail(f"{file} is not UTF-8: see line {line}.", Exit.USAGE)
    with errors_explained():
        entries = read_entries(text, hosts=load_settings().providers.hosts)
    if not entries:
        fail(f"{file} names no repository.", Exit.USAGE)
    return entries


def _bytes_of(file: str) -> bytes:
    import sys
    from pathlib import Path

    return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Builds", epilog=EXIT_HELP)(prebuild)
