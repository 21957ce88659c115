"""The event streams that are open at this moment: how many there may be, for one client and in all."""

from collections import Counter
from dataclasses import dataclass

from rabbit2docker import metrics
from rabbit2docker.hub.web.errors import Forbidden, TooManyStreams
from rabbit2docker.hub.web.limits import LimitSubject, SubjectKind
from rabbit2docker.settings import HubSettings


@dataclass(frozen=True, slots=True)
class StreamSlot:
    """One open stream; leave it when it has ended."""

    key: str | None


def _streams(number: int) -> str:
    return f"{number} stream of events" if number == 1 else f"{number} streams of events"


class OpenStreams:
    """Counts open streams. One client at its limit leaves the others theirs."""

    def __init__(self, settings: HubSettings) -> None:
        """Take the limits."""
        self._limit = settings.viewers
        self._limit_per_user = settings.viewers_per_user
        self._open: Counter[str | None] = Counter()

    def enter(self, subject: LimitSubject | None) -> StreamSlot:
        """Count a stream of a client. Raises TooManyStreams at the client's limit, Forbidden at that of all together."""
        key = None if subject is None else subject.key
        # A service holds the streams of all the people that it serves.
        is_limited = subject is not None and subject.kind is not SubjectKind.SERVICE
        if subject is not None and is_limited and 0 < self._limit_per_user <= self._open[key]:
            metrics.HUB_REJECTIONS.labels(limit="viewers").inc()
            raise TooManyStreams(
                f"{subject.noun} {_streams(self._open[key])} open at once, which is the limit. "
                "Close some of them, then try again."
            )
        if self._open.total() >= self._limit:
            metrics.HUB_REJECTIONS.labels(limit="viewers").inc()
            raise Forbidden("Too many builds are being watched. Please try again in a minute.", 503)
        self._open[key] += 1
        return StreamSlot(key)

    def leave(self, slot: StreamSlot) -> None:
        """Count a stream no longer."""
        self._open[slot.key] -= 1
        if not self._open[slot.key]:
            del self._open[slot.key]
