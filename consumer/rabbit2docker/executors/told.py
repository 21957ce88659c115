"""What every executor tells the builder of an attempt."""

from typing import Any

from rabbit2docker.executors.base import AttemptSpec
from rabbit2docker.settings import BuilderSettings


def told(spec: AttemptSpec, settings: BuilderSettings) -> dict[str, Any]:
    """Return what does not depend on where the builder runs; no credentials are among it."""
    request = spec.request
    return {
        "repo_url": spec.repo_url,
        "ref": spec.resolved_ref,
        "image": spec.image,
        "content_provider": spec.content_provider,
        "subdir": request.subdir,
        "build_args": request.build_args,
        "labels": request.labels,
        "appendix": request.appendix,
        "timeout_seconds": spec.timeout_seconds,
        "idle_seconds": spec.idle_seconds,
        "docker_wait_seconds": settings.docker_wait_seconds,
        "push_retries": settings.push_retries,
        "user_name": settings.user_name,
        "user_id": settings.user_id,
        "repo2docker_args": settings.repo2docker_args,
    }
