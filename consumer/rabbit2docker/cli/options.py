"""Options that several commands share."""

from typing import Annotated

import typer

from rabbit2docker.cli.exits import Exit, fail

Subdir = Annotated[str | None, typer.Option(help="Directory within the repository to build from.")]
BuildArgs = Annotated[
    list[str] | None,
    typer.Option("--build-arg", metavar="NAME=VALUE", help="Docker build argument; repeatable."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Image label; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, for programs.")]
WaitSeconds = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for RabbitMQ to answer.")
]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Read NAME=VALUE options."""
    found: dict[str, str] = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not key or not equals:
            fail(f"{option} takes NAME=VALUE, not {item!r}.", Exit.USAGE)
        found[key] = value
    return found
