"""The wait of a request before the service tries again, and the event that announces it. Without I/O."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rabbit2docker.errors import TransientError
from rabbit2docker_schemas.events import Phase, Progress, ProgressDetail
from rabbit2docker_schemas.ids import BuildId
from rabbit2docker_schemas.routing import RETRY_LADDER, RetryRung

LONGEST_KNOWN_WAIT: Final = timedelta(hours=2)
"""Age up to which a request waits for a time that the other side names, such as the end of a rate limit, without that
counting as one of its tries. GitHub's limits end within an hour."""


def next_rung(tries: int, retry_after: float | None) -> RetryRung | None:
    """Return the rung of the retry ladder on which a message waits; None once it was on every rung."""
    remaining = RETRY_LADDER[tries:]
    long_enough = (rung for rung in remaining if rung.seconds >= (retry_after or 0))
    return next(long_enough, remaining[-1] if remaining else None)


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of one request."""

    rung: RetryRung
    """Where it waits now. A longer wait takes several rungs, one after the other."""
    counts: bool
    """True if this uses up one of the request's tries."""
    seconds: float
    """Seconds until the next try."""
    about: str
    """What is said of it: the same while the end of the wait does not change."""


def plan_wait(tries: int, error: TransientError, *, queued_at: datetime, now: datetime) -> Wait | None:
    """Return the wait after an error; None if the request has waited long enough and is to be rejected."""
    named = error.retry_after
    regular = RETRY_LADDER[min(tries, len(RETRY_LADDER) - 1)]
    if named is not None and named > regular.seconds and now - queued_at <= LONGEST_KNOWN_WAIT:
        fitting = [rung for rung in RETRY_LADDER if rung.seconds <= named]
        until = now + timedelta(seconds=named)
        return Wait(fitting[-1], False, named, f"try{tries}:until{until:%Y%m%dT%H%M}")
    rung = next_rung(tries, named)
    return Wait(rung, True, float(rung.seconds), f"try{tries}") if rung else None


def waiting_progress(build_id: BuildId, error: TransientError, wait: Wait, *, now: datetime) -> Progress:
    """Return the event that says what a request waits for, and until when."""
    return Progress(
        build_id=build_id,
        attempt=0,
        phase=Phase.WAITING,
        message=f"{error.message} {next_try_text(wait.seconds, now)}",
        detail=ProgressDetail(
            waiting_for=error.message,
            retry_in_seconds=round(wait.seconds, 3),
            retry_at=now + timedelta(seconds=wait.seconds),
        ),
    )


def next_try_text(seconds: float, now: datetime) -> str:
    """Return when the service tries again, as a sentence."""
    if seconds < 2:
        return "The next try is in a moment."
    if seconds < 60:
        return f"The next try is in {round(seconds)} seconds."
    minutes = math.ceil(seconds / 60)
    unit = "minute" if minutes == 1 else "minutes"
    return f"The next try is at {now + timedelta(seconds=seconds):%H:%M} UTC, in {minutes} {unit}."
