"""The settings file of a running service, read again when it has changed."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings.constants import CONFIG_FILE_VARIABLE
from rabbit2docker.settings.loading import Settings, load_settings

log = structlog.get_logger()

Stamp = tuple[int, int, int]


class SettingsFile:
    """Applies changes of the file in RABBIT2DOCKER_CONFIG; does nothing if there is none."""

    def __init__(self, apply: Callable[[Settings], None]) -> None:
        """Take what applies new settings, all of it or, with a ConfigurationError, nothing."""
        path = os.environ.get(CONFIG_FILE_VARIABLE)
        self._path = Path(path) if path else None
        self._apply = apply
        self._stamp = _stamp(self._path) if self._path else None
        self._lock = asyncio.Lock()
        self.problem: str | None = None
        """The reason why the file as it is now is not in effect."""

    async def refresh(self) -> None:
        """Apply the file if it has changed. Where it is invalid, the former settings stay in effect."""
        if self._path is None:
            return
        async with self._lock:
            stamp = await asyncio.to_thread(_stamp, self._path)
            if stamp != self._stamp:
                await self._reload()
                self._stamp = stamp

    async def _reload(self) -> None:
        try:
            self._apply(await asyncio.to_thread(load_settings))
        except ConfigurationError as error:
            self.problem = f"The changed settings file is not in effect. {error}"
            log.error("settings file not applied", path=str(self._path), error=str(error))
        else:
            self.problem = None
            log.info("settings file applied", path=str(self._path), groups=["policy", "providers"])


def _stamp(path: Path) -> Stamp | None:
    """Return what changes with the file, also where a mounted ConfigMap is replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
