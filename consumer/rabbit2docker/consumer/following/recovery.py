"""Recovery of builds: whether the thing that an attempt has lost is still away, and the wait for its return."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.images.base import FindImage
from rabbit2docker.errors import RequestRejected, TransientError
from rabbit2docker.retry import Backoff, doubling
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.reasons import INTERRUPTIONS, FailureReason

log = structlog.get_logger()

LOOK_SECONDS: Final = doubling(1.0, 5.0)
"""Pauses between two looks at what a build waits for, and whether it is cancelled."""


def waiting_text(problem: str, until: datetime) -> str:
    """Return what the requester learns of the wait."""
    return (
        f"{problem} The build waits and is tried again once that is over, "
        f"until {until:%Y-%m-%d %H:%M} UTC at the latest."
    )


@dataclass(frozen=True, slots=True)
class Recovery:
    """Looks after what attempts have lost."""

    engine: EngineWatch
    find_image: FindImage
    settings: Settings
    now: Callable[[], datetime] = utc_now

    def deadline(self, ended_at: datetime | None) -> datetime:
        """Return until when a build waits whose attempt ended at `ended_at`."""
        return (ended_at or self.now()) + timedelta(seconds=self.settings.limits.outage_seconds)

    async def problem(
        self, reason: FailureReason | str | None, spec: AttemptSpec, *, max_age: float = 0.0
    ) -> str | None:
        """Return why what an attempt has lost is away now, for people; None if it is back or nothing was lost."""
        if reason in INTERRUPTIONS:
            return await self.engine.look(max_age=max_age)
        if reason == FailureReason.PUSH_FAILED and self.settings.images.check_registry:
            try:
                await self.find_image(spec.image, spec.tenant)
            except TransientError as error:
                return error.message if error.outage_of else None
            except RequestRejected:
                return None
        return None

    async def wait(
        self,
        reason: FailureReason,
        spec: AttemptSpec,
        *,
        until: datetime,
        is_cancelled: Callable[[], bool],
        announce: Callable[[str], Awaitable[None]],
    ) -> bool:
        """Wait until what the attempt has lost is back; return False if it is still away at `until`.

        `announce` is called once, with the problem. A cancelled build does not wait.
        """
        pauses, announced = Backoff(LOOK_SECONDS, jitter=0.1), False
        # The wall clock is read once: it may jump during an outage.
        clock = asyncio.get_running_loop().time
        gives_up_at = clock() + (until - self.now()).total_seconds()
        while (problem := await self.problem(reason, spec, max_age=LOOK_SECONDS[-1] / 2)) is not None:
            if is_cancelled():
                break
            if clock() >= gives_up_at:
                return False
            if not announced:
                announced = True
                log.warning("next attempt postponed", reason=problem)
                await announce(problem)
            await pauses.sleep()
        return True
