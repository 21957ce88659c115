"""One step of a check that `rabbit2docker check` prints."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step."""

    name: str
    is_ok: bool
    message: str
    """What was found, and what to do about a problem."""
