"""The origin of an image: labels that the builder adds to it, and the same facts for the `completed` event."""

from typing import Final
from urllib.parse import unquote

from rabbit2docker.consumer.executors.base import AttemptSpec, BuilderResult
from rabbit2docker.own_version import OWN_VERSION
from rabbit2docker_schemas.events import Provenance

SOURCE: Final = "org.opencontainers.image.source"
REVISION: Final = "org.opencontainers.image.revision"
VERSION: Final = "org.opencontainers.image.version"
REQUEST_ID: Final = "io.rabbit2docker.request-id"
BUILD_ID: Final = "io.rabbit2docker.build-id"
BUILDER: Final = "io.rabbit2docker.version"
IMAGE: Final = "io.rabbit2docker.image"
"""The name that the image was built for: one that was built `FROM` it by others has another."""
_REF_AFTER: Final = {"gh": 2, "gist": 2, "gl": 1, "git": 1}
"""Number of parts of a spec before its ref, by provider."""


def provenance_labels(spec: AttemptSpec) -> dict[str, str]:
    """Return the labels that are known before the build; the builder adds the time."""
    return {
        SOURCE: spec.repo_url,
        REVISION: spec.resolved_ref,
        VERSION: version_of(spec),
        REQUEST_ID: spec.request_id,
        BUILD_ID: spec.build_id,
        BUILDER: OWN_VERSION,
        IMAGE: spec.image,
    }


def version_of(spec: AttemptSpec) -> str:
    """Return the branch, tag or version that the request names; the resolved one if it names none."""
    parts_before = _REF_AFTER.get(spec.request.provider)
    if parts_before is None:
        return spec.resolved_ref
    *_, ref = spec.request.spec.split("/", parts_before)
    is_named = spec.request.spec.count("/") >= parts_before
    named = unquote(ref) if is_named else ""
    return spec.resolved_ref if named in ("", "HEAD") else named


def provenance_of(spec: AttemptSpec, result: BuilderResult) -> Provenance | None:
    """Return the facts in the labels of an image; None if the builder did not report them.

    An engine may have had the image from an earlier build, whose ids and time are those of the image.
    """
    if result.provenance is None:
        return None
    return Provenance(
        source=spec.repo_url,
        revision=spec.resolved_ref,
        version=result.provenance.version or version_of(spec),
        created=result.provenance.created,
        request_id=result.provenance.request_id,
        build_id=result.provenance.build_id,
        builder_version=result.provenance.builder,
    )
