"""Exit codes, and errors as a sentence and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, NoReturn

import typer

from rabbit2docker.cli.output import say
from rabbit2docker.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    Rabbit2DockerError,
    RequestRejected,
    TopologyMismatch,
)


class Exit(IntEnum):
    """Exit codes, for scripts."""

    COMPLETED = 0
    FAILED = 1
    REJECTED = 2
    CANCELLED = 3
    UNREACHABLE = 4
    NOT_FOUND = 5
    USAGE = 64
    CONFIGURATION = 78
    INTERRUPTED = 130


EXIT_HELP: Final = (
    "Exit codes: 0 completed · 1 failed · 2 rejected · 3 cancelled · 4 RabbitMQ unreachable or access refused · "
    "5 id not found · 64 wrong usage · 78 wrong settings or state · 130 interrupted."
)


def fail(message: str, code: Exit) -> NoReturn:
    """Print an error and exit with `code`."""
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    say(message, err=True)
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
def errors_explained() -> Iterator[None]:
    """Turn the program's own errors into a sentence and an exit code."""
    try:
        yield
    except Rabbit2DockerError as error:
        fail(str(error), code_of(error))
