"""The end of an installation: every build is ended and reported, then its record is removed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    Change,
    Executor,
    Members,
)
from rabbit2docker.consumer.following.follower import FollowerContext
from rabbit2docker.consumer.following.outcome import CANCELLED, RETRY
from rabbit2docker.consumer.following.recovery import Recovery
from rabbit2docker.consumer.following.supervisor import FollowerSupervisor
from rabbit2docker.consumer.images.tenants import TenantRegistries
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.consumer.service import make_executor
from rabbit2docker.errors import Rabbit2DockerError, RecordMissing, TransientError
from rabbit2docker.settings import ExecutorKind, Settings
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()

BY: Final = "the operator, who removes the service"
"""Name of the requester of these cancels: it is shown as `cancelled by …`."""
PASS_SECONDS: Final = 1.0
"""Longest pause between two passes, and so the longest delay of what one pass could not do."""
CONNECT_FRACTION: Final = 0.9
"""Part of the time limit after which RabbitMQ counts as unreachable: soon enough to report why."""


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """The fate of the builds of an installation."""

    ended: int
    """Number of attempts whose end was reported."""
    unreported: list[Attempt]
    left: list[AttemptName]
    """Records that are still there although their end is reported."""
    problems: list[str]
    """Sentences that say why something is left."""

    @property
    def is_complete(self) -> bool:
        """True if no build waits for its end, and no record is left."""
        return not self.unreported and not self.left and not self.problems


class OnlyReplica:
    """A membership of one. It needs no Lease, which cannot be created in a namespace that is being deleted."""

    async def members(self) -> AsyncIterator[Members]:
        """Yield the one replica."""
        yield Members("removal", frozenset({"removal"}))


class Removal:
    """Ends the builds of an installation whose consumers have stopped. Safe to repeat, whatever was done before."""

    def __init__(self, executor: Executor, settings: Settings) -> None:
        """End the builds that `executor`, which is open, has records of."""
        # A build that fails now is not tried again.
        limits = settings.limits.model_copy(update={"attempts": 0, "interruptions": 0})
        self._settings = settings.model_copy(update={"limits": limits})
        self._executor = executor
        self._attempts = AttemptCache(executor)
        self._changed = asyncio.Event()
        self._stopped: set[AttemptName] = set()
        self._seen: set[AttemptName] = set()

    async def run(self, *, seconds: float) -> RemovalReport:
        """End, report and remove all builds, within `seconds`."""
        tasks, problem = TaskSet(), ""
        self._attempts.subscribe(self._on_change)
        tasks.run_in_background(self._attempts.run(), "attempts")
        try:
            async with asyncio.timeout(seconds):
                await self._attempts.synced.wait()
                if self._unreported():
                    await self._end_builds(connect_seconds=seconds * CONNECT_FRACTION)
                await self._repeat(self._remove_records)
        except TimeoutError:
            problem = f"{seconds:.0f} seconds were not enough."
        except Rabbit2DockerError as error:
            problem = str(error)
        finally:
            await tasks.close()
        return self._report(problem)

    def _report(self, problem: str) -> RemovalReport:
        unreported = self._unreported()
        left = [attempt.name for attempt in self._attempts if is_reported(attempt)]
        known = self._executor.problems()
        # A watch may be interrupted at any moment, which matters only if something is left.
        relevant = known.values() if problem or unreported or left else [known.get("records")]
        return RemovalReport(
            len(self._seen - {attempt.name for attempt in unreported}),
            unreported,
            left,
            [text for text in (problem, *relevant) if text],
        )

    def _on_change(self, _: Change) -> None:
        self._changed.set()

    def _unreported(self) -> list[Attempt]:
        found = [attempt for attempt in self._attempts if not is_reported(attempt)]
        self._seen |= {attempt.name for attempt in found}
        return found

    async def _end_builds(self, *, connect_seconds: float) -> None:
        async with publishing(self._settings, wait_seconds=connect_seconds) as publisher:
            # Before they are followed, so that each follower starts from a record that allows no further attempt.
            await self._repeat(self._mark_builds)
            events = EventPublisher(publisher, instance=self._settings.instance)
            async with self._following(events):
                await self._repeat(self._stop_builds)

    @asynccontextmanager
    async def _following(self, events: EventPublisher) -> AsyncIterator[None]:
        """Follow all builds to their ends."""
        breakers, tasks = Breakers(), TaskSet()
        async with open_session(self._settings.providers) as session:
            find_image = TenantRegistries(session, self._settings, breakers).find
            recovery = Recovery(EngineWatch(self._executor, breakers), find_image, self._settings)
            ownership = Ownership(OnlyReplica())
            await ownership.run()
            context = FollowerContext(
                self._executor, self._attempts, events, find_image, self._settings, recovery
            )
            tasks.run_in_background(FollowerSupervisor(context, ownership).run(), "supervisor")
            try:
                yield
            finally:
                await tasks.close()

    async def _repeat(self, one_pass: Callable[[], Awaitable[bool]]) -> None:
        """Repeat a pass until it returns that nothing is left to do."""
        while True:
            self._changed.clear()
            try:
                if await one_pass():
                    return
            except (TransientError, RecordMissing) as error:
                log.warning("removal postponed", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(PASS_SECONDS):
                    await self._changed.wait()

    async def _mark_builds(self) -> bool:
        for attempt in self._unreported():
            await self._mark(attempt)
        return True

    async def _mark(self, attempt: Attempt) -> None:
        spec = attempt.spec
        following = spec.model_copy(update={"attempt": spec.attempt + 1})
        is_followed = any(
            known.spec.is_same_attempt(following) for known in self._attempts.of_build(spec.build_id)
        )

        def cancelled(status: AttemptStatus) -> AttemptStatus:
            changes: dict[str, object] = {}
            if status.cancelled_by is None:
                changes |= {"cancelled_by": BY, "cancel_reason": CANCELLED}
            if status.outcome is not None and status.outcome.kind == RETRY and not is_followed:
                changes["outcome"] = None
            return status.model_copy(update=changes)

        self._attempts.put(await self._executor.update_status(attempt.name, cancelled))

    async def _stop_builds(self) -> bool:
        unreported = self._unreported()
        for attempt in unreported:
            if attempt.status.cancelled_by is None:
                await self._mark(attempt)
            if attempt.state is not AttemptState.ENDED and attempt.name not in self._stopped:
                log.info("build stopped", build_id=attempt.spec.build_id, attempt=attempt.spec.attempt)
                await self._executor.cancel(attempt.name)
                self._stopped.add(attempt.name)
        return not unreported

    async def _remove_records(self) -> bool:
        for attempt in self._attempts:
            if attempt.state is AttemptState.ENDED:
                await self._executor.delete(attempt.name)
        return not list(self._attempts)


async def end_builds(settings: Settings, *, seconds: float) -> RemovalReport:
    """End and report all builds, and remove their records, within `seconds`. The consumers must have stopped."""
    async with make_executor(settings) as executor:
        return await Removal(executor, settings).run(seconds=seconds)


def advice(settings: Settings, report: RemovalReport) -> str:
    """Return what to do about what is left."""
    lines = [
        "Correct what is named above and run `rabbit2docker end-builds` again: only then do requesters learn the ends "
        "of their builds. It continues where this run stopped."
    ]
    if settings.executor is ExecutorKind.KUBERNETES:
        pods = [*(attempt.name for attempt in report.unreported), *report.left]
        lines += [
            "If that is impossible, these commands free the namespace without reporting anything:",
            *(
                f"  kubectl --namespace {settings.kubernetes.namespace} patch pod {pod} --type=merge "
                """--patch='{"metadata": {"finalizers": null}}'"""
                for pod in pods
            ),
        ]
    return "\n".join(lines)
