"""One cleaning of an engine's disk, step by step; each step begins with what the engine holds by then."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from rabbit2docker.consumer.engine_disk.engine_api import EngineApi, EngineDiskFull
from rabbit2docker.consumer.engine_disk.leases import Leases, lease_key
from rabbit2docker.consumer.engine_disk.ownership import RESERVE, removable
from rabbit2docker.consumer.engine_disk.usage import (
    CLEAN_TO,
    Disk,
    PruneCache,
    Removable,
    Survey,
    next_step,
)
from rabbit2docker.errors import EngineUnavailable
from rabbit2docker.settings import DiskSettings

log = structlog.get_logger()

NEEDED_PART: Final = 4
"""A build that met a full disk gets at least this fraction of what is stored: how much it needs cannot be known."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The result of a cleaning."""

    survey: Survey
    """What is left."""
    freed: int
    images_removed: int
    images_kept: int
    oldest: datetime | None
    """Last use of the image that would go next; None if it is not known, or if there is none."""
    excess: int
    """Bytes above the limits that could not be freed."""


class OneCleaning:
    """Removes images and build cache until the limits are kept, or nothing is left that may go."""

    def __init__(
        self,
        engine: EngineApi,
        leases: Leases,
        limits: DiskSettings,
        measure: Callable[[], Awaitable[Disk | None]],
    ) -> None:
        """Take the engine, and the function that measures its disk."""
        self._engine = engine
        self._leases = leases
        self._limits = limits
        self._measure = measure
        self._is_cache_stuck = False
        self._has_made_room = False
        self._removed = 0

    async def run(self, *, is_needed: bool, now: datetime) -> Cleaned:
        """Clean, if a limit is exceeded or a build needs space. Raises EngineUnavailable."""
        before = await self._survey()
        if not is_needed and before.excess(self._limits) <= 0:
            await self._keep_reserve(before)
            return self._result(before, before, [], before.excess(self._limits))
        target = before.stored - before.stored // NEEDED_PART if is_needed else None
        after, candidates = await self._clean(before, target, now)
        if is_needed and self._missing(after, target) > 0:
            await self._engine.prune(keep=0, everything=True)
            after = await self._survey()
        await self._keep_reserve(after)
        cleaned = self._result(before, after, candidates, after.excess(self._limits))
        # While nothing can be freed, this comes every few seconds.
        report = log.info if cleaned.freed or is_needed else log.debug
        report(
            "engine's disk cleaned",
            freed=cleaned.freed,
            stored=after.stored,
            images_removed=self._removed,
            images_kept=cleaned.images_kept,
            over_limit=max(0, cleaned.excess),
        )
        return cleaned

    async def _clean(
        self, survey: Survey, target: int | None, now: datetime
    ) -> tuple[Survey, list[Removable]]:
        candidates = await self._candidates(survey, now)
        while (missing := self._missing(survey, target)) > 0:
            cache = () if self._is_cache_stuck else survey.cache
            if (step := next_step(candidates, cache, missing)) is None:
                break
            try:
                await self._take(step, candidates)
            except EngineDiskFull:
                # The engine may have forgotten a name nevertheless.
                await self._make_room()
                candidates = await self._candidates(await self._survey(), now)
            survey = await self._survey()
        return survey, candidates

    async def _take(self, step: Removable | PruneCache, candidates: list[Removable]) -> None:
        if isinstance(step, PruneCache):
            self._is_cache_stuck = await self._engine.prune(keep=step.keep) == 0
        else:
            candidates.remove(step)
            await self._remove(step)

    def _missing(self, survey: Survey, target: int | None) -> int:
        """Return the bytes that are still to be freed."""
        above = survey.excess(self._limits, part=CLEAN_TO)
        return above if target is None else max(above, survey.stored - target)

    async def _survey(self) -> Survey:
        return await self._engine.survey(await self._measure())

    async def _candidates(self, survey: Survey, now: datetime) -> list[Removable]:
        """Return the images that may go, in the order in which they do."""
        found = [
            removable(image, await self._engine.last_tagged(image), all_images=self._limits.all_images)
            for image in survey.images
        ]
        return sorted((each for each in found if each is not None), key=lambda each: each.rank(now))

    async def _remove(self, which: Removable) -> None:
        async with self._leases.closed() as held:
            if which.leased_as is not None and lease_key(which.leased_as) in held:
                return
            removed = [await self._engine.remove(name) for name in which.references]
        if all(removed):
            self._removed += 1
            self._is_cache_stuck = False
            log.info("image removed", image=which.references[0], last_used=which.last_used.isoformat())

    async def _make_room(self) -> None:
        """Give up the reserve, so that the engine can write down that something is gone. Raises EngineDiskFull."""
        if self._has_made_room:
            raise EngineDiskFull("The disk of the Docker engine is full, and nothing on it can be removed.")
        self._has_made_room = True
        for image in (await self._survey()).images:
            if RESERVE in image.labels:
                await self._engine.remove(image.id)
        await self._engine.prune(keep=0)

    async def _keep_reserve(self, survey: Survey) -> None:
        if any(RESERVE in image.labels for image in survey.images):
            return
        try:
            await self._engine.make_reserve()
        except EngineUnavailable as error:
            log.warning("reserve not made", reason=str(error))

    def _result(self, before: Survey, after: Survey, left: list[Removable], excess: int) -> Cleaned:
        kept = sum(RESERVE not in image.labels for image in after.images)
        return Cleaned(
            survey=after,
            freed=max(0, before.stored - after.stored),
            images_removed=self._removed,
            images_kept=kept,
            oldest=left[0].last_used if left else None,
            excess=excess,
        )
