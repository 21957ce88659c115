"""Arguments and options that several commands share."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.texts import parse_duration, parse_rate

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a build or of a request.")]
Subdir = Annotated[str | None, typer.Option(help="Directory within the repository to build from.")]
BuildArgs = Annotated[
    list[str] | None,
    typer.Option("--build-arg", metavar="NAME=VALUE", help="Docker build argument; repeatable."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Image label; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, for programs.")]
WaitSeconds = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", help="Time to wait for RabbitMQ to answer.")
]


def parse_pairs(values: list[str] | None, option: str) -> dict[str, str]:
    """Return NAME=VALUE options as a mapping; exit with a usage error if one has another form."""
    found: dict[str, str] = {}
    for item in values or []:
        key, equals, value = item.partition("=")
        if not key or not equals:
            fail(f"{option} takes NAME=VALUE, not {item!r}.", Exit.USAGE)
        found[key] = value
    return found


def parse_duration_option(text: str, option: str) -> timedelta:
    """Return a duration option; exit with a usage error if it is malformed."""
    try:
        return parse_duration(text)
    except ValueError as error:
        fail(f"{option}: {error}.", Exit.USAGE)


def parse_moment_option(text: str, option: str) -> datetime:
    """Return a moment, given as a time or as a duration before now; exit with a usage error if it is neither."""
    try:
        return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{option}: {text!r} is neither a duration such as 24h or 7d nor a time such as 2026-01-31T12:00Z.",
            Exit.USAGE,
        )
    return moment if moment.tzinfo else moment.astimezone()


def parse_rate_option(text: str, option: str) -> float:
    """Return the seconds between two at a rate such as `20/min`; exit with a usage error if it is malformed."""
    try:
        return parse_rate(text)
    except ValueError as error:
        fail(f"{option}: {error}.", Exit.USAGE)
