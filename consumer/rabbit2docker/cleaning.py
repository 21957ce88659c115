"""Ends what is overdue and forgets what has ended long enough ago."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from rabbit2docker.announce import utc_now
from rabbit2docker.attempts import Attempts, is_finished
from rabbit2docker.errors import RecordMissing, TransientError
from rabbit2docker.executors.base import Attempt, AttemptState, Executor, Marks
from rabbit2docker_schemas.reasons import FailureReason

log = structlog.get_logger()

PASS_SECONDS: Final = 20.0
"""Pause between two passes: what is cleaned is late by this much at most."""
OVERDUE_GRACE_SECONDS: Final = 60
"""The builder keeps its own deadline; this is for one that cannot any more."""


def is_overdue(attempt: Attempt, now: datetime) -> bool:
    """Tell whether the attempt runs though its own deadline should have ended it."""
    if attempt.state is AttemptState.ENDED or attempt.marks.cancelled_by is not None:
        return False
    limit = timedelta(seconds=attempt.spec.timeout_seconds + OVERDUE_GRACE_SECONDS)
    return now > (attempt.started_at or attempt.spec.created_at) + limit


def forgettable(attempts: Attempts, now: datetime, keep: timedelta) -> list[Attempt]:
    """Return the ended attempts of builds whose end was told at least `keep` ago."""
    found: list[Attempt] = []
    for build_id in {attempt.spec.build_id for attempt in attempts}:
        build = attempts.of_build(build_id)
        if all(
            is_finished(attempt)
            and attempt.state is AttemptState.ENDED
            and attempt.marks.reported_at is not None
            and now >= attempt.marks.reported_at + keep
            for attempt in build
        ):
            found += build
    return found


class Cleaner:
    """A pass every few seconds; each step may be repeated, and a failed one is tried in the next pass."""

    def __init__(
        self,
        executor: Executor,
        attempts: Attempts,
        *,
        keep_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keep ended builds for `keep_seconds`."""
        self._executor = executor
        self._attempts = attempts
        self._keep = timedelta(seconds=keep_seconds)
        self._now = now

    async def run(self) -> None:
        """Clean until cancelled."""
        while True:
            await asyncio.sleep(PASS_SECONDS)
            await self.clean()

    async def clean(self) -> None:
        """Do one pass."""
        now = self._now()
        for attempt in self._attempts:
            if is_overdue(attempt, now):
                await self._try(self._end(attempt), attempt)
        for attempt in forgettable(self._attempts, now, self._keep):
            await self._try(self._executor.forget(attempt.name), attempt)

    async def _try(self, step: Awaitable[None], attempt: Attempt) -> None:
        try:
            await step
        except (TransientError, RecordMissing) as error:
            log.warning("cleaning failed, trying again later", name=attempt.name, error=str(error))

    async def _end(self, attempt: Attempt) -> None:
        def overdue(marks: Marks) -> Marks:
            if marks.cancelled_by is not None:
                return marks
            return marks.model_copy(
                update={"cancelled_by": "the service", "cancel_reason": FailureReason.TIMEOUT.value}
            )

        log.warning("attempt is overdue and is ended", build_id=attempt.spec.build_id)
        self._attempts.note(await self._executor.mark(attempt.name, overdue))
        await self._executor.cancel(attempt.name)
