"""Facts about an image in the registry, and the function that looks one up."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that the registry has."""

    digest: str
    """Digest of the manifest."""
    size: int | None
    """Bytes of the layers as stored; None where a lookup would cost a pull or the image has several platforms."""


FindImage = Callable[[str], Awaitable[ImageInfo | None]]
"""Looks up an image by `registry/name:tag`; None if it is absent. Raises RegistryUnavailable if that is unknown."""
