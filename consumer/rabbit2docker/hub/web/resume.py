"""Pure: how far a viewer has come, as the `id:` of an event, so that `Last-Event-ID` goes on from there.

A place in a build is told by numbers that are the same whoever reads and whenever: how many progress events, and which
line of which attempt comes next. So any instance of the service can go on with what another one has begun.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final, Self

VALID_SECONDS: Final = 86_400
"""A viewer who comes back later than this starts anew: no build lasts longer, and the stream may have forgotten it."""

_REQUEST_ID = re.compile(r"hub-([0-9a-f]{8})-([0-9a-f]{20})-([0-9a-f]{20})")
_PLACE = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
_END: Final = "end"


def _seal(stamp: str, nonce: str, provider: str, spec: str) -> str:
    return hashlib.sha256("/".join((stamp, nonce, provider, spec)).encode()).hexdigest()[:20]


def new_request_id(provider: str, spec: str) -> str:
    """Return a fresh id for a request, which tells when and for what it was made."""
    stamp, nonce = f"{int(time.time()):08x}", secrets.token_hex(10)
    return f"hub-{stamp}-{nonce}-{_seal(stamp, nonce, provider, spec)}"


def asked_at(request_id: str) -> float | None:
    """Return when an id was made, in seconds since 1970; None if it is not one of ours."""
    match = _REQUEST_ID.fullmatch(request_id)
    return None if match is None else float(int(match[1], 16))


def _is_of(request_id: str, provider: str, spec: str) -> bool:
    """Tell whether an id was made for this, and not too long ago: nobody gets at another build by way of an id."""
    if not (match := _REQUEST_ID.fullmatch(request_id)):
        return False
    stamp, nonce, seal = match.groups()
    age = time.time() - int(stamp, 16)
    return seal == _seal(stamp, nonce, provider, spec) and -VALID_SECONDS < age < VALID_SECONDS


@dataclass(slots=True)
class BinderHubCursor:
    """What a viewer of a request has got."""

    request_id: str
    told: int = 0
    """Events beside lines: the first `waiting`, then progress."""
    attempt: int = 0
    line: int = 0
    """Number of the line of `attempt` that comes next."""
    ended: bool = False

    def __str__(self) -> str:
        """Return what stands after `id:`."""
        return f"{self.request_id}:{_END}" if self.ended else f"{self.before_line}{self.line}"

    @property
    def before_line(self) -> str:
        """Return that without the number of the line, for who has got many lines at once."""
        return f"{self.request_id}:{self.told}.{self.attempt}."

    def has_line(self, attempt: int, number: int) -> bool:
        """Tell whether the viewer has this line, or one after it."""
        return (attempt, number) < (self.attempt, self.line)

    @classmethod
    def read(cls, text: str | None, provider: str, spec: str) -> Self | None:
        """Return the place that a `Last-Event-ID` names, None if it is not ours, too old, or of another build."""
        request_id, _, place = (text or "").strip().partition(":")
        if not _is_of(request_id, provider, spec):
            return None
        if place == _END:
            return cls(request_id, ended=True)
        if not (match := _PLACE.fullmatch(place)):
            return None
        told, attempt, line = (int(part) for part in match.groups())
        return cls(request_id, told, attempt, line)
