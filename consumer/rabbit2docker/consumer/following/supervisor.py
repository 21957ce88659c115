"""Owns the followers: one for each attempt of this replica whose end is not told yet, whatever happens to it."""

import asyncio
from functools import partial
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.consumer.attempt_cache import is_reported
from rabbit2docker.consumer.executors.base import Attempt, AttemptName, AttemptState, Change, Changed
from rabbit2docker.consumer.following.follower import Follower, FollowerContext
from rabbit2docker.consumer.ownership import Ownership

log = structlog.get_logger()

RESTART_SECONDS: Final = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Pauses before a follower that broke is started anew from the record."""


END_SECONDS: Final = 8.0
"""How long followers may take to write down how far they came when the service stops."""


class FollowerSupervisor:
    """Starts a follower for every unfinished attempt, and another one when a follower breaks."""

    def __init__(self, tools: FollowerContext, ownership: Ownership) -> None:
        """Take what followers work with, and what tells which attempts are ours; nothing runs before `run`."""
        self._tools = tools
        self._ownership = ownership
        self._tasks: dict[AttemptName, asyncio.Task[None]] = {}
        self._followers: dict[AttemptName, Follower] = {}
        self._waiting_told: dict[AttemptName, str] = {}
        self._side: set[asyncio.Task[None]] = set()
        self._open = False

    async def run(self) -> None:
        """Follow everything until cancelled; then each follower writes down how far it came."""
        self._open = True
        self._tools.attempts.subscribe(self._on_change)
        self._ownership.subscribe(self._on_ownership)
        self._on_ownership()
        try:
            await asyncio.Event().wait()
        finally:
            self._open = False
            await self._end_all()

    async def _end_all(self) -> None:
        tasks = [*self._tasks.values(), *self._side]
        for task in tasks:
            task.cancel()
        if tasks:
            # Where writing down takes longer, the next one tells some lines again, and readers drop them.
            await asyncio.wait(tasks, timeout=END_SECONDS)

    def _on_ownership(self) -> None:
        """Take over what has become ours, and leave to others what no longer is."""
        if not self._open:
            return
        for attempt in self._tools.attempts:
            is_mine = self._ownership.is_mine(attempt.spec.build_id)
            if is_mine and not is_reported(attempt) and attempt.name not in self._tasks:
                metrics.ATTEMPTS_ADOPTED.inc()
                log.info("attempt adopted", build_id=attempt.spec.build_id, attempt=attempt.spec.attempt)
                self._on_change(Changed(attempt))
            elif not is_mine and (task := self._tasks.get(attempt.name)):
                # It writes down how far it came; until the other one reads that, both tell the same ids.
                task.cancel()

    def _on_change(self, change: Change) -> None:
        if not self._open or not isinstance(change, Changed) or is_reported(change.attempt):
            return
        attempt = change.attempt
        if not self._ownership.is_mine(attempt.spec.build_id):
            return
        if attempt.name not in self._tasks:
            task = asyncio.create_task(self._follow(attempt), name=f"follower of {attempt.name}")
            self._tasks[attempt.name] = task
            task.add_done_callback(partial(self._on_done, attempt.name))
            metrics.BUILDS_FOLLOWED.set(len(self._tasks))
        self._tell_waiting(attempt)

    def _on_done(self, name: AttemptName, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
            self._waiting_told.pop(name, None)
            self._again(name, task)
        metrics.BUILDS_FOLLOWED.set(len(self._tasks))

    def _again(self, name: AttemptName, task: asyncio.Task[None]) -> None:
        """Follow on when the attempt came back to us before its follower had let go."""
        attempt = self._tools.attempts.get(name)
        if task.cancelled() and attempt is not None:
            self._on_change(Changed(attempt))

    def _tell_waiting(self, attempt: Attempt) -> None:
        reason = attempt.waiting_for
        follower = self._followers.get(attempt.name)
        if attempt.state is not AttemptState.PENDING or not reason or follower is None:
            return
        if self._waiting_told.get(attempt.name) != reason:
            self._waiting_told[attempt.name] = reason
            task = asyncio.create_task(follower.tell_waiting_for(reason), name=f"waiting of {attempt.name}")
            self._side.add(task)
            task.add_done_callback(self._side.discard)

    async def _follow(self, attempt: Attempt) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            build_id=attempt.spec.build_id, attempt=attempt.spec.attempt, tenant=attempt.spec.tenant
        )
        broken = 0
        while True:
            # A new follower starts from what the record says, never from what a broken one believed.
            current = self._tools.attempts.get(attempt.name) or attempt
            follower = self._followers[attempt.name] = Follower(current, self._tools)
            try:
                await follower.run()
            except Exception:
                log.exception("follower broke, starting it anew")
                await asyncio.sleep(RESTART_SECONDS[min(broken, len(RESTART_SECONDS) - 1)])
                broken += 1
            else:
                return
            finally:
                self._followers.pop(attempt.name, None)
