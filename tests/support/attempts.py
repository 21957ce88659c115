"""Specifications and marks of made-up attempts."""

from datetime import UTC, datetime
from typing import Any

from rabbit2docker.executors.base import AttemptName, AttemptSpec
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.requests import BuildRequest

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def attempt_spec(name: str = "build-one", **changes: Any) -> AttemptSpec:
    """Return the specification of a first attempt called `name`."""
    fields: dict[str, Any] = {
        "name": AttemptName(name),
        "build_id": build_id_of("default", name),
        "build_name": name,
        "attempt": 1,
        "tenant": "default",
        "request_id": RequestId(f"request-of-{name}"),
        "request": BuildRequest(provider="gh", spec="owner/repository/main"),
        "repo_url": "https://github.com/owner/repository",
        "resolved_ref": "0" * 40,
        "content_provider": "Git",
        "image": f"registry.example/{name}:{'0' * 40}",
        "fingerprint": f"fingerprint-of-{name}",
        "timeout_seconds": 3600,
        "idle_seconds": 1800,
        "queued_at": NOON,
        "created_at": NOON,
    }
    return AttemptSpec(**(fields | changes))
