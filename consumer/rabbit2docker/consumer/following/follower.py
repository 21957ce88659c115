"""Follows one attempt: publishes its lines as they appear, then decides, records and publishes its outcome."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar, assert_never

import structlog

from rabbit2docker import metrics
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.answers import answer_all
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptStatus,
    Executor,
    MissingLines,
)
from rabbit2docker.consumer.following.line_publisher import LinePublisher
from rabbit2docker.consumer.following.next_attempt import create_next
from rabbit2docker.consumer.following.outcome import (
    Evidence,
    ImageCheck,
    Outcome,
    Retry,
    decide,
    image_of,
    lost,
    next_spec,
    restored,
    stored,
)
from rabbit2docker.consumer.following.pace import LogPace
from rabbit2docker.consumer.following.progress import last_of
from rabbit2docker.consumer.following.recovery import Recovery, waiting_text
from rabbit2docker.consumer.images.base import FindImage, ImageInfo, pinned
from rabbit2docker.errors import RecordMissing, RequestRejected, TransientError
from rabbit2docker.retry import retry, retry_forever
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import (
    Cancelled,
    Completed,
    Failed,
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
    pace: LogPace = field(default_factory=LogPace)
    credentials: GitCredentials = field(default_factory=GitCredentials)


class Follower:
    """Follows one attempt, from its first line to its outcome."""

    def __init__(self, attempt: Attempt, context: FollowerContext) -> None:
        """Start from a snapshot, with the first line that RabbitMQ has not confirmed."""
        self._spec = attempt.spec
        self._last_seen = attempt
        self._context = context
        self._lines = LinePublisher(
            self._spec,
            context.events,
            after=attempt.status.confirmed_line,
            tail_lines=context.settings.build_logs.tail_lines,
            max_bytes=context.settings.build_logs.batch_bytes,
        )
        self._written = self._lines.confirmed
        self._written_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Follow the attempt to its outcome. Cancelling is safe at any point: the position is written down."""
        try:
            await self._answer()
            if self._lines.confirmed < 0:
                await self._publish_progress(Phase.WAITING, "Waiting for build to start", about="created")
            await self._follow_lines()
            await self._conclude()
        except asyncio.CancelledError:
            with suppress(TransientError, RecordMissing):
                await asyncio.shield(self._checkpoint(force=True))
            raise

    async def publish_waiting_for(self, reason: str) -> None:
        """Publish why the attempt does not run yet."""
        await self._answer()
        await self._publish_progress(
            Phase.WAITING, reason, about=f"waiting:{reason}", detail=ProgressDetail(waiting_for=reason)
        )

    async def _answer(self) -> None:
        await answer_all(self._last_seen, self._context.attempts, self._context.events)

    # -- log lines

    async def _follow_lines(self) -> None:
        limits, now = self._context.settings.build_logs, asyncio.get_running_loop().time
        with suppress(RecordMissing):
            async for lines in self._context.executor.lines(self._spec.name, after=self._lines.confirmed):
                if isinstance(lines, MissingLines):
                    await self._lines.publish_gap(lines)
                    continue
                began = now()
                size = await self._lines.publish(lines)
                pause = self._context.pace.pause_after(now() - began)
                await self._checkpoint()
                # A backlog is published without pauses.
                if size < limits.batch_bytes:
                    await asyncio.sleep(pause)

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
        await self._publish_update(data, about)

    async def _publish_update(self, data: Progress, about: str) -> None:
        spec = self._spec
        await self._context.events.publish_progress(
            spec.tenant, data, about=about, generation=spec.generation, trace=spec.trace
        )

    async def _checkpoint(self, *, force: bool = False) -> None:
        """Write the last confirmed line into the record, unless it is there or the last write is recent."""
        now, pause = asyncio.get_running_loop().time(), self._context.executor.checkpoint_seconds
        if self._written >= self._lines.confirmed or (not force and now - self._written_at < pause):
            return
        self._written, self._written_at = self._lines.confirmed, now
        number = self._lines.confirmed
        # A full disk must not stop the log: after a crash, lines are published again and readers drop them.
        with suppress(TransientError, RecordMissing):
            await self._update_status(lambda status: self._with_confirmed(status, number))

    def _with_confirmed(self, status: AttemptStatus, number: int) -> AttemptStatus:
        unanswered = self._context.attempts.unanswered(self._spec.name, status)
        return status.model_copy(update={"confirmed_line": number, "unanswered": unanswered})

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
        # With the outcome in the record no further request can join, and so no further answer can come.
        await self._retry_forever("answer", self._answer)
        following: Attempt | None = None
        match outcome:
            case Retry() as failure:
                following = await self._retry_forever(
                    "create the next attempt", lambda: self._create_next(failure)
                )
            case Completed() | Failed() | Cancelled() as terminal:
                await self._retry_forever("publish the end", lambda: self._publish_end(terminal))
                # No further attempt follows.
                await self._context.credentials.discard(
                    self._spec.tenant, self._spec.request_id, self._spec.request.credentials
                )
            case unhandled:
                assert_never(unhandled)
        with suppress(RecordMissing):
            await self._retry_forever("record the report", lambda: self._record_reported(following))

    async def _read_record(self) -> Attempt | None:
        return await self._context.executor.get(self._spec.name)

    async def _gather_evidence(self, attempt: Attempt | None) -> Evidence:
        """Complete the log tail, which an adopted attempt lacks, and look up the pushed image."""
        lines = self._lines.confirmed + 1
        check, image, problem = ImageCheck.UNKNOWN, None, None
        if attempt is not None:
            if not self._lines.tail:
                await self._read_tail()
            if attempt.result is not None and attempt.result.reason == "ok":
                check, image = await self._check_image(image_of(attempt), attempt.result.digest)
            elif attempt.result is not None:
                problem = await self._context.recovery.problem(attempt.result.reason, self._spec)
        limits = self._context.settings.limits
        return Evidence(
            image_check=check,
            tail=last_of(self._lines.tail, max_bytes=TAIL_BYTES),
            lines=lines,
            attempts_allowed=limits.attempts,
            interruptions_allowed=limits.interruptions,
            is_outage=problem is not None,
            image=image,
        )

    async def _read_tail(self) -> None:
        after = max(-1, self._lines.confirmed - self._context.settings.build_logs.tail_lines)
        with suppress(RecordMissing):
            async for lines in self._context.executor.lines(self._spec.name, after=after):
                if not isinstance(lines, MissingLines):
                    self._lines.tail.extend(line.text for line in lines)

    async def _check_image(self, image: str, digest: str | None) -> tuple[ImageCheck, ImageInfo | None]:
        # Another build may have moved the tag since a forced build pushed.
        image_name = pinned(image, digest) if self._spec.request.force else image
        if not self._context.settings.images.check_registry:
            return ImageCheck.UNKNOWN, None
        try:
            found = await retry(
                lambda: self._find_pushed(image_name),
                on=TransientError,
                pauses=REGISTRY_RETRY_SECONDS,
                report=_log_unchecked,
            )
        except (TransientError, RequestRejected) as error:
            _log_unchecked(error)
            return ImageCheck.UNKNOWN, None
        return (ImageCheck.THERE if found else ImageCheck.ABSENT), found

    async def _find_pushed(self, image_name: str) -> ImageInfo | None:
        """Return the image; None only if the registry denies it several times. Raises RegistryUnavailable.

        A replica or cache of the registry may not have at once what was pushed a moment ago.
        """
        for pause in ABSENT_PAUSES:
            if (image := await self._context.find_image(image_name, self._spec.tenant)) is not None:
                return image
            log.info("pushed image not found, looking again", image=image_name, delay_seconds=pause)
            await asyncio.sleep(pause)
        return await self._context.find_image(image_name, self._spec.tenant)

    async def _record_outcome(self, attempt: Attempt, evidence: Evidence) -> Outcome:
        """Record the outcome unless the record has one, so that two followers cannot disagree; return the recorded."""

        def with_outcome(status: AttemptStatus) -> AttemptStatus:
            if status.outcome is not None:
                return status
            current = attempt.model_copy(update={"status": status})
            return status.model_copy(update={"outcome": stored(decide(current, evidence))})

        try:
            self._last_seen = await self._update_status(with_outcome)
        except RecordMissing:
            return lost(attempt, evidence)
        recorded = self._last_seen.status.outcome
        assert recorded is not None
        return restored(recorded)

    async def _create_next(self, failure: Retry) -> Attempt:
        """Create the next attempt, which inherits the requests. Safe to repeat."""
        context = self._context
        current = await context.executor.get(self._spec.name) or self._last_seen
        spec = next_spec(self._spec, failure, avoid=current.node, now=utc_now(), settings=context.settings)
        await self._publish_progress(
            Phase.WAITING,
            f"Attempt {self._spec.attempt} failed: {failure.message} Trying again.",
            about="retry",
            attempt=spec.attempt,
            detail=ProgressDetail(failed_reason=failure.reason),
        )
        if not await self._until_back(failure, current):
            spec = spec.model_copy(update={"is_last": True})
        created, is_new = await create_next(
            context.executor, context.attempts, spec, AttemptStatus(requests=current.status.requests)
        )
        context.attempts.put(created)
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
        await self._context.events.publish_terminal(
            self._spec.tenant, end, generation=self._spec.generation, trace=self._spec.trace
        )
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
        number, is_passed_on = self._lines.confirmed, following is None

        def reported(status: AttemptStatus) -> AttemptStatus:
            if status.cancelled_by is not None and not is_passed_on:
                return status
            report = {"reported": True, "reported_at": utc_now(), "confirmed_line": number, "unanswered": {}}
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
