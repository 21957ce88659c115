"""The content of an engine's disk, by how much that is too much, and what goes next. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rabbit2docker.settings import DiskSettings

CLEAN_TO: Final = 0.9
"""Part of a limit that a cleaning leaves, so that not every build needs one."""
UNPUSHED_FOR: Final = timedelta(hours=1)
"""Time for which an image that was not pushed goes last: its build may be tried again, and would find it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system."""

    size: int
    free: int


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image that the engine has."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    labels: dict[str, str]
    created: datetime
    is_used: bool = False
    """True if a container was made of it."""


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """Part of the build cache that belongs to no image."""

    size: int
    last_used: datetime


@dataclass(frozen=True, slots=True)
class Survey:
    """The images and the build cache of an engine at a moment."""

    images: tuple[EngineImage, ...]
    image_bytes: int
    """Layers of images, each counted once."""
    cache: tuple[CacheRecord, ...]
    """The build cache that is in no image; BuildKit counts layers of images as cache, too, until it gives them up."""
    disk: Disk | None
    """The disk, if it can be seen from here."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of build cache alone."""
        return sum(record.size for record in self.cache)

    @property
    def stored(self) -> int:
        """Bytes of images and build cache together."""
        return self.image_bytes + self.cache_bytes

    def excess(self, limits: DiskSettings, *, part: float = 1.0) -> int:
        """Return the bytes above `part` of the limits; 0 or less if there are none."""
        found = []
        if limits.max_bytes is not None:
            found.append(self.stored - limits.max_bytes * part)
        if limits.max_percent is not None and self.disk is not None:
            used = self.disk.size - self.disk.free
            found.append(used - self.disk.size * limits.max_percent / 100 * part)
        return int(max(found, default=0))


@dataclass(frozen=True, slots=True)
class Removable:
    """An image that may go."""

    image: EngineImage
    references: tuple[str, ...]
    """Names to remove; the image goes with its last one."""
    leased_as: str | None
    """Name that a build of this service holds it by."""
    last_used: datetime
    is_pushed: bool

    def rank(self, now: datetime) -> tuple[bool, datetime]:
        """Return its place in the order of removal."""
        return not self.is_pushed and now - self.last_used < UNPUSHED_FOR, self.last_used


@dataclass(frozen=True, slots=True)
class PruneCache:
    """Remove build cache until so many bytes of it are left."""

    keep: int


def next_step(
    candidates: Sequence[Removable], cache: Iterable[CacheRecord], excess: int
) -> Removable | PruneCache | None:
    """Return what goes next: what was not used for longest, cache or the first candidate; None if nothing is left.

    The layers of a removed image become cache that was last used when the image was built, so they are next.
    """
    records = list(cache)
    total = sum(record.size for record in records)
    older = [r.size for r in records if not candidates or r.last_used < candidates[0].last_used]
    if older:
        return PruneCache(total - min(excess, sum(older)))
    return candidates[0] if candidates else None
