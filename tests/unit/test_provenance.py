"""The origin of an image, in its labels and in the event about it."""

from importlib.metadata import version
from typing import Any

import pytest

from rabbit2docker.consumer.executors.base import BuilderResult
from rabbit2docker.consumer.executors.builder_io import builder_spec
from rabbit2docker.consumer.executors.provenance import provenance_labels, provenance_of, version_of
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.records import a_spec

REPORTED = {
    "created": "2026-01-01T12:00:00Z",
    "version": "v1",
    "request_id": "earlier",
    "build_id": "0-1",
    "builder": "0.1.0",
}


@pytest.mark.parametrize(
    ("provider", "spec", "expected"),
    [
        ("gh", "o/r/v1.0", "v1.0"),
        ("gh", "o/r/feature/x", "feature/x"),
        ("gh", "o/r/HEAD", "0" * 40),
        ("gist", "u/0a1b", "0" * 40),
        ("gist", "u/0a1b/7daa", "7daa"),
        ("gl", "group%2Fsub%2Fr/v%2F2", "v/2"),
        ("git", "https%3A%2F%2Fexample.org%2Fr/main", "main"),
        ("zenodo", "10.5281/zenodo.3242074", "0" * 40),
        ("later", "a/b/c", "0" * 40),
    ],
)
def test_the_version_is_what_the_request_names(provider: str, spec: str, expected: str) -> None:
    assert version_of(a_spec(request=BuildRequest(provider=provider, spec=spec))) == expected


def test_the_builder_is_given_the_origin_beside_the_labels_of_the_request() -> None:
    request = BuildRequest(provider="gh", spec="o/r/v1", labels={"one": "1"})
    spec = a_spec(request=request)
    given = builder_spec(spec, Settings())
    assert given["labels"] == {"one": "1"}
    assert given["provenance"] == {
        "org.opencontainers.image.source": "https://git.example.org/repo",
        "org.opencontainers.image.revision": "0" * 40,
        "org.opencontainers.image.version": "v1",
        "io.rabbit2docker.request-id": spec.request_id,
        "io.rabbit2docker.build-id": spec.build_id,
        "io.rabbit2docker.version": version("rabbit2docker"),
        "io.rabbit2docker.image": spec.image,
    }


def test_the_event_has_the_ids_and_the_time_of_the_image() -> None:
    spec = a_spec()
    result = BuilderResult.model_validate({"reason": "ok", "exit_code": 0, "provenance": REPORTED})
    found = provenance_of(spec, result)
    assert found is not None
    assert (found.source, found.revision) == (spec.repo_url, spec.resolved_ref)
    assert (found.request_id, found.build_id, found.version) == ("earlier", "0-1", "v1")
    assert found.created.isoformat() == "2026-01-01T12:00:00+00:00"


@pytest.mark.parametrize(
    "reported",
    [None, {}, {**REPORTED, "created": "yesterday"}, {"created": REPORTED["created"]}, "text", [1]],
)
def test_an_image_without_these_labels_has_no_origin(reported: Any) -> None:
    result = BuilderResult.model_validate({"reason": "ok", "exit_code": 0, "provenance": reported})
    assert provenance_of(a_spec(), result) is None
    assert provenance_labels(a_spec())["io.rabbit2docker.build-id"] == a_spec().build_id
