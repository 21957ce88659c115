"""Reads a build pod's log, each line once and in order, over any number of broken connections.

The builder numbers its lines, so what was seen is known by number; time stamps only keep a resumed stream short. The
log is complete when the builder's own count is reached; where it could not count, when the container has ended and one
more reading brought nothing new.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final, Protocol, TypeVar

import aiohttp
import structlog

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.base import AttemptName, BuilderLine, Lines, MissingLines
from rabbit2docker.consumer.executors.builder_io import parse_line
from rabbit2docker.consumer.executors.kubernetes.client import (
    ApiClient,
    ApiStatusError,
    ApiTemporarilyUnavailable,
)
from rabbit2docker.consumer.executors.kubernetes.pod_status import BUILDER_CONTAINER
from rabbit2docker.errors import ExecutorUnavailable, RecordMissing

log = structlog.get_logger()
T = TypeVar("T")

SILENCE_SECONDS: Final = 300.0
"""A stream that is silent for longer is opened anew: a connection that died unnoticed looks just like it."""
AFTER_END_SECONDS: Final = 5.0
"""A stream that goes on for longer after the container has ended is dead."""
NEWS_SECONDS: Final = 2.0
"""A stream ends a moment before the watch tells that the container has: waiting for that saves a call."""
BACKOFF_SECONDS: Final = (0.2, 10.0)
TRIES_AFTER_END: Final = 8
"""How often a node that does not hand out the rest of a log is asked for it."""
SILENT_TRIES_AFTER_END: Final = 20
"""How often after an end where it is not clear whether node or API server is to blame."""
LINE_BYTES: Final = 1 << 20
KEPT_BYTES: Final = 100
"""What is kept of a longer one: its time stamp."""
_OF_THE_SERVER: Final = (401, 408, 429, 503)
"""Statuses by which the API server speaks of itself; the others speak of node and pod."""
# As the kubelet stamps each line; what lacks it is the kubelet's own text, sent with status 200.
_STAMPED: Final = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")


class Watched(Protocol):
    """What the executor knows of the pod whose log is read."""

    readers: set[Callable[[], None]]
    """Called when anything below changes."""

    @property
    def has_log(self) -> bool:
        """Tell whether the container has been started."""

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended."""

    @property
    def removed(self) -> bool:
        """Tell whether the pod is gone."""

    @property
    def counted(self) -> int | None:
        """Return how many lines the builder says it wrote."""


