"""The event streams that are open at this moment: how many there may be, for one client and in all, and their end."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from rabbit2docker import metrics
from rabbit2docker.hub.web.errors import Forbidden, TooManyStreams
from rabbit2docker.hub.web.limits import LimitSubject, SubjectKind
from rabbit2docker.settings import HubSettings

END_SECONDS: Final = 5.0
"""Longest time in which streams end once they are cancelled."""


@dataclass(frozen=True, slots=True)
class StreamSlot:
    """One open stream; leave it when it has ended."""

    key: str | None


def _streams(number: int) -> str:
    return f"{number} stream of events" if number == 1 else f"{number} streams of events"


class Stream(Protocol):
    """A stream that is sent at the moment."""

    def end_for_restart(self) -> None:
        """End it in such a way that its client reconnects and resumes."""


class OpenStreams:
    """Counts open streams, and ends them when the service stops. One client at its limit leaves the others theirs."""

    def __init__(self, settings: HubSettings) -> None:
        """Take the limits."""
        self._limit = settings.viewers
        self._limit_per_user = settings.viewers_per_user
        self._open: Counter[str | None] = Counter()
        self._sent: set[Stream] = set()
        self._idle = asyncio.Event()
        self._idle.set()

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

    def begin(self, stream: Stream) -> None:
        """Note that a stream is being sent."""
        self._sent.add(stream)
        self._idle.clear()

    def finish(self, stream: Stream) -> None:
        """Note that nothing more of a stream will be sent."""
        self._sent.discard(stream)
        if not self._sent:
            self._idle.set()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let streams end by themselves for some seconds or until `hurry` is set, then end the rest."""
        waits = [asyncio.create_task(each.wait()) for each in (self._idle, hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        for stream in list(self._sent):
            stream.end_for_restart()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._idle.wait()
