"""Batches: requests that were made together, such as by `prebuild` or `replay`. Their ids say to which one they belong.

An id in this form is all that it takes: `<kind>-<begin>-<random>-of<size>-<any>`, without `of<size>` where that is not known.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

PREBUILD: Final = "prebuild"
REPLAY: Final = "replay"
SUFFIX_PATTERN: Final = r"\d{8}t\d{6}-[0-9a-f]{6}"
BATCH_ID_PATTERN: Final = rf"(?:{PREBUILD}|{REPLAY})-{SUFFIX_PATTERN}"
_REQUEST_ID: Final = re.compile(rf"({BATCH_ID_PATTERN})(?:-of(\d{{1,7}}))?-[0-9A-Za-z]+", re.ASCII)
_TIME: Final = "%Y%m%dt%H%M%S"


@dataclass(frozen=True, slots=True)
class BatchName:
    """A batch, as the id of one of its requests names it."""

    id: str
    size: int | None = None
    """Number of its requests."""

    @property
    def kind(self) -> str:
        """`prebuild` or `replay`."""
        return kind_of(self.id)

    def request_id(self, number: int) -> str:
        """Return the id of one of its requests."""
        size = "" if self.size is None else f"-of{self.size}"
        return f"{self.id}{size}-{number}"


def kind_of(batch_id: str) -> str:
    """Return the kind of a batch from its id."""
    return batch_id.partition("-")[0]


def new_batch(kind: str, now: datetime, size: int | None) -> BatchName:
    """Return a new batch of a kind."""
    return BatchName(f"{kind}-{new_suffix(now)}", size)


def new_suffix(now: datetime) -> str:
    """Return what follows the kind in the id of a new batch: the time of its begin, and something random."""
    return f"{now.strftime(_TIME)}-{secrets.token_hex(3)}"


def began_at(suffix: str) -> datetime | None:
    """Return the time in such a suffix; None if it is malformed."""
    if not re.fullmatch(SUFFIX_PATTERN, suffix, re.ASCII):
        return None
    try:
        return datetime.strptime(suffix.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def batch_of(request_id: str) -> BatchName | None:
    """Return the batch that a request belongs to; None for one that was made alone."""
    if not (found := _REQUEST_ID.fullmatch(request_id)):
        return None
    return BatchName(found[1], int(found[2]) if found[2] else None)
