"""The images that were built, from the events of their tenants."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rabbit2docker.replay.workspace import Workspace

_IMAGES: Final = """
SELECT e.image, e.digest, e.size, e.ref, e.time, e.repo2docker, e.builder_image, e.tenant,
       (SELECT repo_url FROM answers WHERE image = e.image ORDER BY time DESC LIMIT 1),
       (SELECT max(time) FROM answers WHERE image = e.image)
FROM ends e
WHERE e.kind = 'completed' AND e.rowid = (
  SELECT rowid FROM ends WHERE image = e.image AND kind = 'completed'
  ORDER BY (repo2docker <> '' OR builder_image <> '') DESC, time DESC LIMIT 1)
ORDER BY e.time
"""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """One image, by name and tag, as it was built last."""

    image: str
    digest: str
    size: int | None
    """Compressed bytes; None if the registry does not report them."""
    source: str
    """URL of the repository; empty if the events do not reach back that far."""
    ref: str
    repo2docker_version: str
    """Empty if the image existed before the events that are known."""
    builder_image: str
    tenant: str
    """Of the request that built it."""
    built_at: datetime
    requested_at: datetime | None
    """Time of the latest request that led to it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the image as a JSON object."""
        return {
            **asdict(self),
            "built_at": self.built_at.isoformat(),
            "requested_at": self.requested_at.isoformat() if self.requested_at else None,
        }


def built_images(workspace: Workspace) -> Iterator[BuiltImage]:
    """Yield the images of a workspace that is filled with events, the newest last."""
    workspace.query("CREATE INDEX IF NOT EXISTS completed_by_image ON ends(image) WHERE kind = 'completed'")
    for image, digest, size, ref, built, version, builder, tenant, source, requested in workspace.query(
        _IMAGES
    ):
        yield BuiltImage(
            image=image,
            digest=digest,
            size=size,
            source=source or "",
            ref=ref,
            repo2docker_version=version,
            builder_image=builder,
            tenant=tenant,
            built_at=datetime.fromtimestamp(built, UTC),
            requested_at=datetime.fromtimestamp(requested, UTC) if requested is not None else None,
        )
