"""Deadlines, retention and garbage: overdue attempts are ended, ended ones are deleted after a while."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
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
SETTLE_SECONDS: Final = 60.0
"""A time that is past when it is first seen counts only after this, and only if the wall clock still says so.

A machine's clock may be hours wrong when it starts or wakes up, until it has been set.
"""


def deadlines(attempt: Attempt) -> Iterator[tuple[datetime, ExternalEnd]]:
    """Yield the times at which the attempt is to be ended, each with the reason; none once it ends anyway."""
    if attempt.state is AttemptState.ENDED or attempt.status.cancelled_by is not None:
        return
    if attempt.pending_deadline is not None:
        yield attempt.pending_deadline.at, attempt.pending_deadline
    seconds = attempt.spec.timeout_seconds
    overdue = ExternalEnd(
        reason=FailureReason.TIMEOUT, message=f"The build took longer than {seconds} seconds and was ended."
    )
    limit = timedelta(seconds=seconds + OVERDUE_GRACE_SECONDS)
    yield (attempt.started_at or attempt.spec.created_at) + limit, overdue


def due_end(attempt: Attempt, is_past: Callable[[datetime], bool]) -> ExternalEnd | None:
    """Return the reason to end the attempt now; None while it may continue."""
    return next((end for moment, end in deadlines(attempt) if is_past(moment)), None)


def expired(attempts: AttemptCache, is_expired: Callable[[Attempt], bool]) -> list[Attempt]:
    """Return all attempts of the builds that are expired as a whole."""
    builds: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        builds[attempt.spec.build_id].append(attempt)
    return [attempt for build in builds.values() if all(map(is_expired, build)) for attempt in build]


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
        self._moments: dict[tuple[AttemptName, datetime], float] = {}
        """Times of records on the clock of the event loop, taken when they were first seen: a wall clock may jump."""
        self._doubtful: set[tuple[AttemptName, datetime]] = set()
        """Those of them that were past when they were first seen, and are looked at once more."""
        self._last_pass = self._next_pass = 0.0
        self._next_sweep = asyncio.get_running_loop().time() + SWEEP_SECONDS
        self._reschedule = asyncio.Event()

    async def run(self) -> None:
        """Clean until cancelled."""
        self._attempts.subscribe(self._on_change)
        loop = asyncio.get_running_loop()
        self._last_pass = loop.time()
        while True:
            self._next_pass = self._next_pass_at()
            self._reschedule.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._next_pass - loop.time())):
                    await self._reschedule.wait()
                    continue
            await self.clean()
            self._last_pass = loop.time()

    async def clean(self) -> None:
        """Do one pass."""
        for attempt in self._attempts:
            end = due_end(attempt, partial(self._is_past, attempt.name))
            if end is not None and self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._end(attempt, end), attempt.name)
        for attempt in expired(self._attempts, self._is_expired):
            if self._ownership.is_mine(attempt.spec.build_id):
                await self._try(self._executor.delete(attempt.name), attempt.name)
        now = asyncio.get_running_loop().time()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            if self._ownership.is_mine(SWEEP_KEY):
                await self._try(self._executor.sweep(), "leftovers")
        known = {attempt.name for attempt in self._attempts}
        self._moments = {key: at for key, at in self._moments.items() if key[0] in known}
        self._doubtful &= self._moments.keys()

    def _loop_time(self, name: AttemptName, moment: datetime) -> float:
        """Return a time of a record on the clock of the event loop, as it was when the record first had it."""
        key = name, moment
        if key not in self._moments:
            left = (moment - self._now()).total_seconds()
            if left <= 0:
                self._doubtful.add(key)
                left = SETTLE_SECONDS
            self._moments[key] = asyncio.get_running_loop().time() + left
        return self._moments[key]

    def _is_past(self, name: AttemptName, moment: datetime) -> bool:
        now = asyncio.get_running_loop().time()
        if self._loop_time(name, moment) > now:
            return False
        key = name, moment
        if key in self._doubtful:
            self._doubtful.remove(key)
            self._moments[key] = now + (moment - self._now()).total_seconds()
        return self._moments[key] <= now

    def _is_expired(self, attempt: Attempt) -> bool:
        """Return whether the attempt's outcome was reported long enough ago."""
        at = attempt.status.reported_at
        if not is_reported(attempt) or attempt.state is not AttemptState.ENDED or at is None:
            return False
        return self._is_past(attempt.name, at + self._keep)

    def _next_pass_at(self) -> float:
        """Return the time of the next pass: when the next attempt is due, or after PASS_SECONDS."""
        due = [moment for attempt in self._attempts if (moment := self._due_at(attempt)) is not None]
        # Counted from the last pass, not from now: a steady stream of changes would postpone the next pass
        # indefinitely. The minimum keeps passes apart while something that is due keeps failing.
        return max(min([*due, self._last_pass + PASS_SECONDS]), self._last_pass + MIN_PASS_SECONDS)

    def _due_at(self, attempt: Attempt) -> float | None:
        if attempt.status.reported_at is not None:
            return self._loop_time(attempt.name, attempt.status.reported_at + self._keep)
        if attempt.pending_deadline is not None and attempt.status.cancelled_by is None:
            return self._loop_time(attempt.name, attempt.pending_deadline.at)
        return None

    def _on_change(self, change: Change) -> None:
        if not isinstance(change, Changed):
            return
        for moment, _ in deadlines(change.attempt):
            self._loop_time(change.attempt.name, moment)
        due_at = self._due_at(change.attempt)
        if due_at is not None and due_at < self._next_pass:
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
