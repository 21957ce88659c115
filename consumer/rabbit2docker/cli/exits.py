"""Exit codes, and errors as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import typer
from rich.console import Console

from rabbit2docker.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    Rabbit2DockerError,
    RequestRejected,
    TopologyMismatch,
)


class Exit(IntEnum):
    """What a script can act on."""

    COMPLETED = 0
    FAILED = 1
    REJECTED = 2
    CANCELLED = 3
    UNREACHABLE = 4
    NOT_FOUND = 5
    USAGE = 64
    CONFIGURATION = 78
    INTERRUPTED = 130


EXIT_HELP = (
    "Exit codes: 0 completed · 1 failed · 2 rejected · 3 cancelled · 4 RabbitMQ unreachable or refusing · "
    "5 no such id · 64 wrong usage · 78 wrong settings."
)

_PIPE_WIDTH = 400
"""Columns where nobody looks: what goes on to other programs is not cut."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def fail(message: str, code: Exit) -> NoReturn:
    """Say why it ends here, and end."""
    err.print(f"[bold red]{'Error:'}[/] ", end="")
    err.print(message, markup=False)
    raise typer.Exit(code)


def code_of(error: Rabbit2DockerError) -> Exit:
    """Return the exit code of an error."""
    match error:
        case RequestRejected():
            return Exit.REJECTED
        case BrokerUnavailable() | AccessRefused() | TopologyMismatch():
            return Exit.UNREACHABLE
        case ConfigurationError():
            return Exit.CONFIGURATION
        case _:
            return Exit.FAILED


@contextmanager
def explained() -> Iterator[None]:
    """Turn the service's own errors into a sentence and an exit code."""
    try:
        yield
    except Rabbit2DockerError as error:
        fail(str(error), code_of(error))
    except ModuleNotFoundError as error:
        if (error.name or "rabbit2docker").startswith("rabbit2docker"):
            raise
        fail(
            f"This command needs the Python package {error.name}, which is not installed. Install an extra that has "
            "it: pip install 'rabbit2docker[local]' for one machine, 'rabbit2docker[kubernetes]' for a cluster.",
            Exit.CONFIGURATION,
        )
