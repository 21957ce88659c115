"""Reader of a build pod's log: each line once and in order, across any number of broken connections.

The builder numbers its lines, and the numbers decide what was read; time stamps only shorten a resumed stream. The log
is complete once the builder's own line count is reached. Without a count it is complete when the container has ended
and one more read returned nothing new.
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
from rabbit2docker.retry import Backoff, doubling

log = structlog.get_logger()
T = TypeVar("T")

READ_TIMEOUT_SECONDS: Final = 300.0
"""A stream without data for longer than this is reopened, as a dead connection looks just like a quiet build."""
AFTER_END_SECONDS: Final = 5.0
"""A stream that is still open this long after the container has ended is dead."""
END_DELAY_SECONDS: Final = 2.0
"""Wait for the watch to report the container's end, which arrives shortly after the stream's; it saves a call."""
PAUSES: Final = doubling(0.2, 10.0)
TRIES_AFTER_END: Final = 8
"""Failed reads of the rest of a log before giving up, if the node is to blame."""
AMBIGUOUS_TRIES_AFTER_END: Final = 20
"""The same, if either the node or the API server may be to blame."""
TRIES_OF_LOST_NODE: Final = 2
"""The same for streams without data from a node that Kubernetes has given up."""
LINE_BYTES: Final = 1 << 20
KEPT_BYTES: Final = 100
"""Length to which longer lines are cut; it includes the time stamp."""
_API_SERVER_STATUSES: Final = (401, 408, 429, 503)
"""HTTP statuses that concern the API server itself; all others concern the node or the pod."""
# The kubelet's time stamp. A line without one is an error message of the kubelet, sent with status 200.
_TIMESTAMP: Final = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")
_STREAM_ERRORS: Final = (ExecutorUnavailable, ApiStatusError, aiohttp.ClientError, TimeoutError, OSError)


class LogState(Protocol):
    """State of the pod whose log is read."""

    log_readers: set[Callable[[], None]]
    """Callbacks for changes of the properties below."""

    @property
    def has_log(self) -> bool:
        """Return whether the container was started."""

    @property
    def has_ended(self) -> bool:
        """Return whether the container has ended."""

    @property
    def is_node_lost(self) -> bool:
        """Return whether the container counts as ended because its node stopped responding."""

    @property
    def removed(self) -> bool:
        """Return whether the pod is gone."""

    @property
    def line_count(self) -> int | None:
        """Return the number of lines that the builder reported at its end; None if unknown."""


class LogReader:
    """Reads one log from a line on."""

    def __init__(self, api: ApiClient, path: str, name: AttemptName, pod: LogState, *, after: int) -> None:
        """Start after the line numbered `after` of the log at `path`."""
        self._api = api
        self._path = path
        self._name = name
        self._pod = pod
        self._next = after + 1
        self._since: str | None = None
        """Time stamp of the last line, to resume from; None to read the whole log."""
        self._resumed_since: str | None = None
        self._must_reread = False
        self._deadline: asyncio.Timeout | None = None
        self._changed = asyncio.Event()
        self._backoff = Backoff(PAUSES)

    async def read(self) -> AsyncIterator[Lines]:
        """Yield lines as they are written, up to the last. Raises RecordMissing."""
        self._pod.log_readers.add(self._on_change)
        try:
            while not await self._is_complete():
                had_ended, before = self._pod.has_ended, self._next
                error: Exception | None = None
                try:
                    async for lines in self._stream(follow=not had_ended):
                        yield lines
                except _STREAM_ERRORS as caught:
                    error = caught
                if self._next > before:
                    self._backoff.reset()
                elif had_ended and error is None and not self._restart_from_beginning():
                    break
                if not await self._wait_to_retry(error, had_ended=had_ended):
                    break
            if missing := self._missing_at_end():
                yield missing
        finally:
            self._pod.log_readers.discard(self._on_change)

    def _restart_from_beginning(self) -> bool:
        """Make the next stream read the whole log; False if the last one did."""
        if self._resumed_since is None:
            return False
        self._since = None
        return True

    def _on_change(self) -> None:
        self._changed.set()
        # The end of the container normally ends the stream, too: give it a moment, then treat it as dead.
        if (
            self._deadline is not None
            and (self._pod.has_ended or self._pod.removed)
            and self._deadline.when() is None
        ):
            self._deadline.reschedule(asyncio.get_running_loop().time() + AFTER_END_SECONDS)

    async def _is_complete(self) -> bool:
        """Wait until there is a log to read, and return whether all of it was read."""
        while True:
            self._changed.clear()
            if self._pod.removed:
                raise RecordMissing(f"The record {self._name} is gone.")
            if self._pod.has_ended:
                count = self._pod.line_count
                return not self._pod.has_log or (count is not None and self._next >= count)
            if self._pod.has_log:
                return False
            await self._changed.wait()

    def _missing_at_end(self) -> MissingLines | None:
        count = self._pod.line_count or 0
        return MissingLines(self._next, count - 1) if count > self._next else None

    async def _wait_to_retry(self, error: Exception | None, *, had_ended: bool) -> bool:
        """Wait before the next stream; False if the rest of the log is out of reach."""
        seconds = self._backoff.next()
        if error is not None:
            reason = str(error) or type(error).__name__
            log.info("log stream interrupted", name=self._name, error=reason)
            if had_ended and self._backoff.failures >= self._max_tries_after_end(error):
                log.warning("log abandoned", name=self._name, error=reason, next_line=self._next)
                return False
        if had_ended:
            await asyncio.sleep(seconds if error is not None else 0)
            return True
        # A stream that ended without an error most likely ended with the container.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if error is not None else max(seconds, END_DELAY_SECONDS)):
                while not (self._pod.has_ended or self._pod.removed):
                    self._changed.clear()
                    await self._changed.wait()
        return True

    async def _stream(self, *, follow: bool) -> AsyncIterator[Lines]:
        """Read one stream to its end."""
        query = {"container": BUILDER_CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        self._resumed_since, self._must_reread = self._since, False
        if self._since is not None:
            query["sinceTime"] = self._since
        async with AsyncExitStack() as stack:
            stack.enter_context(metrics.KUBERNETES_LOG_STREAMS.track_inprogress())
            opening = self._api.stream(self._path, query, read_seconds=READ_TIMEOUT_SECONDS)
            # The kubelet sends the response headers together with the first line, so this may wait for long.
            response = await self._until_after_end(stack.enter_async_context(opening))
            rest = b""
            while data := await self._until_after_end(response.content.readany()):
                *raw_lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES:
                    # Much longer than any line of the builder, so it is ignored: only its time stamp is kept.
                    rest = rest[:KEPT_BYTES]
                for lines in self._parse(raw_lines):
                    yield lines
                if self._must_reread:
                    raise TimeoutError(f"line {self._next} is missing in the resumed log")
            # An incomplete line cannot be parsed, and the next stream reads it again.
            for lines in self._parse([rest]):
                yield lines
            if rest and self._pod.line_count is not None:
                raise ApiTemporarilyUnavailable("The log ends in the middle of a line.")

    async def _until_after_end(self, step: Awaitable[T]) -> T:
        """Await the step. Raises TimeoutError if it takes longer than AFTER_END_SECONDS from the container's end on."""
        async with asyncio.timeout(None) as self._deadline:
            if self._pod.has_ended:
                self._on_change()
            try:
                return await step
            finally:
                self._deadline = None

    def _parse(self, raw_lines: list[bytes]) -> list[Lines]:
        """Return the new lines in batches, with a MissingLines for each gap."""
        batches: list[Lines] = []
        batch: list[BuilderLine] = []
        for data in raw_lines:
            timestamp = _TIMESTAMP.match(data)
            if timestamp is None:
                if data.strip() and not batches and not batch:
                    self._raise_kubelet_error(data)
                continue
            line = parse_line(data[timestamp.end() :])
            if line is None or line.n < self._next:
                continue
            if line.n > self._next:
                if self._resumed_since is not None:
                    # The node's clock may have been set back, which hides lines from sinceTime but not from a full read.
                    self._since, self._must_reread = None, True
                    break
                if batch:
                    batches.append(batch)
                    batch = []
                batches.append(MissingLines(self._next, line.n - 1))
            batch.append(line)
            self._next = line.n + 1
            # In whole seconds, as the API server truncates sinceTime; the kubelet's filter is inclusive.
            self._since = (timestamp[1] + timestamp[2]).decode()
        if batch:
            batches.append(batch)
        return batches

    def _raise_kubelet_error(self, data: bytes) -> None:
        """Raise the kubelet's message about a log that it cannot read, recognized by its missing time stamp."""
        message = data[:300].decode("utf-8", "replace")
        raise ApiTemporarilyUnavailable(f"The kubelet cannot read the log: {message}")

    def _max_tries_after_end(self, error: Exception) -> float:
        """Return how often to try to read the rest of a log that fails with this error."""
        if isinstance(error, ApiTemporarilyUnavailable):
            is_from_node = error.status not in _API_SERVER_STATUSES
            return TRIES_AFTER_END if is_from_node else AMBIGUOUS_TRIES_AFTER_END
        if isinstance(error, ApiStatusError):
            return TRIES_AFTER_END
        if isinstance(error, ExecutorUnavailable):  # an unreachable API server comes back
            return float("inf")
        # A stream without data may come from a dead node; the build is tried again only after its log.
        return TRIES_OF_LOST_NODE if self._pod.is_node_lost else AMBIGUOUS_TRIES_AFTER_END
