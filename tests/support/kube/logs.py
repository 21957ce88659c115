"""A container's log file as a kubelet serves it."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.support.kube.objects import bad_request

CHUNK_BYTES = 1 << 16
NANOSECONDS = 1_000_000_000


def stamp_of(nanoseconds: int) -> bytes:
    """Return a time as kubelets write it before lines: always with nine digits."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".encode()


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The query of pods/log."""

    follow: bool = False
    timestamps: bool = False
    since: int | None = None
    """Nanoseconds; always a whole second."""
    tail: int | None = None
    limit: int | None = None

    @classmethod
    def read(cls, query: Mapping[str, str], now: int) -> "LogOptions":
        """Parse the query. Raises ApiError if it is invalid."""
        since = None
        if text := query.get("sinceTime"):
            try:
                moment = datetime.fromisoformat(text)
            except ValueError as error:
                raise bad_request(f"invalid sinceTime: {text}") from error
            # The API server drops the fraction of a second.
            since = int(moment.timestamp()) * NANOSECONDS
        elif text := query.get("sinceSeconds"):
            since = now - int(text) * NANOSECONDS
        return cls(
            follow=_flag(query.get("follow")),
            timestamps=_flag(query.get("timestamps")),
            since=since,
            tail=int(query["tailLines"]) if query.get("tailLines") else None,
            limit=int(query["limitBytes"]) if query.get("limitBytes") else None,
        )


def _flag(text: str | None) -> bool:
    return text is not None and text.lower() not in ("", "0", "false")


class ContainerLog:
    """Lines with time stamps. Only the current file is served."""

    def __init__(self) -> None:
        self.first = 0
        """Number of the first line in the current file."""
        self.is_lost = False
        """True once the container runtime has removed the container with its log."""
        self._ended = False
        self._lines: list[tuple[int, bytes]] = []
        self._listeners: set[asyncio.Event] = set()

    @property
    def count(self) -> int:
        """Return the number of all lines written."""
        return self.first + len(self._lines)

    @property
    def is_ended(self) -> bool:
        """End the log: the container writes nothing more."""
        return self._ended

    def write(self, lines: Iterable[bytes], at: int) -> None:
        self._lines += [(at, line) for line in lines]
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def rotate(self, keep: int) -> None:
        """Start a new file with only the last lines; older ones are no longer served."""
        dropped = max(0, len(self._lines) - keep)
        self.first += dropped
        del self._lines[:dropped]

    def read(self, options: LogOptions) -> "LogReader":
        return LogReader(self, options)

    def at(self, number: int) -> tuple[int, bytes]:
        return self._lines[number - self.first]

    def listen(self, event: asyncio.Event) -> None:
        self._listeners.add(event)

    def leave(self, event: asyncio.Event) -> None:
        self._listeners.discard(event)

    def _wake(self) -> None:
        for event in self._listeners:
            event.set()


class LogReader:
    """One pass over a log."""

    def __init__(self, log: ContainerLog, options: LogOptions) -> None:
        self._log = log
        self._options = options
        self._left = options.limit
        self._next = log.first if options.tail is None else max(log.first, log.count - options.tail)

    @property
    def is_full(self) -> bool:
        """Return whether limitBytes is reached."""
        return self._left is not None and self._left <= 0

    def take(self) -> bytes:
        """Return the next part of the log; empty if there is nothing more yet."""
        log, options, data = self._log, self._options, bytearray()
        self._next = max(self._next, log.first)
        while self._next < log.count and len(data) < CHUNK_BYTES:
            at, line = log.at(self._next)
            self._next += 1
            if options.since is not None and at < options.since:
                continue
            if options.timestamps:
                data += stamp_of(at) + b" "
            data += line + b"\n"
        if self._left is not None:
            del data[self._left :]
            self._left -= len(data)
        return bytes(data)
