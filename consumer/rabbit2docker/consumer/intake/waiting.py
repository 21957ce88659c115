"""The wait of a request before the service tries again, and the event that announces it. Without I/O."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from rabbit2docker.amqp.ports import RequestMessage, Waiting
from rabbit2docker.errors import Dependency, DependencyKind, LimitReached, TransientError
from rabbit2docker_schemas.events import Phase, Progress, ProgressDetail
from rabbit2docker_schemas.ids import BuildId
from rabbit2docker_schemas.routing import RETRY_LADDER, RetryLadder, RetryRung

_UNTIL: Final = "until"
_OUTAGE: Final = "outage:"
_LIMIT: Final = "limit:"
_SAME_END: Final = timedelta(seconds=60)
"""Two ends of a wait that differ by less are the same end, which the other side gives in whole seconds."""
_MEDIUM_ROUNDS: Final = timedelta(minutes=30)
"""Age of a wait from which the return of a repository host, which requests name, is awaited in long rounds."""
_SHORT_ROUNDS: Final = timedelta(minutes=10)
"""Age of a wait up to which the end of another build, which frees a place, is awaited in short rounds."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of one request."""

    rung: RetryRung
    """Where it waits now. A longer wait takes several rungs, one after the other."""
    counts: bool
    """True if this uses up one of the request's tries."""
    waiting: Waiting
    """Since when it waits, and what is said of it: the same while nothing changes."""
    seconds: float
    """Seconds until the next try."""
    gives_up_at: datetime | None = None
    """Set if the request may wait until then, however often it is tried."""


def plan_wait(
    received: RequestMessage,
    error: TransientError,
    *,
    now: datetime,
    patience: timedelta,
    ladder: RetryLadder = RETRY_LADDER,
) -> Wait | None:
    """Return the wait after an error; None if the request has waited long enough and is to be rejected.

    An outage, an operator's limit and a time that the other side names are waited for up to `patience`; other errors go
    down the ladder.
    """
    tries = received.tries
    named = None if error.retry_after is None else min(error.retry_after, patience.total_seconds())
    known = received.waiting
    since = min(known.since, now) if known else now
    if named is not None and named > ladder.regular(tries).seconds:
        about = _named_end(now + timedelta(seconds=named), known.about if known else "")
        return _uncounted(ladder.longest_within(named), since, about, named, now, patience)
    if isinstance(error, LimitReached):
        rung = ladder.regular(0 if now - since < _SHORT_ROUNDS else 1)
        return _uncounted(rung, since, f"{_LIMIT}{error.limit}", float(rung.seconds), now, patience)
    if error.outage_of is not None:
        rung, about = _outage_rung(error.outage_of, now - since, ladder), _outage_name(error.outage_of)
        return _uncounted(rung, since, about, float(rung.seconds), now, patience)
    if (next_one := ladder.next(tries, named)) is None:
        return None
    return Wait(next_one, True, Waiting(since, f"try{tries}"), float(next_one.seconds))


def _uncounted(
    rung: RetryRung, since: datetime, about: str, seconds: float, now: datetime, patience: timedelta
) -> Wait | None:
    gives_up_at = since + patience
    if now >= gives_up_at:
        return None
    return Wait(rung, False, Waiting(since, about), seconds, gives_up_at)


def _named_end(until: datetime, announced: str) -> str:
    """Return the name of a wait with a known end: that of the announced wait if it has the same end."""
    name = f"{_UNTIL}{until:%Y%m%dT%H%M%SZ}"
    try:
        end = datetime.strptime(announced, f"{_UNTIL}%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return name
    return announced if abs(until - end) <= _SAME_END else name


def _outage_name(dependency: Dependency) -> str:
    return f"{_OUTAGE}{dependency.kind}:{dependency.name}"[:200]


def _outage_rung(dependency: Dependency, waited: timedelta, ladder: RetryLadder) -> RetryRung:
    """Return the rung for a further round of an outage: the longer it lasts, the longer the rounds."""
    medium = ladder.regular(1)
    if waited < timedelta(seconds=medium.seconds):
        return ladder.regular(0)
    is_named_by_request = dependency.kind in (DependencyKind.HOST, DependencyKind.REPOSITORY)
    return ladder.regular(2) if is_named_by_request and waited > _MEDIUM_ROUNDS else medium


def waiting_progress(build_id: BuildId, error: TransientError, wait: Wait, *, now: datetime) -> Progress:
    """Return the event that says what a request waits for, and until when."""
    next_try = now + timedelta(seconds=wait.seconds)
    is_outage = wait.waiting.about.startswith(_OUTAGE)
    is_limit = wait.waiting.about.startswith(_LIMIT)
    if is_limit:
        text = f"It waits until {wait.gives_up_at:%Y-%m-%d %H:%M} UTC at the latest."
    elif is_outage and error.outage_of is not None:
        text = (
            f"The request waits and goes on by itself once {error.outage_of.title} is back, "
            f"until {wait.gives_up_at:%Y-%m-%d %H:%M} UTC at the latest."
        )
    else:
        text = next_try_text(wait.seconds, now)
    return Progress(
        build_id=build_id,
        attempt=0,
        phase=Phase.WAITING,
        message=f"{error.message} {text}",
        detail=ProgressDetail(
            waiting_for=error.message,
            retry_in_seconds=round(wait.seconds, 3),
            # Of the many tries during such a wait only the first is announced.
            retry_at=None if is_outage or is_limit else next_try,
            gives_up_at=wait.gives_up_at,
        ),
    )


def waited_text(seconds: float) -> str:
    """Return for how long a request has waited, as a part of a sentence."""
    if seconds < 3600:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    hours = round(seconds / 3600)
    return f"{hours} hour{'' if hours == 1 else 's'}"


def next_try_text(seconds: float, now: datetime) -> str:
    """Return when the service tries again, as a sentence."""
    if seconds < 2:
        return "The next try is in a moment."
    if seconds < 60:
        return f"The next try is in {round(seconds)} seconds."
    minutes = math.ceil(seconds / 60)
    unit = "minute" if minutes == 1 else "minutes"
    return f"The next try is at {now + timedelta(seconds=seconds):%H:%M} UTC, in {minutes} {unit}."
