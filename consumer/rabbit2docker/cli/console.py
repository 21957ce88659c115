"""Rich consoles, made on first use: plain text is printed without rich, which takes long to import."""

from functools import cache
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from rabbit2docker.cli.output import printable

_PIPE_WIDTH: Final = 400
"""Columns of a table that goes to another program, where nothing must be cut."""


class _Console(Console):
    """A console on which no text can steer the terminal; `Text` objects are made of printable text by their makers."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


@cache
def out() -> Console:
    """Return the console on standard output."""
    return _console(stderr=False)


@cache
def err() -> Console:
    """Return the console on standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
