"""Follows one attempt: publishes its lines as they appear, then decides, records and publishes its outcome."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar, assert_never

import structlog

from rabbit2docker import metrics
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.attempt_names import next_attempt_name
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptSpec,
    AttemptStatus,
    BuilderLine,
    Executor,
    MissingLines,
)
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
from rabbit2docker.consumer.following.recovery import Recovery, waiting_text
from rabbit2docker.consumer.images.base import FindImage, ImageInfo, pinned
from rabbit2docker.errors import RecordMissing, RequestRejected, TransientError
from rabbit2docker.retry import retry, retry_forever
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import (
    Cancelled,
    Completed,
    Failed,
    Gap,
    Phase,
    Progress,
    ProgressDetail,
    TerminalEventData,
)

log = structlog.get_logger()
T = TypeVar("T")

RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses while RabbitMQ or the executor is away."""
REGISTRY_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between lookups of a pushed image; after the last one the push itself has to suffice."""
ABSENT_PAUSES: Final = (1.0, 3.0)
"""Pauses before a registry is asked again for an image that was pushed and is not found: its absence costs a build."""
TAIL_BYTES: Final = 16_384
"""An outcome is also written into the record, which in a cluster may hold no more than 256 KiB in all."""


@dataclass(frozen=True, slots=True)
class FollowerContext:
    """The services that every follower works with."""

    executor: Executor
    attempts: AttemptCache
    events: EventPublisher
    find_image: FindImage
    settings: Settings
    recovery: Recovery


class Follower:
    """Follows one attempt, from its first line to its outcome."""

    def __init__(self, attempt: Attempt, context: FollowerContext) -> None:
        """Start from a snapshot, with the first line that RabbitMQ has not confirmed."""
        self._spec = attempt.spec
        self._last_seen = attempt
        self._context = context
        self._confirmed = attempt.status.confirmed_line
        self._written = self._confirmed
        self._written_at = asyncio.get_running_loop().time()
        self._tail: deque[str] = deque(maxlen=context.settings.build_logs.tail_lines)
        self._reader = ProgressReader(self._spec.build_id, self._spec.attempt)

    async def run(self) -> None:
        """Follow the attempt to its outcome. Cancelling is safe at any point: the position is written down."""
        try:
            await self._context.attempts.until_answered(self._spec.build_id)
            if self._confirmed < 0:
                await self._publish_progress(Phase.WAITING, "Waiting for build to start", about="created")
            await self._follow_lines()
            await self._conclude()
        except asyncio.CancelledError:
            with suppress(TransientError, RecordMissing):
                await asyncio.shield(self._checkpoint(force=True))
            raise

    async def publish_waiting_for(self, reason: str) -> None:
        """Publish why the attempt does not run yet."""
        await self._context.attempts.until_answered(self._spec.build_id)
        await self._publish_progress(
            Phase.WAITING, reason, about=f"waiting:{reason}", detail=ProgressDetail(waiting_for=reason)
        )

    # -- log lines

    async def _follow_lines(self) -> None:
        limits = self._context.settings.build_logs
        with suppress(RecordMissing):
            async for lines in self._context.executor.lines(self._spec.name, after=self._confirmed):
                if isinstance(lines, MissingLines):
                    await self._publish_gap(lines)
                    continue
                size = await self._publish_lines(lines, max_bytes=limits.batch_bytes)
                await self._checkpoint()
                # Lines written during this pause make up the next batch; a backlog is published without pauses.
                if size < limits.batch_bytes:
                    await asyncio.sleep(limits.batch_seconds)

    async def _publish_gap(self, missing: MissingLines) -> None:
        gap = Gap(
            build_id=self._spec.build_id,
            attempt=self._spec.attempt,
            first=missing.first,
            last=missing.last,
            message="These lines were lost where the build ran.",
        )
        await self._context.events.publish_gap(self._spec.tenant, gap, generation=self._spec.generation)
        self._confirmed = missing.last

    async def _publish_lines(self, lines: list[BuilderLine], *, max_bytes: int) -> int:
        """Publish lines and the progress they show, in order; return the characters of the lines."""
        tenant, events = self._spec.tenant, self._context.events
        rest = lines
        for update in self._reader.read(lines):
            # The lines before a new phase or step come first, then the progress, then the other lines.
            before = update.line - rest[0].n
            await self._publish_log(rest[:before], max_bytes=max_bytes)
            rest = rest[before:]
            await events.publish_progress(
                tenant, update.data, about=f"line{update.line}", generation=self._spec.generation
            )
        await self._publish_log(rest, max_bytes=max_bytes)
        self._tail.extend(line.text for line in lines)
        return sum(len(line.text) for line in lines)

    async def _publish_log(self, lines: list[BuilderLine], *, max_bytes: int) -> None:
        for event in as_log_events(self._spec.build_id, self._spec.attempt, lines, max_bytes=max_bytes):
            await self._context.events.publish_log(self._spec.tenant, event, generation=self._spec.generation)
            self._confirmed = event.n + len(event.lines) - 1

    async def _publish_progress(
        self,
        phase: Phase,
        message: str,
        *,
        about: str,
        attempt: int | None = None,
        detail: ProgressDetail | None = None,
    ) -> None:
        data = Progress(
            build_id=self._spec.build_id,
            attempt=attempt or self._spec.attempt,
            phase=phase,
            message=message,
            detail=detail or ProgressDetail(),
        )
        await self._context.events.publish_progress(
            self._spec.tenant, data, about=about, generation=self._spec.generation
        )

    async def _checkpoint(self, *, force: bool = False) -> None:
        """Write the last confirmed line into the record, unless it is there or the last write is recent."""
        now, pause = asyncio.get_running_loop().time(), self._context.executor.checkpoint_seconds
        if self._written >= self._confirmed or (not force and now - self._written_at < pause):
            return
        self._written, self._written_at = self._confirmed, now
        number = self._confirmed
        # A full disk must not stop the log: after a crash, lines are published again and readers drop them.
        with suppress(TransientError, RecordMissing):
            await self._update_status(lambda status: status.model_copy(update={"confirmed_line": number}))

    async def _update_status(self, change: Callable[[AttemptStatus], AttemptStatus]) -> Attempt:
        attempt = await self._context.executor.update_status(self._spec.name, change)
        return self._context.attempts.put(attempt)

    # -- the outcome

    async def _conclude(self) -> None:
        """Decide the outcome, record it, act on it, and record that it is reported."""
        attempt = await self._retry_forever("read the record", self._read_record)
        evidence = await self._gather_evidence(attempt)
        if attempt is None:
            end = lost(self._last_seen, evidence)
            await self._retry_forever("publish the end", lambda: self._publish_end(end))
            return
        self._last_seen = attempt
        outcome = await self._retry_forever(
            "record the outcome", lambda: self._record_outcome(attempt, evidence)
        )
        following: Attempt | None = None
        match outcome:
            case Retry() as failure:
                following = await self._retry_forever(
                    "create the next attempt", lambda: self._create_next(failure)
                )
            case Completed() | Failed() | Cancelled() as terminal:
                await self._retry_forever("publish the end", lambda: self._publish_end(terminal))
            case unhandled:
                assert_never(unhandled)
        with suppress(RecordMissing):
            await self._retry_forever("record the report", lambda: self._record_reported(following))

    async def _read_record(self) -> Attempt | None:
        return await self._context.executor.get(self._spec.name)

    async def _gather_evidence(self, attempt: Attempt | None) -> Evidence:
        """Complete the log tail, which an adopted attempt lacks, and look up the pushed image."""
        lines = self._confirmed + 1
        check, image, problem = ImageCheck.UNKNOWN, None, None
        if attempt is not None:
            if not self._tail:
                await self._read_tail()
            if attempt.result is not None and attempt.result.reason == "ok":
                check, image = await self._check_image(attempt.result.digest)
            elif attempt.result is not None:
                problem = await self._context.recovery.problem(attempt.result.reason, self._spec)
        limits = self._context.settings.limits
        return Evidence(
            image_check=check,
            tail=last_of(self._tail, max_bytes=TAIL_BYTES),
            lines=lines,
            attempts_allowed=limits.attempts,
            interruptions_allowed=limits.interruptions,
            is_outage=problem is not None,
            image=image,
        )

    async def _read_tail(self) -> None:
        after = max(-1, self._confirmed - self._context.settings.build_logs.tail_lines)
        with suppress(RecordMissing):
            async for lines in self._context.executor.lines(self._spec.name, after=after):
                if not isinstance(lines, MissingLines):
                    self._tail.extend(line.text for line in lines)

    async def _check_image(self, digest: str | None) -> tuple[ImageCheck, ImageInfo | None]:
        # Another build may have moved the tag since a forced build pushed.
        image_name = pinned(self._spec.image, digest) if self._spec.request.force else self._spec.image
        if not self._context.settings.images.check_registry:
            return ImageCheck.UNKNOWN, None
        try:
            image = await retry(
                lambda: self._find_pushed(image_name),
                on=TransientError,
                pauses=REGISTRY_RETRY_SECONDS,
                report=_log_unchecked,
            )
        except (TransientError, RequestRejected) as error:
            _log_unchecked(error)
            return ImageCheck.UNKNOWN, None
        return (ImageCheck.THERE if image else ImageCheck.ABSENT), image

    async def _find_pushed(self, image_name: str) -> ImageInfo | None:
        """Return the image; None only if the registry denies it several times. Raises RegistryUnavailable.

        A replica or cache of the registry may not have at once what was pushed a moment ago.
        """
        for pause in ABSENT_PAUSES:
            if (image := await self._context.find_image(image_name)) is not None:
                return image
            log.info("pushed image not found, looking again", image=image_name, delay_seconds=pause)
            await asyncio.sleep(pause)
        return await self._context.find_image(image_name)

    async def _record_outcome(self, attempt: Attempt, evidence: Evidence) -> Outcome:
        """Record the outcome unless the record has one, so that two followers cannot disagree; return the recorded."""

        def with_outcome(status: AttemptStatus) -> AttemptStatus:
            if status.outcome is not None:
                return status
            current = attempt.model_copy(update={"status": status})
            return status.model_copy(update={"outcome": stored(decide(current, evidence))})

        try:
            recorded = (await self._update_status(with_outcome)).status.outcome
        except RecordMissing:
            return lost(attempt, evidence)
        assert recorded is not None
        return restored(recorded)

    async def _create_next(self, failure: Retry) -> Attempt:
        """Create the next attempt, which inherits the requests. Safe to repeat."""
        executor, attempts = self._context.executor, self._context.attempts
        current = await executor.get(self._spec.name) or self._last_seen
        spec = self._next_spec(failure, avoid=current.node)
        await self._publish_progress(
            Phase.WAITING,
            f"Attempt {self._spec.attempt} failed: {failure.message} Trying again.",
            about="retry",
            attempt=spec.attempt,
            detail=ProgressDetail(failed_reason=failure.reason),
        )
        if not await self._until_back(failure, current):
            spec = spec.model_copy(update={"is_last": True})
        created, is_new = await executor.create(spec, AttemptStatus(requests=current.status.requests))
        attempts.put(created)
        if is_new:
            metrics.ATTEMPTS_RETRIED.labels(reason=failure.reason).inc()
            log.warning("attempt retried", reason=failure.reason, attempt=spec.attempt)
        return created

    async def _until_back(self, failure: Retry, attempt: Attempt) -> bool:
        """Wait until what the attempt has lost is back; return False if it is away for longer than builds wait."""
        until = self._context.recovery.deadline(attempt.ended_at)

        def is_cancelled() -> bool:
            known = self._context.attempts.get(self._spec.name)
            return known is not None and known.status.cancelled_by is not None

        async def announce(problem: str) -> None:
            await self._publish_progress(
                Phase.WAITING,
                waiting_text(problem, until),
                about="outage",
                attempt=self._spec.attempt + 1,
                detail=ProgressDetail(waiting_for=problem, failed_reason=failure.reason, gives_up_at=until),
            )

        return await self._context.recovery.wait(
            failure.reason, self._spec, until=until, is_cancelled=is_cancelled, announce=announce
        )

    def _next_spec(self, failure: Retry, *, avoid: str | None) -> AttemptSpec:
        number = self._spec.attempt + 1
        return self._spec.model_copy(
            update={
                "attempt": number,
                "interruptions": self._spec.interruptions + failure.is_interruption,
                "name": next_attempt_name(self._spec.name, number),
                "created_at": utc_now(),
                "avoid": (*self._spec.avoid, *([avoid] if avoid else [])),
            }
        )

    async def _pass_on_cancel(self, status: AttemptStatus, following: Attempt) -> None:
        """Cancel the next attempt, because a cancel reached this one after its outcome was decided."""
        executor = self._context.executor
        cancel = {"cancelled_by": status.cancelled_by, "cancel_reason": status.cancel_reason}
        cancelled = await executor.update_status(
            following.name, lambda status: status.model_copy(update=cancel)
        )
        self._context.attempts.put(cancelled)
        await executor.cancel(following.name)

    async def _publish_end(self, end: TerminalEventData) -> None:
        await self._context.events.publish_terminal(self._spec.tenant, end, generation=self._spec.generation)
        result = end.reason if isinstance(end, Failed) else end.kind
        metrics.BUILDS_ENDED.labels(result=result).inc()
        seconds = (utc_now() - self._spec.created_at).total_seconds()
        metrics.BUILD_SECONDS.labels(result=result).observe(max(0.0, seconds))
        log.info("build ended", result=str(result), seconds=round(seconds, 1), attempt=self._spec.attempt)

    async def _record_reported(self, following: Attempt | None) -> None:
        """Record that the end is reported, or that the attempt `following` exists.

        Its compare-and-swap decides about a cancel at the same moment: either it is here and passed on first, or it finds
        this attempt handed over.
        """
        number, is_passed_on = self._confirmed, following is None

        def reported(status: AttemptStatus) -> AttemptStatus:
            if status.cancelled_by is not None and not is_passed_on:
                return status
            report = {"reported": True, "reported_at": utc_now(), "confirmed_line": number}
            return status.model_copy(update=report)

        attempt = await self._update_status(reported)
        if following is not None and not attempt.status.reported:
            await self._pass_on_cancel(attempt.status, following)
            is_passed_on = True
            await self._update_status(reported)

    async def _retry_forever(self, action: str, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step that is safe to repeat until its dependencies are back."""

        def report(error: Exception, pause: float) -> None:
            log.warning("step postponed", step=action, error=str(error), delay_seconds=round(pause, 1))

        return await retry_forever(step, on=TransientError, pauses=RETRY_SECONDS, report=report)


def _log_unchecked(error: Exception, pause: float | None = None) -> None:
    log.warning("pushed image not checked", error=str(error), delay_seconds=pause and round(pause, 1))