class LogReader:
    """A place in one log."""

    def __init__(self, api: ApiClient, path: str, name: AttemptName, pod: Watched, *, after: int) -> None:
        """Begin behind the line numbered `after` of the log at `path`."""
        self._api = api
        self._path = path
        self._name = name
        self._pod = pod
        self._next = after + 1
        self._since: str | None = None
        self._resumed_at: str | None = None
        self._is_doubtful = False
        self._limit: asyncio.Timeout | None = None
        self._news = asyncio.Event()
        self._failures = 0

    async def read(self) -> AsyncIterator[Lines]:
        """Yield lines as they come, to the last. Raises RecordMissing."""
        self._pod.readers.add(self._on_news)
        try:
            while not await self._is_complete():
                was_over, before = self._pod.is_over, self._next
                error: Exception | None = None
                try:
                    async for lines in self._connection(follow=not was_over):
                        yield lines
                except (
                    ExecutorUnavailable,
                    ApiStatusError,
                    aiohttp.ClientError,
                    TimeoutError,
                    OSError,
                ) as problem:
                    error = problem
                if self._next > before:
                    self._failures = 0
                elif was_over and error is None and not self._has_more_at_the_beginning():
                    break
                if not await self._may_try_again(error, was_over=was_over):
                    break
            if missing := self._missing_at_end():
                yield missing
        finally:
            self._pod.readers.discard(self._on_news)

    def _has_more_at_the_beginning(self) -> bool:
        """Tell whether a reading of the whole log may bring what one of its end did not, and prepare for it."""
        if self._resumed_at is None:
            return False
        self._since = None
        return True

    def _on_news(self) -> None:
        self._news.set()
        # A stream that hears of the end only from us is dead.
        if (
            self._limit is not None
            and (self._pod.is_over or self._pod.removed)
            and self._limit.when() is None
        ):
            self._limit.reschedule(asyncio.get_running_loop().time() + AFTER_END_SECONDS)

    async def _is_complete(self) -> bool:
        """Wait until there is something to read; tell whether all was read."""
        while True:
            self._news.clear()
            if self._pod.removed:
                raise RecordMissing(f"The record {self._name} is gone.")
            if self._pod.is_over:
                counted = self._pod.counted
                return not self._pod.has_log or (counted is not None and self._next >= counted)
            if self._pod.has_log:
                return False
            await self._news.wait()

    def _missing_at_end(self) -> MissingLines | None:
        counted = self._pod.counted or 0
        return MissingLines(self._next, counted - 1) if counted > self._next else None

    async def _may_try_again(self, error: Exception | None, *, was_over: bool) -> bool:
        """Wait a little; False when the rest of the log cannot be had any more."""
        first, longest = BACKOFF_SECONDS
        seconds = min(longest, first * 2**self._failures)
        self._failures = min(self._failures + 1, 20)
        if error is not None:
            log.info(
                "the log is interrupted, going on", name=self._name, error=str(error) or type(error).__name__
            )
            if was_over and self._failures >= _tries_after_end(error):
                log.warning("the rest of the log cannot be had", name=self._name, error=str(error))
                return False
        if was_over:
            await asyncio.sleep(seconds if error is not None else 0)
            return True
        # A stream that ended in good order most likely means that the container has, too.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if error is not None else max(seconds, NEWS_SECONDS)):
                while not (self._pod.is_over or self._pod.removed):
                    self._news.clear()
                    await self._news.wait()
        return True

    async def _connection(self, *, follow: bool) -> AsyncIterator[Lines]:
        """Read one stream to its end."""
        query = {"container": BUILDER_CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        self._resumed_at, self._is_doubtful = self._since, False
        if self._since is not None:
            query["sinceTime"] = self._since
        async with AsyncExitStack() as stack:
            stack.enter_context(metrics.KUBERNETES_LOG_STREAMS.track_inprogress())
            opening = self._api.stream(self._path, query, read_seconds=SILENCE_SECONDS)
            # Where nothing was written yet there is no answer either: the kubelet begins it with the first line.
            response = await self._not_long_after_the_end(stack.enter_async_context(opening))
            rest = b""
            while data := await self._not_long_after_the_end(response.content.readany()):
                *raw, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES:
                    # The builder's lines are much shorter: this is none, whatever follows.
                    rest = rest[:KEPT_BYTES]
                for lines in self._parse(raw):
                    yield lines
                if self._is_doubtful:
                    raise TimeoutError(f"line {self._next} is not where it should be")
            # Cut in the middle it cannot be parsed, and is read again.
            for lines in self._parse([rest]):
                yield lines
            if rest and self._pod.counted is not None:
                raise ApiTemporarilyUnavailable("The log ends in the middle of a line.")

    async def _not_long_after_the_end(self, waiting: Awaitable[T]) -> T:
        """Wait for the other side; raises TimeoutError when it is silent for too long after the container's end."""
        async with asyncio.timeout(None) as self._limit:
            if self._pod.is_over:
                self._on_news()
            try:
                return await waiting
            finally:
                self._limit = None

    def _parse(self, raw: list[bytes]) -> list[Lines]:
        found: list[Lines] = []
        batch: list[BuilderLine] = []
        for data in raw:
            stamp = _STAMPED.match(data)
            if stamp is None:
                if data.strip() and not found and not batch:
                    self._on_strange(data)
                continue
            line = parse_line(data[stamp.end() :])
            if line is None or line.n < self._next:
                continue
            if line.n > self._next:
                if self._resumed_at is not None:
                    # Maybe only the node's clock was set back: the whole log tells.
                    self._since, self._is_doubtful = None, True
                    break
                if batch:
                    found.append(batch)
                    batch = []
                found.append(MissingLines(self._next, line.n - 1))
            batch.append(line)
            self._next = line.n + 1
            # The API server cuts it to whole seconds, and the kubelet's filter is inclusive.
            self._since = (stamp[1] + stamp[2]).decode()
        if batch:
            found.append(batch)
        return found

    def _on_strange(self, data: bytes) -> None:
        """Handle what has no time stamp: the kubelet's own words about a log it cannot read."""
        text = data[:300].decode("utf-8", "replace")
        log.info("the kubelet says", name=self._name, text=text)
        raise ApiTemporarilyUnavailable(f"The log cannot be read: {text}")


def _tries_after_end(error: Exception) -> float:
    """Return how often the rest of a log is asked for when this is the answer."""
    if isinstance(error, ApiTemporarilyUnavailable):
        return TRIES_AFTER_END if error.status not in _OF_THE_SERVER else SILENT_TRIES_AFTER_END
    if isinstance(error, ApiStatusError):
        return TRIES_AFTER_END
    # An API server that cannot be reached comes back; a stream that stays silent may be a dead node's.
    return float("inf") if isinstance(error, ExecutorUnavailable) else SILENT_TRIES_AFTER_END
