"""The version of this service, read once: it is in a file."""

from importlib.metadata import version
from typing import Final

OWN_VERSION: Final = version("rabbit2docker")
