"""Verdicts of the builder on cases of the corpus, with real repo2docker, a real engine and a registry with faults."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deploy.dev import machine

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from tests.corpus import cases
from tests.corpus.record import Site, write_repository
from tests.corpus.registry import Rule
from tests.support.repositories import BASE_IMAGE, skip_without_services

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("real-builds")]


class Bench:
    """The site of a case of the corpus, and the builder on it."""

    def __init__(self, name: str, case: dict[str, Any], directory: Path, stack: ExitStack) -> None:
        self.site = Site(case, stack, directory)
        self.repository = directory / "repository"
        self.directory = directory
        if case["kind"] == "build":
            write_repository(name, case, self.site, self.repository)

    def run(self, **spec: Any) -> dict[str, Any]:
        """Run the builder to its end and return its result."""
        defaults: dict[str, Any] = {
            "repo_url": str(self.repository),
            "content_provider": "Local",
            "image": f"corpus/one:{uuid.uuid4().hex}",
            "push": False,
            "docker_wait_seconds": 30,
            "base_image_retries": 0,
            "workdir": str(self.directory / "work"),
        }
        (self.directory / "spec.json").write_text(json.dumps(defaults | spec))
        command = [*BUILDER_COMMAND, "--spec", str(self.directory / "spec.json")]
        command += [
            "--log",
            str(self.directory / "log.jsonl"),
            "--result",
            str(self.directory / "result.json"),
        ]
        subprocess.run(command, env=self.site.environment, check=False, timeout=300)
        self.site.docker("rmi", "--force", spec.get("image", defaults["image"]), check=False)
        return dict(json.loads((self.directory / "result.json").read_text()))

    def texts(self) -> list[str]:
        lines = (self.directory / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    skip_without_services()
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    "name",
    [
        "unknown-instruction",
        "copy-of-a-missing-file",
        "two-config-directories",
        "step-that-forges-the-engine",
        "step-fills-its-tmpfs",
        "base-image-rate-limited",
        "base-image-private",
    ],
)
def test_the_builder_reports_the_verdict_of_the_corpus(name: str, tmp_path: Path, stack: ExitStack) -> None:
    case = cases()[name]
    bench = Bench(name, case, tmp_path, stack)
    result = bench.run()
    message = result["message"].replace(bench.site.address, "127.0.0.1:5000")
    assert result["reason"] == case["reason"], bench.texts()
    assert [word for word in case["words"] if word not in message] == []
    assert not any(result["message"] in text for text in bench.texts())


def test_a_step_that_fills_the_disk_of_the_engine_is_not_to_blame(tmp_path: Path, stack: ExitStack) -> None:
    if not machine.is_debian_root() or not list(machine.CACHE.glob("docker-engine-*/.complete")):
        pytest.skip("a separate engine needs Debian, root, and `make up`")
    bench = Bench("step-fills-the-disk", cases()["step-fills-the-disk"], tmp_path, stack)
    # A disk that is full for some milliseconds only may go unseen; real steps clean up after themselves.
    text = f"FROM {BASE_IMAGE}\nRUN dd if=/dev/zero of=/big bs=1M count=500 || {{ sleep 1; exit 1; }}\n"
    (bench.repository / "Dockerfile").write_text(text)
    result = bench.run()
    assert result["reason"] == "disk_full"
    assert result["failed_step"].startswith("RUN dd")


def _pushed(bench: Bench, rules: list[str]) -> tuple[dict[str, Any], int]:
    """Build and push an image whose name has words of errors; return the result and the number of pushes."""
    assert bench.site.registry
    bench.repository.mkdir()
    (bench.repository / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nENV UNIQUE={uuid.uuid4().hex}\n")
    bench.site.registry.rules = [Rule(rule) for rule in rules]
    result = bench.run(image=f"{bench.site.address}/the-forbidden-city:denied", push=True, push_retries=3)
    return result, sum(text.startswith("The push refers to") for text in bench.texts())


def test_a_repository_that_the_registry_lacks_is_asked_for_once(tmp_path: Path, stack: ExitStack) -> None:
    bench = Bench("push-name-unknown", {"kind": "push", "registry": []}, tmp_path, stack)
    result, pushes = _pushed(bench, ["PUT /manifests/ 404 NAME_UNKNOWN unknown"])
    assert (result["reason"], pushes) == ("push_rejected", 1)
    assert "has no repository for the image" in result["message"]


def test_a_push_is_repeated_after_an_error_of_the_registry_whatever_the_image_is_called(
    tmp_path: Path, stack: ExitStack
) -> None:
    bench = Bench("push-manifest-500", {"kind": "push", "registry": []}, tmp_path, stack)
    result, pushes = _pushed(bench, ["PUT /manifests/ 500@1- UNKNOWN unknown error"])
    assert (result["reason"], pushes) == ("ok", 2)
