"""`rabbit2docker engine clean`: the cleaning of an engine's disk as a program of its own."""

import asyncio
from collections.abc import Sequence

import structlog

from rabbit2docker.consumer.engine_disk.cleaner import EngineCleaner
from rabbit2docker.consumer.engine_disk.one_cleaning import Cleaned
from rabbit2docker.consumer.health import Check, Health
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import cancel_and_wait, root_cause, set_on_signals

log = structlog.get_logger()


async def clean(settings: Settings) -> Cleaned:
    """Clean the disk once. Raises ConfigurationError, EngineUnavailable."""
    return await _cleaner(settings).clean_once()


async def watch(settings: Settings) -> None:
    """Keep the disk within its limits until SIGTERM or SIGINT. Raises ConfigurationError."""
    cleaner = _cleaner(settings)

    def checks() -> Sequence[Check]:
        return [Check("engine", cleaner.problem is None, cleaner.problem or "connected")]

    stop = set_on_signals()
    try:
        async with asyncio.TaskGroup() as group:
            work = [
                group.create_task(Health(settings.http.bind, checks).run(), name="health"),
                group.create_task(cleaner.run(), name="cleaner"),
            ]
            await stop.wait()
            await cancel_and_wait(work)
    except BaseExceptionGroup as errors:
        raise root_cause(errors) from None
    log.info("cleaning stopped")


def _cleaner(settings: Settings) -> EngineCleaner:
    if not settings.engine.disk.is_limited:
        raise ConfigurationError(
            "The engine's disk has no limit. Set RABBIT2DOCKER_ENGINE__DISK__MAX_BYTES, __MAX_PERCENT or both."
        )
    return EngineCleaner(settings)
