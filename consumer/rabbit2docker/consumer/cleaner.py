"""Ends what is overdue and forgets what has ended long enough ago."""

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
    Change,
    Changed,
    Executor,
    ExternalEnd,
)
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.errors import RecordMissing, TransientError
from rabbit2docker_schemas.reasons import FailureReason

log = structlog.get_logger()

PASS_SECONDS: Final = 20.0
"""Pause between two passes: what is cleaned is late by this much at most."""
SWEEP_SECONDS: Final = 300.0
OVERDUE_GRACE_SECONDS: Final = 60
"""The builder keeps its own deadline; this is for one that cannot any more."""


def is_overdue(attempt: Attempt, now: datetime) -> bool:
    """Tell whether the attempt runs though its own deadline should have ended it."""
    if attempt.state is AttemptState.ENDED or attempt.status.cancelled_by is not None:
        return False
    limit = timedelta(seconds=attempt.spec.timeout_seconds + OVERDUE_GRACE_SECONDS)
    return now > (attempt.started_at or attempt.spec.created_at) + limit


def due(attempt: Attempt, now: datetime) -> ExternalEnd | None:
    """Return why the attempt is to be ended now; None while it may go on."""
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


def forgettable(attempts: AttemptCache, now: datetime, keep: timedelta) -> list[Attempt]:
    """Return the ended attempts of builds whose end was told at least `keep` ago."""
    builds: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        builds[attempt.spec.build_id].append(attempt)
    found: list[Attempt] = []
    for build in builds.values():
        if all(
            is_reported(attempt)
            and attempt.state is AttemptState.ENDED
            and attempt.status.reported_at is not None
            and now >= attempt.status.reported_at + keep
            for attempt in build
        ):
            found += build
    return found


class Cleaner:
    """A pass whenever something is due, and every few seconds; each step may be repeated, and a failed one is tried in the next pass."""

    def __init__(
        self,
        executor: Executor,
        attempts: AttemptCache,
        ownership: Ownership,
        *,
        keep_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keep ended builds for `keep_seconds`; touch what is this replica's, and nothing else."""
        self._executor = executor
        self._attempts = attempts
        self._ownership = ownership
        self._keep = timedelta(seconds=keep_seconds)
        self._now = now
        self._last_pass = now()
        self._next_pass = now()
        self._next_sweep = now() + timedelta(seconds=SWEEP_SECONDS)
        self._sooner = asyncio.Event()

    async def run(self) -> None:
        """Clean until cancelled."""
        self._attempts.subscribe(self._on_change)
        while True:
            self._next_pass = self._when()
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, (self._next_pass - self._now()).total_seconds())):
                    await self._sooner.wait()
                    continue
            await self.clean()
            self._last_pass = self._now()

    def _when(self) -> datetime:
        """Return when the next pass is due: when an attempt has to be given up or may be forgotten, or before long."""
        moments = [moment for attempt in self._attempts if (moment := self._due_at(attempt)) is not None]
        # From the last pass, not from now: changes that keep coming would put the next one off for ever. And what was
        # due and could not be done must not make the passes follow each other at once.
        earliest, latest = (self._last_pass + timedelta(seconds=seconds) for seconds in (1, PASS_SECONDS))
        return max(min([*moments, latest]), earliest)

    def _due_at(self, attempt: Attempt) -> datetime | None:
        if attempt.status.reported_at is not None:
            return attempt.status.reported_at + self._keep
        if attempt.pending_deadline is not None and attempt.status.cancelled_by is None:
            return attempt.pending_deadline.at
        return None

    def _on_change(self, change: Change) -> None:
        moment = self._due_at(change.attempt) if isinstance(change, Changed) else None
        if moment is not None and moment < self._next_pass:
            self._sooner.set()

    async def clean(self) -> None:
        """Do one pass."""
        now = self._now()
        for attempt in self._attempts:
            ending = due(attempt, now)
            if ending is not None and self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._end(attempt, ending), attempt.name)
        for attempt in forgettable(self._attempts, now, self._keep):
            if self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._executor.delete(attempt.name), attempt.name)
        if now >= self._next_sweep:
            self._next_sweep = now + timedelta(seconds=SWEEP_SECONDS)
            if self._ownership.is_mine("sweep"):
                await self._try(self._executor.sweep(), "leftovers")

    async def _try(self, step: Awaitable[None], name: str) -> None:
        try:
            await step
        except (TransientError, RecordMissing) as error:
            log.warning("cleaning failed, trying again later", name=name, error=str(error))

    async def _end(self, attempt: Attempt, ending: ExternalEnd) -> None:
        def given_up(status: AttemptStatus) -> AttemptStatus:
            if status.cancelled_by is not None:
                return status
            return status.model_copy(
                update={
                    "cancelled_by": "the service",
                    "cancel_reason": ending.reason.value,
                    "cancel_message": ending.message,
                }
            )

        log.warning("attempt is given up", build_id=attempt.spec.build_id, reason=ending.reason)
        self._attempts.put(await self._executor.update_status(attempt.name, given_up))
        await self._executor.cancel(attempt.name)
