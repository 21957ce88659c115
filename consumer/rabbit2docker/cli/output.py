"""Plain text for terminals and pipes: the only way to either, apart from the consoles, which use `printable` too."""

import re
import sys
from typing import Final

import typer

# Besides control characters: those that reorder the text around them, and line separators.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_CONTROL_OR_COLOUR: Final = re.compile(rf"(?P<colour>\x1b\[[0-9;:]*m)|{_CONTROL.pattern}")


def printable(text: str, *, colours: bool = False) -> str:
    r"""Return a text that cannot steer a terminal: control characters become escapes such as `\u001b`.

    These are also the escapes of JSON, so an encoded object keeps its meaning. With `colours`, sequences that set
    colours stay.
    """
    pattern = _CONTROL_OR_COLOUR if colours else _CONTROL
    return pattern.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    if match.re is _CONTROL_OR_COLOUR and match["colour"]:
        return match[0]
    return f"\\u{ord(match[0]):04x}"


def say(text: str, *, err: bool = False, colours: bool = False) -> None:
    """Print a line that may hold words of requesters; characters that the encoding of the stream lacks become `?`."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    shown = printable(text, colours=colours).encode(encoding, "replace").decode(encoding)
    typer.echo(shown, err=err)  # noqa: TID251 - the one place
