"""The directory in which builders hold their images, so that no cleaning of the engine's disk removes them.

It exists before the first build does: a builder that does not find it takes no lease, as nothing cleans its engine.
"""

from pathlib import Path
from typing import Final

from rabbit2docker.errors import ConfigurationError

HELD: Final = "held"
GATE: Final = "gate"


def create_lease_directory(directory: Path) -> None:
    """Create the directory unless it is there. Raises ConfigurationError."""
    try:
        (directory / HELD).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The directory of the leases, {directory}, cannot be created: {error.strerror}. "
            "Set RABBIT2DOCKER_ENGINE__DISK__LEASES to one that this program and all builds may write to."
        ) from error
