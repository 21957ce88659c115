"""Leases: the images that running builds use. The builder holds them, and the kernel ends them with its process.

Each builder locks a file of its own in `held`, whose name begins with the hash of its image's name. It creates the file
while it shares the lock on `gate`, and a cleaning has that lock for itself from reading the leases until the image is
removed. So neither can miss the other, and no crash can leave a lease or a lock behind.
"""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rabbit2docker.consumer.executors.lease_directory import GATE, HELD
from rabbit2docker.errors import EngineUnavailable

GATE_SECONDS: Final = 30.0
"""Builders share the gate for milliseconds."""
_TRY_AGAIN_SECONDS: Final = 0.05


def lease_key(image: str) -> str:
    """Return the beginning of the names of lease files for an image; the builder computes the same."""
    return hashlib.sha256(image.encode()).hexdigest()[:32]


class Leases:
    """The directory of the leases, as a cleaning reads it."""

    def __init__(self, directory: Path) -> None:
        """Take the directory that builders know."""
        self._directory = directory

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[frozenset[str]]:
        """Keep builds from taking leases, and yield the keys of those that are held. Raises EngineUnavailable."""
        try:
            gate = await asyncio.to_thread(self._open, self._directory / GATE)
        except OSError as error:
            raise _unreadable(error) from error
        try:
            await self._lock(gate)
            yield await asyncio.to_thread(self._held)
        finally:
            os.close(gate)

    async def _lock(self, gate: int) -> None:
        try:
            async with asyncio.timeout(GATE_SECONDS):
                while not _try_lock(gate, fcntl.LOCK_EX):  # noqa: ASYNC110  # other processes hold it
                    await asyncio.sleep(_TRY_AGAIN_SECONDS)
        except TimeoutError:
            raise EngineUnavailable(f"A build holds {self._directory / GATE} and does not go on.") from None

    def _held(self) -> frozenset[str]:
        """Return the keys of leases, and remove files that processes which have ended left behind."""
        try:
            found = list((self._directory / HELD).iterdir())
            return frozenset(path.name.partition(".")[0] for path in found if not self._is_left_behind(path))
        except OSError as error:
            raise _unreadable(error) from error

    @staticmethod
    def _is_left_behind(path: Path) -> bool:
        """Remove the file and return True if nothing has it locked."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if is_free := _try_lock(file, fcntl.LOCK_SH):
                path.unlink()
            return is_free
        finally:
            os.close(file)

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o664)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unreadable(error: OSError) -> EngineUnavailable:
    return EngineUnavailable(f"The leases of builds cannot be read: {error.strerror}: {error.filename}.")
