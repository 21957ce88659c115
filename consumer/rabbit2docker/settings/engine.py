"""Settings of the Docker engine's disk."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rabbit2docker.settings.base import Group, Seconds


class DiskSettings(Group):
    """Limits for what an engine keeps of earlier builds. Without one, nothing is ever removed."""

    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes that images and build cache may take together; above, what was not used for longest is removed."""
    max_percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """Percentage of the engine's disk that may be in use, by whatever; above, images and build cache are removed."""
    all_images: bool = False
    """Remove images that this service has not built, too, such as base images that were loaded by hand."""
    leases: Path | None = None
    """Directory in which running builds hold their images, so that none of them is removed. Services that build with the same
    engine must have the same. Unset: `engine` in `local.state_dir`; in Kubernetes `disk` beside the engine's socket."""
    check_seconds: Seconds = 60.0
    """Seconds after which the disk is looked at, in addition to the moments at which an image was built or pushed."""

    @property
    def is_limited(self) -> bool:
        """True if there is a limit."""
        return self.max_bytes is not None or self.max_percent is not None


class EngineSettings(Group):
    """The Docker engine that builds."""

    disk: DiskSettings = DiskSettings()
