"""Follows one attempt: lines become events as they come, the end becomes one outcome, written before it is told."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog

from rabbit2docker import metrics
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.attempt_names import next_attempt_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptStatus, BuilderLine, Executor, MissingLines
from rabbit2docker.consumer.following.outcome import (
    Evidence,
    ImageCheck,
    Outcome,
    Retry,
    decide,
    lost,
    restored,
    stored,
)
from rabbit2docker.consumer.following.progress import ProgressReader, as_log_events, last_of
from rabbit2docker.errors import RecordMissing, TransientError
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import (
    Failed,
    Gap,
    Phase,
    Progress,
    ProgressDetail,
    TerminalEventData,
)

log = structlog.get_logger()
T = TypeVar("T")

REGISTRY_TRIES: Final = 6
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


TAIL_BYTES: Final = 16_384
"""An outcome is also written into the record, which in a cluster may hold no more than 256 KiB in all."""


class Verified(Protocol):
    """An image that the registry has."""

    @property
    def digest(self) -> str:
        """Return the manifest's digest."""

    @property
    def size(self) -> int | None:
        """Return the bytes of its layers, where known."""


@dataclass(frozen=True, slots=True)
class FollowerContext:
    """What every follower works with."""

    executor: Executor
    attempts: AttemptCache
    events: EventPublisher
    find_image: Callable[[str], Awaitable[Verified | None]]
    """Asks the registry; raises TransientError when it cannot tell."""
    settings: Settings


