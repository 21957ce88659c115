"""Builders of records and requests for tests."""

from datetime import UTC, datetime
from typing import Any

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    BuilderResult,
)
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.requests import BuildRequest

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
REQUEST = BuildRequest(provider="git", spec="https%3A%2F%2Fgit.example.org%2Frepo/main")
REPOSITORY = Repository(
    provider="gh",
    spec="o/r/HEAD",
    repo_url="https://github.com/o/r",
    resolved_ref="a" * 40,
    build_slug="o-r",
    content_provider="Git",
    display_name="o/r",
)


def a_spec(name: str = "build-1", **changes: Any) -> AttemptSpec:
    fields: dict[str, Any] = {
        "name": AttemptName(name),
        "build_id": build_id_of("default", name),
        "build_name": name,
        "attempt": 1,
        "tenant": "default",
        "request_id": RequestId(name),
        "request": REQUEST,
        "repo_url": "https://git.example.org/repo",
        "resolved_ref": "0" * 40,
        "content_provider": "Git",
        "image": f"registry.example.org/{name}:0",
        "fingerprint": name,
        "timeout_seconds": 3600,
        "idle_seconds": 1800,
        "queued_at": NOW,
        "created_at": NOW,
    }
    return AttemptSpec(**{**fields, **changes})


def an_attempt(
    name: str = "build-1",
    *,
    state: AttemptState = AttemptState.RUNNING,
    result: BuilderResult | None = None,
    status: AttemptStatus | None = None,
    **changes: Any,
) -> Attempt:
    return Attempt(
        spec=a_spec(name, **changes),
        status=status or AttemptStatus(),
        state=state,
        result=result,
        started_at=NOW,
    )
