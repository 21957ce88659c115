"""Deadlines, retention and garbage: overdue attempts are ended, ended ones are deleted after a while."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import structlog

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptState,
    AttemptStatus,
    AttemptStore,
    Change,
    Changed,
    ExternalEnd,
)
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.errors import RecordMissing, TransientError
from rabbit2docker_schemas.reasons import FailureReason

log = structlog.get_logger()

PASS_SECONDS: Final = 20.0
"""Longest pause between two passes, and so the longest delay of what one pass could not do."""
MIN_PASS_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 300.0
SWEEP_KEY: Final = "sweep"
"""The key whose owner sweeps for all replicas."""
OVERDUE_GRACE_SECONDS: Final = 60
"""The builder keeps its own deadline; the cleaner ends a builder that no longer can."""


def is_overdue(attempt: Attempt, now: datetime) -> bool:
    """Return whether the attempt still runs although its own deadline should have ended it."""
    if attempt.state is AttemptState.ENDED or attempt.status.cancelled_by is not None:
        return False
    limit = timedelta(seconds=attempt.spec.timeout_seconds + OVERDUE_GRACE_SECONDS)
    return now > (attempt.started_at or attempt.spec.created_at) + limit


def due_end(attempt: Attempt, now: datetime) -> ExternalEnd | None:
    """Return the reason to end the attempt now; None while it may continue."""
    if attempt.state is AttemptState.ENDED or attempt.status.cancelled_by is not None:
        return None
    if attempt.pending_deadline is not None and now >= attempt.pending_deadline.at:
        return attempt.pending_deadline
    if is_overdue(attempt, now):
        return ExternalEnd(
            reason=FailureReason.TIMEOUT,
            message=f"The build took longer than {attempt.spec.timeout_seconds} seconds and was ended.",
        )
    return None


def expired(attempts: AttemptCache, now: datetime, keep: timedelta) -> list[Attempt]:
    """Return all attempts of the builds whose outcomes were reported at least `keep` ago."""
    builds: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        builds[attempt.spec.build_id].append(attempt)
    return [
        attempt
        for build in builds.values()
        if all(_is_expired(attempt, now, keep) for attempt in build)
        for attempt in build
    ]


def _is_expired(attempt: Attempt, now: datetime, keep: timedelta) -> bool:
    return (
        is_reported(attempt)
        and attempt.state is AttemptState.ENDED
        and attempt.status.reported_at is not None
        and now >= attempt.status.reported_at + keep
    )


class Cleaner:
    """Runs a pass whenever something is due, and every few seconds; the next pass repeats a step that failed."""

    def __init__(
        self,
        executor: AttemptStore,
        attempts: AttemptCache,
        ownership: Ownership,
        *,
        keep_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keep ended builds for `keep_seconds`; clean only what this replica owns."""
        self._executor = executor
        self._attempts = attempts
        self._ownership = ownership
        self._keep = timedelta(seconds=keep_seconds)
        self._now = now
        self._last_pass = now()
        self._next_pass = now()
        self._next_sweep = now() + timedelta(seconds=SWEEP_SECONDS)
        self._reschedule = asyncio.Event()

    async def run(self) -> None:
        """Clean until cancelled."""
        self._attempts.subscribe(self._on_change)
        while True:
            self._next_pass = self._next_pass_at()
            self._reschedule.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, (self._next_pass - self._now()).total_seconds())):
                    await self._reschedule.wait()
                    continue
            await self.clean()
            self._last_pass = self._now()

    async def clean(self) -> None:
        """Do one pass."""
        now = self._now()
        for attempt in self._attempts:
            end = due_end(attempt, now)
            if end is not None and self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._end(attempt, end), attempt.name)
        for attempt in expired(self._attempts, now, self._keep):
            if self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._executor.delete(attempt.name), attempt.name)
        if now >= self._next_sweep:
            self._next_sweep = now + timedelta(seconds=SWEEP_SECONDS)
            if self._ownership.is_mine(SWEEP_KEY):
                await self._try(self._executor.sweep(), "leftovers")

    def _next_pass_at(self) -> datetime:
        """Return the time of the next pass: when the next attempt is due, or after PASS_SECONDS."""
        due = [moment for attempt in self._attempts if (moment := self._due_at(attempt)) is not None]
        # Counted from the last pass, not from now: a steady stream of changes would postpone the next pass
        # indefinitely. The minimum keeps passes apart while something that is due keeps failing.
        earliest, latest = (
            self._last_pass + timedelta(seconds=seconds) for seconds in (MIN_PASS_SECONDS, PASS_SECONDS)
        )
        return max(min([*due, latest]), earliest)

    def _due_at(self, attempt: Attempt) -> datetime | None:
        if attempt.status.reported_at is not None:
            return attempt.status.reported_at + self._keep
        if attempt.pending_deadline is not None and attempt.status.cancelled_by is None:
            return attempt.pending_deadline.at
        return None

    def _on_change(self, change: Change) -> None:
        moment = self._due_at(change.attempt) if isinstance(change, Changed) else None
        if moment is not None and moment < self._next_pass:
            self._reschedule.set()

    async def _try(self, step: Awaitable[None], name: str) -> None:
        try:
            await step
        except (TransientError, RecordMissing) as error:
            log.warning("cleaning failed", name=name, error=str(error))

    async def _end(self, attempt: Attempt, end: ExternalEnd) -> None:
        def ended_by_service(status: AttemptStatus) -> AttemptStatus:
            if status.cancelled_by is not None:
                return status
            return status.model_copy(
                update={
                    "cancelled_by": "the service",
                    "cancel_reason": end.reason.value,
                    "cancel_message": end.message,
                }
            )

        log.warning("attempt ended by the service", build_id=attempt.spec.build_id, reason=end.reason)
        self._attempts.put(await self._executor.update_status(attempt.name, ended_by_service))
        await self._executor.cancel(attempt.name)