class Follower:
    """One attempt, from its first line to its outcome."""

    def __init__(self, attempt: Attempt, tools: FollowerContext) -> None:
        """Start from the snapshot `attempt`: after what RabbitMQ has confirmed already."""
        self._spec = attempt.spec
        self._last_seen = attempt
        self._tools = tools
        self._confirmed = attempt.status.confirmed_line
        self._written = self._confirmed
        self._written_at = asyncio.get_running_loop().time()
        self._tail: deque[str] = deque(maxlen=tools.settings.build_logs.tail_lines)
        self._reader = ProgressReader(self._spec.build_id, self._spec.attempt)

    async def run(self) -> None:
        """Follow to the end. Cancelling it is safe at any point: what is confirmed is written down."""
        try:
            await self._tell_waiting()
            await self._follow_lines()
            await self._conclude()
        except asyncio.CancelledError:
            with suppress(TransientError, RecordMissing):
                await asyncio.shield(self._checkpoint(force=True))
            raise

    async def _tell_waiting(self) -> None:
        if self._confirmed < 0:
            await self._progress(Phase.WAITING, "Waiting for build to start", about="created")

    async def tell_waiting_for(self, reason: str) -> None:
        """Say why the attempt does not run yet."""
        await self._progress(
            Phase.WAITING, reason, about=f"waiting:{reason}", detail=ProgressDetail(waiting_for=reason)
        )

    async def _progress(
        self, phase: Phase, message: str, *, about: str, detail: ProgressDetail | None = None
    ) -> None:
        data = Progress(
            build_id=self._spec.build_id,
            attempt=self._spec.attempt,
            phase=phase,
            message=message,
            detail=detail or ProgressDetail(),
        )
        await self._tools.events.publish_progress(self._spec.tenant, data, about=about)

    async def _follow_lines(self) -> None:
        limits = self._tools.settings.build_logs
        with suppress(RecordMissing):
            async for lines in self._tools.executor.lines(self._spec.name, after=self._confirmed):
                if isinstance(lines, MissingLines):
                    await self._tell_gap(lines)
                    continue
                size = await self._tell_lines(lines, max_bytes=limits.batch_bytes)
                await self._checkpoint()
                # What is written during this pause makes up the next batch; a backlog is not held up.
                if size < limits.batch_bytes:
                    await asyncio.sleep(limits.batch_seconds)

    async def _tell_gap(self, missing: MissingLines) -> None:
        gap = Gap(
            build_id=self._spec.build_id,
            attempt=self._spec.attempt,
            first=missing.first,
            last=missing.last,
            message="These lines were lost where the build ran.",
        )
        await self._tools.events.publish_gap(self._spec.tenant, gap)
        self._confirmed = missing.last

    async def _tell_lines(self, lines: list[BuilderLine], *, max_bytes: int) -> int:
        tenant, events = self._spec.tenant, self._tools.events
        rest = lines
        for told in self._reader.read(lines):
            # In the order in which it happened: the lines before a new phase or step, then that, then the others.
            before = told.line - rest[0].n
            await self._tell_log(rest[:before], max_bytes=max_bytes)
            rest = rest[before:]
            await events.publish_progress(tenant, told.data, about=f"line{told.line}")
        await self._tell_log(rest, max_bytes=max_bytes)
        self._tail.extend(line.text for line in lines)
        return sum(len(line.text) for line in lines)

    async def _tell_log(self, lines: list[BuilderLine], *, max_bytes: int) -> None:
        for event in as_log_events(self._spec.build_id, self._spec.attempt, lines, max_bytes=max_bytes):
            await self._tools.events.publish_log(self._spec.tenant, event)
            self._confirmed = event.n + len(event.lines) - 1

    async def _checkpoint(self, *, force: bool = False) -> None:
        now, pause = asyncio.get_running_loop().time(), self._tools.executor.checkpoint_seconds
        if self._written >= self._confirmed or (not force and now - self._written_at < pause):
            return
        self._written, self._written_at = self._confirmed, now
        number = self._confirmed
        # A full disk must not stop the log: after a crash, lines are told again and readers drop them.
        with suppress(TransientError, RecordMissing):
            await self._update_status(lambda status: status.model_copy(update={"confirmed_line": number}))

    async def _update_status(self, change: Callable[[AttemptStatus], AttemptStatus]) -> Attempt:
        attempt = await self._tools.executor.update_status(self._spec.name, change)
        return self._tools.attempts.put(attempt)

    async def _conclude(self) -> None:
        """Decide, write the decision down, tell it, and write down that it was told."""
        attempt = await self._insist("read the record", lambda: self._tools.executor.get(self._spec.name))
        evidence = await self._gather_evidence(attempt)
        if attempt is None:
            await self._tell_lost(evidence)
            return
        self._last_seen = attempt
        verdict = await self._insist("write the outcome", lambda: self._decide(attempt, evidence))
        if isinstance(verdict, Retry):
            await self._insist("start another attempt", lambda: self._retry(verdict))
        else:
            await self._insist("publish the end", lambda: self._tell_end(verdict))
        with suppress(RecordMissing):
            await self._insist("note that the end is told", self._note_reported)

    async def _tell_lost(self, evidence: Evidence) -> None:
        verdict = lost(self._last_seen, evidence)
        assert not isinstance(verdict, Retry)
        await self._insist("publish the end", lambda: self._tell_end(verdict))

    async def _gather_evidence(self, attempt: Attempt | None) -> Evidence:
        """Complete the log tail, which an adopted attempt has not seen, and ask the registry about the image."""
        lines = self._confirmed + 1
        where, found = ImageCheck.UNKNOWN, None
        if attempt is not None:
            if not self._tail:
                await self._read_tail()
            if attempt.result is not None and attempt.result.reason == "ok":
                where, found = await self._look_in_registry()
        return Evidence(
            image_check=where,
            tail=last_of(self._tail, max_bytes=TAIL_BYTES),
            lines=lines,
            attempts_allowed=self._tools.settings.limits.attempts,
            digest=found.digest if found else None,
            size=found.size if found else None,
        )

    async def _read_tail(self) -> None:
        after = max(-1, self._confirmed - self._tools.settings.build_logs.tail_lines)
        with suppress(RecordMissing):
            async for lines in self._tools.executor.lines(self._spec.name, after=after):
                if not isinstance(lines, MissingLines):
                    self._tail.extend(line.text for line in lines)

    async def _look_in_registry(self) -> tuple[ImageCheck, Verified | None]:
        if not self._tools.settings.images.check_registry:
            return ImageCheck.UNKNOWN, None
        for seconds in RETRY_SECONDS[:REGISTRY_TRIES]:
            try:
                found = await self._tools.find_image(self._spec.image)
            except TransientError as error:
                log.warning("the registry cannot be asked about the pushed image", error=str(error))
                await asyncio.sleep(seconds)
            else:
                return (ImageCheck.THERE if found else ImageCheck.ABSENT), found
        return ImageCheck.UNKNOWN, None

    async def _decide(self, attempt: Attempt, evidence: Evidence) -> Outcome:
        """Write the verdict unless one is there: two followers cannot disagree."""

        def with_outcome(status: AttemptStatus) -> AttemptStatus:
            if status.outcome is not None:
                return status
            return status.model_copy(update={"outcome": stored(decide(attempt, status, evidence))})

        try:
            marked = await self._update_status(with_outcome)
        except RecordMissing:
            return lost(attempt, evidence)
        assert marked.status.outcome is not None
        return restored(marked.status.outcome)

    async def _retry(self, verdict: Retry) -> None:
        """Make the next attempt, which inherits the requests; repeating this changes nothing."""
        executor, attempts = self._tools.executor, self._tools.attempts
        number = self._spec.attempt + 1
        current = await executor.get(self._spec.name) or self._last_seen
        spec = self._spec.model_copy(
            update={
                "attempt": number,
                "name": next_attempt_name(self._spec.name, number),
                "created_at": utc_now(),
                "avoid": (*self._spec.avoid, *([current.node] if current.node else [])),
            }
        )
        await self._tools.events.publish_progress(
            self._spec.tenant,
            Progress(
                build_id=self._spec.build_id,
                attempt=number,
                phase=Phase.WAITING,
                message=f"Attempt {self._spec.attempt} failed: {verdict.message} Trying again.",
                detail=ProgressDetail(failed_reason=verdict.reason),
            ),
            about="retry",
        )
        created, is_new = await executor.create(spec, AttemptStatus(requests=current.status.requests))
        attempts.put(created)
        if is_new:
            metrics.ATTEMPTS_RETRIED.labels(reason=verdict.reason).inc()
            log.warning("attempt failed, another one is made", reason=verdict.reason, attempt=number)
        # A cancel that came between the verdict and the new record marked the old one.
        if (before := await executor.get(self._spec.name)) and before.status.cancelled_by is not None:
            wish = {"cancelled_by": before.status.cancelled_by, "cancel_reason": before.status.cancel_reason}
            attempts.put(
                await executor.update_status(created.name, lambda status: status.model_copy(update=wish))
            )
            await executor.cancel(created.name)

    async def _tell_end(self, verdict: TerminalEventData) -> None:
        await self._tools.events.publish_terminal(self._spec.tenant, verdict)
        result = verdict.reason if isinstance(verdict, Failed) else verdict.kind
        metrics.BUILDS_ENDED.labels(result=result).inc()
        seconds = (utc_now() - self._spec.created_at).total_seconds()
        metrics.BUILD_SECONDS.labels(result=result).observe(max(0.0, seconds))
        log.info("build ended", result=str(result), seconds=round(seconds, 1), attempt=self._spec.attempt)

    async def _note_reported(self) -> None:
        number = self._confirmed
        await self._update_status(
            lambda status: status.model_copy(
                update={"reported": True, "reported_at": utc_now(), "confirmed_line": number}
            )
        )

    async def _insist(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step that may be repeated until what it needs is back."""
        tries = 0
        while True:
            try:
                return await step()
            except TransientError as error:
                seconds = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                log.warning(f"cannot {what} yet, trying again", error=str(error), seconds=seconds)
                tries += 1
                await asyncio.sleep(seconds * random.uniform(0.5, 1.5))
