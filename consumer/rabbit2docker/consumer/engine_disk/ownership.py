"""The images of an engine that are builds of this service, and the names of them that may be removed. Pure."""

from datetime import datetime

from rabbit2docker.consumer.engine_disk.usage import EngineImage, Removable
from rabbit2docker.consumer.executors.provenance import BUILD_ID, IMAGE

RESERVE = "io.rabbit2docker.reserve"
"""Label of the image that is removed first when the disk is so full that nothing else can be."""
_DEFAULT_HOSTS = ("docker.io/", "index.docker.io/")


def plain_name(name: str) -> str:
    """Return an image's name as the engine lists it, without the default registry."""
    for host in _DEFAULT_HOSTS:
        name = name.removeprefix(host)
    return name.removeprefix("library/")


def removable(image: EngineImage, last_used: datetime, *, all_images: bool) -> Removable | None:
    """Return what may be removed of an image, None if it is not of this service.

    An image that was built `FROM` one of ours has its labels, but not its name. Names that others gave to an image of ours
    stay, and the image with them.
    """
    if RESERVE in image.labels or image.is_used:
        return None
    own = _own_references(image)
    if all_images:
        own = image.tags or own or (image.id,)
    if not own:
        return None
    return Removable(image, own, image.labels.get(IMAGE), last_used, is_pushed=bool(image.digests))


def _own_references(image: EngineImage) -> tuple[str, ...]:
    name = image.labels.get(IMAGE)
    if name is None or BUILD_ID not in image.labels:
        return ()
    if not image.tags:
        return (image.id,)
    return tuple(tag for tag in image.tags if plain_name(tag) == plain_name(name))
