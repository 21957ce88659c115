"""Positions in BinderHub's stream, as the `id:` of an event, from which `Last-Event-ID` resumes.

A position consists of numbers that are the same for all readers at all times: the count of progress events, and the
attempt and number of the next line. So any instance of the service can resume what another one has begun.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final, Self

VALID_SECONDS: Final = 86_400
"""Positions older than this are ignored: no build lasts longer, and the stream may have dropped its events."""

_REQUEST_ID = re.compile(r"hub-([0-9a-f]{8})-([0-9a-f]{20})-([0-9a-f]{20})")
_POSITION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
_END: Final = "end"


def _seal(stamp: str, nonce: str, provider: str, spec: str) -> str:
    return hashlib.sha256("/".join((stamp, nonce, provider, spec)).encode()).hexdigest()[:20]


def new_request_id(provider: str, spec: str) -> str:
    """Return a new request id, which holds its time of creation and a hash of provider and spec."""
    stamp, nonce = f"{int(time.time()):08x}", secrets.token_hex(10)
    return f"hub-{stamp}-{nonce}-{_seal(stamp, nonce, provider, spec)}"


def requested_at(request_id: str) -> float | None:
    """Return the creation time of a request id in seconds since 1970; None if it was not made here."""
    match = _REQUEST_ID.fullmatch(request_id)
    return None if match is None else float(int(match[1], 16))


def _is_of(request_id: str, provider: str, spec: str) -> bool:
    """Return whether an id was made for this spec and has not expired: an id gives no access to another build."""
    if not (match := _REQUEST_ID.fullmatch(request_id)):
        return False
    stamp, nonce, seal = match.groups()
    age = time.time() - int(stamp, 16)
    return seal == _seal(stamp, nonce, provider, spec) and -VALID_SECONDS < age < VALID_SECONDS


@dataclass(slots=True)
class BinderHubCursor:
    """The position of one viewer in the stream of one request."""

    request_id: str
    events: int = 0
    """Events that are not lines: the first `waiting`, then progress."""
    attempt: int = 0
    line: int = 0
    """Number of the next line of `attempt`."""
    ended: bool = False

    def __str__(self) -> str:
        """Return the value of the field `id:`."""
        return f"{self.request_id}:{_END}" if self.ended else f"{self.line_prefix}{self.line}"

    @property
    def line_prefix(self) -> str:
        """Return the value without the line's number, from which ids of many lines are made at once."""
        return f"{self.request_id}:{self.events}.{self.attempt}."

    def has_line(self, attempt: int, number: int) -> bool:
        """Return whether this position is past a line."""
        return (attempt, number) < (self.attempt, self.line)

    @classmethod
    def parse(cls, text: str | None, provider: str, spec: str) -> Self | None:
        """Parse a `Last-Event-ID`; None if it is malformed, expired, or of another build."""
        request_id, _, position = (text or "").strip().partition(":")
        if not _is_of(request_id, provider, spec):
            return None
        if position == _END:
            return cls(request_id, ended=True)
        if not (match := _POSITION.fullmatch(position)):
            return None
        events, attempt, line = (int(part) for part in match.groups())
        return cls(request_id, events, attempt, line)
