"""The cleaning of an engine's disk: at once when a build needs space, else when a limit is exceeded."""

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.consumer.engine_disk.cleaning_requests import serve_requests
from rabbit2docker.consumer.engine_disk.disk_view import find_data_root, measure
from rabbit2docker.consumer.engine_disk.engine_api import EngineApi
from rabbit2docker.consumer.engine_disk.leases import Leases
from rabbit2docker.consumer.engine_disk.one_cleaning import Cleaned, OneCleaning
from rabbit2docker.consumer.engine_disk.usage import Disk
from rabbit2docker.consumer.executors.lease_directory import create_lease_directory
from rabbit2docker.errors import EngineUnavailable
from rabbit2docker.retry import doubling
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import restart_forever, run_together

log = structlog.get_logger()

RESTART_SECONDS: Final = doubling(1.0, 30.0)
EXCEEDED_SECONDS: Final = 5.0
"""Pause while a limit is exceeded because builds use what should go; the end of a build is no event of the engine."""
_GROWING: Final = frozenset({"tag", "push", "pull", "load", "import", "create"})
"""Actions on images after which the disk is looked at."""


class EngineCleaner:
    """Keeps the disk of the engine within its limits, beside the engine."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; raises ConfigurationError if the disk of this engine cannot be cleaned from here."""
        self._limits = settings.engine.disk
        self._address = settings.engine_address
        self._directory = settings.engine_leases
        self._leases = Leases(self._directory)
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[int]] = []
        self.problem: str | None = "not connected yet"
        """Why the disk cannot be cleaned at the moment."""
        EngineApi(self._address)  # checks it

    async def run(self) -> None:
        """Keep the disk within its limits until cancelled, also across restarts of the engine. Raises ConfigurationError."""
        await asyncio.to_thread(create_lease_directory, self._directory)
        await run_together(
            serve_requests(self._directory, self._ask),
            restart_forever(self._watch, pauses=RESTART_SECONDS, report=self._report),
        )

    async def clean_once(self) -> Cleaned:
        """Clean if a limit is exceeded. Raises ConfigurationError, EngineUnavailable."""
        await asyncio.to_thread(create_lease_directory, self._directory)
        async with EngineApi(self._address) as engine:
            return await self._clean(engine, await self._find_disk(engine), is_needed=False)

    async def _ask(self) -> int:
        """Have the disk cleaned for a build that met a full one; return the bytes that were freed."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._wake.set()
        return await answer

    async def _watch(self) -> None:
        async with EngineApi(self._address) as engine:
            root = await self._find_disk(engine)
            self.problem = None
            log.info("engine's disk watched", engine=self._address, path=str(root) if root else None)
            await run_together(self._look_after(engine, root), self._follow_events(engine))

    async def _follow_events(self, engine: EngineApi) -> None:
        async for event in engine.events():
            if event.get("Action") in _GROWING:
                self._wake.set()

    async def _look_after(self, engine: EngineApi, root: Path | None) -> None:
        while True:
            self._wake.clear()
            excess = await self._clean_and_answer(engine, root)
            pause = min(self._limits.check_seconds, EXCEEDED_SECONDS if excess > 0 else math.inf)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _clean_and_answer(self, engine: EngineApi, root: Path | None) -> int:
        """Clean, answer the builds that have waited for it, and return by how much the limits are still exceeded."""
        waiting, self._waiting = self._waiting, []
        freed = 0
        try:
            cleaned = await self._clean(engine, root, is_needed=bool(waiting))
            freed = cleaned.freed
            return cleaned.excess
        finally:
            for answer in waiting:
                if not answer.done():
                    answer.set_result(freed)

    async def _clean(self, engine: EngineApi, root: Path | None, *, is_needed: bool) -> Cleaned:
        cleaning = OneCleaning(engine, self._leases, self._limits, lambda: self._measure(root))
        cleaned = await cleaning.run(is_needed=is_needed, now=datetime.now(UTC))
        _export(cleaned)
        return cleaned

    async def _find_disk(self, engine: EngineApi) -> Path | None:
        data_root = await engine.data_root()
        root = await asyncio.to_thread(find_data_root, engine.socket, data_root)
        if root is None and self._limits.max_percent is not None:
            log.warning(
                "engine's disk cannot be seen: max_percent has no effect",
                data_root=data_root,
                see="max_bytes",
            )
        return root

    @staticmethod
    async def _measure(root: Path | None) -> Disk | None:
        return None if root is None else await asyncio.to_thread(measure, root)

    def _report(self, error: Exception) -> None:
        self.problem = str(error)
        if isinstance(error, EngineUnavailable):
            log.warning("engine's disk not cleaned, trying again", reason=str(error))
        else:
            log.error("cleaning failed", exc_info=error)


def _export(cleaned: Cleaned) -> None:
    survey = cleaned.survey
    metrics.ENGINE_DISK.labels(kind="images").set(survey.image_bytes)
    metrics.ENGINE_DISK.labels(kind="cache").set(survey.cache_bytes)
    if survey.disk is not None:
        metrics.ENGINE_DISK.labels(kind="free").set(survey.disk.free)
        metrics.ENGINE_DISK.labels(kind="size").set(survey.disk.size)
    metrics.ENGINE_IMAGES.set(cleaned.images_kept)
    metrics.ENGINE_DISK_EXCESS.set(max(0, cleaned.excess))
    metrics.ENGINE_DISK_FREED.inc(cleaned.freed)
    metrics.ENGINE_IMAGES_REMOVED.inc(cleaned.images_removed)
    if cleaned.oldest is not None:
        metrics.ENGINE_OLDEST_IMAGE.set(cleaned.oldest.timestamp())
