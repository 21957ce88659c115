"""Supervision of the followers: one for each unreported attempt that this replica owns."""

import asyncio
from functools import partial
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.consumer.attempt_cache import is_reported
from rabbit2docker.consumer.executors.base import Attempt, AttemptName, AttemptState, Change, Changed
from rabbit2docker.consumer.following.follower import Follower, FollowerContext
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.tasks import TaskSet, cancel_and_wait, restart_forever

log = structlog.get_logger()

RESTART_SECONDS: Final = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Pauses before a crashed follower is restarted from the record."""
STOP_SECONDS: Final = 8.0
"""Time that followers have to write down their positions when the service stops."""


class FollowerSupervisor:
    """Runs one Follower per attempt this replica owns; restarts it with backoff after a crash."""

    def __init__(self, context: FollowerContext, ownership: Ownership) -> None:
        """Follow what `ownership` assigns to this replica; nothing runs before `run`."""
        self._context = context
        self._ownership = ownership
        self._tasks: dict[AttemptName, asyncio.Task[None]] = {}
        self._followers: dict[AttemptName, Follower] = {}
        self._published_reasons: dict[AttemptName, str] = {}
        self._publishing = TaskSet()
        self._is_running = False

    async def run(self) -> None:
        """Supervise until cancelled; then each follower writes down its position."""
        self._is_running = True
        self._context.attempts.subscribe(self._on_change)
        self._ownership.subscribe(self._on_ownership)
        self._on_ownership()
        try:
            await asyncio.Event().wait()
        finally:
            self._is_running = False
            # A follower that is cut short has its last lines published again by the next one; readers drop them.
            await cancel_and_wait(self._tasks.values(), seconds=STOP_SECONDS)
            await self._publishing.close()

    def _on_ownership(self) -> None:
        """Take over attempts that this replica owns now, and stop following those that it no longer owns."""
        if not self._is_running:
            return
        for attempt in self._context.attempts:
            is_mine = self._ownership.is_mine(attempt.spec.build_id)
            if is_mine and not is_reported(attempt) and attempt.name not in self._tasks:
                metrics.ATTEMPTS_ADOPTED.inc()
                log.info("attempt adopted", build_id=attempt.spec.build_id, attempt=attempt.spec.attempt)
                self._on_change(Changed(attempt))
            elif not is_mine and (task := self._tasks.get(attempt.name)):
                # It writes down its position; until the new owner reads that, both publish the same event ids.
                task.cancel()

    def _on_change(self, change: Change) -> None:
        if not self._is_running or not isinstance(change, Changed) or is_reported(change.attempt):
            return
        attempt = change.attempt
        if not self._ownership.is_mine(attempt.spec.build_id):
            return
        if attempt.name not in self._tasks:
            task = asyncio.create_task(self._follow(attempt), name=f"follower of {attempt.name}")
            self._tasks[attempt.name] = task
            task.add_done_callback(partial(self._on_done, attempt.name))
            metrics.BUILDS_FOLLOWED.set(len(self._tasks))
        self._publish_waiting(attempt)

    def _on_done(self, name: AttemptName, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
            self._published_reasons.pop(name, None)
            self._resume_if_returned(name, task)
        metrics.BUILDS_FOLLOWED.set(len(self._tasks))

    def _resume_if_returned(self, name: AttemptName, task: asyncio.Task[None]) -> None:
        """Follow the attempt again if this replica owned it anew before the cancelled follower had ended."""
        attempt = self._context.attempts.get(name)
        if task.cancelled() and attempt is not None:
            self._on_change(Changed(attempt))

    def _publish_waiting(self, attempt: Attempt) -> None:
        """Publish the reason why a pending attempt does not run yet, once per reason."""
        reason = attempt.waiting_for
        follower = self._followers.get(attempt.name)
        if attempt.state is not AttemptState.PENDING or not reason or follower is None:
            return
        if self._published_reasons.get(attempt.name) != reason:
            self._published_reasons[attempt.name] = reason
            work = follower.publish_waiting_for(reason)
            self._publishing.run_in_background(work, name=f"waiting reason of {attempt.name}")

    async def _follow(self, attempt: Attempt) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            build_id=attempt.spec.build_id, attempt=attempt.spec.attempt, tenant=attempt.spec.tenant
        )
        try:
            await restart_forever(
                partial(self._follow_once, attempt), pauses=RESTART_SECONDS, report=_log_crash
            )
        finally:
            self._followers.pop(attempt.name, None)

    async def _follow_once(self, attempt: Attempt) -> None:
        # A restarted follower starts from the record, never from the state of the crashed one.
        current = self._context.attempts.get(attempt.name) or attempt
        follower = self._followers[attempt.name] = Follower(current, self._context)
        await follower.run()


def _log_crash(error: Exception) -> None:
    log.error("follower crashed", exc_info=error)
