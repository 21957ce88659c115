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


def pinned(image: str, digest: str | None) -> str:
    """Return `registry/name:tag@digest`, which no other image ever has, so that every node runs this one."""
    return f"{image}@{digest}" if digest else image


FindImage = Callable[[str, str], Awaitable[ImageInfo | None]]
"""Looks up an image by `registry/name:tag`, with or without `@digest`, for a tenant; None if it is absent.

Raises RegistryUnavailable if that is unknown.
"""
