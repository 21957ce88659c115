"""The builder's fetch stage: real git and real servers on loopback, with scripts in the place of repo2docker and docker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.builder.builder import EXIT_CODES
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason
from tests.support.git_http import NEEDS_PASSWORD, GitHttp, answer, cut_pack, git_http, redirect
from tests.support.repositories import Repository

DIGEST = "sha256:" + "ab" * 32
SECRET = "planted-secret"
TEXT = "".join(f"{number} lines of text that do not compress to nothing\n" for number in range(2000))
# In the place of `python -m repo2docker`: shows what it was given.
PYTHON = """#!/bin/bash
cd {directory}
printf '%s\\n' "$@" > arguments
env > environment
for last; do :; done
cp -a "$last" tree
"""
DOCKER = f"""#!/bin/bash
case "$1" in
version) echo 28.0;;
image) echo 1234;;
push) echo "one: digest: {DIGEST} size: 950";;
esac
"""


class Bench:
    """A directory to run the builder in."""

    def __init__(self, directory: Path, git: GitHttp) -> None:
        self.directory = directory
        self.git = git
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.environment: dict[str, str] = {}
        self.script("docker", DOCKER)
        self.script("fake-python", PYTHON.format(directory=directory))

    def script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def repository(self, files: dict[str, str | bytes] | None = None, name: str = "one") -> Repository:
        return Repository(name, files or {"README.md": "Text.\n"}, self.git.server)

    def run(self, repository: Repository | str, ref: str | None = None, **spec: Any) -> dict[str, Any]:
        """Run to the end and return the result."""
        is_url = isinstance(repository, str)
        defaults = {
            "repo_url": repository if isinstance(repository, str) else repository.url,
            "ref": ref or ("HEAD" if isinstance(repository, str) else repository.head()),
            "image": "registry.example/one:1",
            "python": str(self.bin / "fake-python"),
            "workdir": str(self.directory / "work"),
            "allow_private_addresses": True,
            "fetch_retries": 1,
            "push_retries": 0,
            "docker_wait_seconds": 1,
            "timeout_seconds": 60,
        }
        assert is_url or isinstance(repository, Repository)
        (self.directory / "spec.json").write_text(json.dumps(defaults | spec))
        command = [sys.executable, "-I", "-S", str(BUILDER_PATH), "--spec", str(self.directory / "spec.json")]
        command += ["--log", str(self.log), "--result", str(self.directory / "result.json")]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            **self.environment,
        }
        code = subprocess.run(command, env=environment, check=False, timeout=100).returncode
        result: dict[str, Any] = json.loads((self.directory / "result.json").read_bytes())
        assert result["exit_code"] == code == EXIT_CODES[result["reason"]]
        assert not (self.directory / "work").exists()
        return result

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    def texts(self) -> list[str]:
        return [json.loads(line)["text"] for line in self.log.read_bytes().splitlines()]

    @property
    def tree(self) -> Path:
        """A copy of the directory that repo2docker was given."""
        return self.directory / "tree"

    def arguments(self) -> list[str]:
        return (self.directory / "arguments").read_text().splitlines()


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitHttp]:
    (tmp_path / "served").mkdir()
    with git_http(tmp_path / "served") as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, git: GitHttp) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", git)


def category(result: dict[str, Any]) -> str:
    return CATEGORY_OF[FailureReason(result["reason"])].value


class TestCommits:
    def test_one_commit_is_fetched_and_handed_to_repo2docker_as_a_directory(self, bench: Bench) -> None:
        repository = bench.repository({"a.txt": "first"})
        first = repository.head()
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, first)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "first"
        history = ["git", "-C", str(bench.tree), "log", "--format=%H"]
        assert subprocess.run(history, capture_output=True, text=True, check=True).stdout.split() == [first]
        arguments = bench.arguments()
        assert f"repo2docker.repo={repository.url}" in arguments
        assert arguments[arguments.index("--ref") + 1] == first

    def test_a_branch_of_a_server_that_gives_out_refs_only_is_fetched_by_its_name(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.environment["GIT_PROTOCOL"] = "version=0"
        repository = bench.repository({"a.txt": "first"})
        first = repository.head()
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, first)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "first"

    @pytest.mark.parametrize("version", ["version=0", "version=2"])
    def test_a_commit_of_a_pull_request_is_fetched(self, bench: Bench, git: GitHttp, version: str) -> None:
        git.environment["GIT_PROTOCOL"] = version
        repository = bench.repository()
        repository.git("checkout", "--quiet", "--detach")
        pull = repository.commit({"new.txt": "proposed"})
        repository.git("update-ref", "refs/pull/7/head", pull)
        repository.git("checkout", "--quiet", "main")
        result = bench.run(repository, pull, source_ref="refs/pull/7/head")
        assert result["reason"] == "ok", bench.texts()
        assert (bench.tree / "new.txt").read_text() == "proposed"

    def test_a_commit_that_a_force_push_left_behind_is_fetched(self, bench: Bench) -> None:
        repository = bench.repository()
        left = repository.commit({"old.txt": "left behind"})
        repository.git("reset", "--quiet", "--hard", "HEAD^")
        assert bench.run(repository, left, source_ref="refs/heads/main")["reason"] == "ok", bench.texts()
        assert (bench.tree / "old.txt").exists()

    def test_a_repository_with_sha256_ids_is_fetched(self, bench: Bench) -> None:
        repository = bench.repository()
        (repository.directory / ".git").rename(repository.directory.parent / "away")
        repository.git("init", "--quiet", "--object-format=sha256", "--initial-branch=main")
        commit = repository.commit({"a.txt": "text"})
        assert len(commit) == 64
        assert bench.run(repository, commit)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "text"

    @pytest.mark.parametrize("version", ["version=0", "version=2"])
    def test_a_commit_that_does_not_exist_is_not_found(self, bench: Bench, git: GitHttp, version: str) -> None:
        git.environment["GIT_PROTOCOL"] = version
        result = bench.run(bench.repository(), "1" * 40, source_ref="refs/heads/main")
        assert (result["reason"], category(result)) == ("ref_not_found", "user")
        assert "1" * 40 in result["message"]

    def test_the_whole_history_with_its_tags_is_fetched_if_configured(self, bench: Bench) -> None:
        repository = bench.repository()
        repository.git("tag", "v1")
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, fetch_depth=0)["reason"] == "ok", bench.texts()
        describe = ["git", "-C", str(bench.tree), "describe", "--tags"]
        assert subprocess.run(describe, capture_output=True, text=True, check=True).stdout.startswith("v1-1-g")

    def test_a_renamed_repository_is_followed_to_its_new_address(self, bench: Bench, git: GitHttp) -> None:
        repository = bench.repository()
        git.faults.append(redirect("/old/name", repository.url))
        result = bench.run(f"{git.server.url}/old/name", repository.head(), allow_private_addresses=True)
        assert result["reason"] == "ok", bench.texts()


class TestFaults:
    def test_a_cut_pack_is_fetched_again_and_the_log_has_the_words_of_git(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.faults.append(cut_pack())
        result = bench.run(bench.repository({"a.txt": TEXT}))
        assert result["reason"] == "ok", bench.texts()
        [line] = [text for text in bench.texts() if "Trying again" in text]
        assert "RPC failed" in line or "early EOF" in line
        assert line.endswith("Trying again in 1 s.")

    def test_a_pack_that_is_always_cut_is_a_fault_of_the_infrastructure(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.faults.append(cut_pack(99))
        result = bench.run(bench.repository({"a.txt": TEXT}))
        assert (result["reason"], category(result)) == ("fetch_interrupted", "infrastructure")
        assert "RPC failed" in result["message"]
        assert git.packs() == 4  # two tries, each with a list of refs and a pack

    def test_a_server_error_is_repeated(self, bench: Bench, git: GitHttp) -> None:
        git.faults.append(answer(500, times=1))
        assert bench.run(bench.repository())["reason"] == "ok", bench.texts()
        assert any("500" in text and "Trying again" in text for text in bench.texts())

    def test_a_refused_connection_is_a_fault_of_the_infrastructure(self, bench: Bench) -> None:
        result = bench.run("http://127.0.0.1:1/ada/one", "1" * 40)
        assert (result["reason"], category(result)) == ("fetch_interrupted", "infrastructure")

    @pytest.mark.parametrize(
        ("fault", "reason", "words"),
        [
            (answer(401, headers=NEEDS_PASSWORD), "repository_private", "requires credentials"),
            (answer(403), "repository_private", "requires credentials"),
            (answer(404), "fetch_failed", "no git repository"),
            (answer(410), "fetch_failed", "no git repository"),
            (answer(200), "fetch_failed", "no git repository"),
            (redirect("/", "https://login.example/"), "fetch_failed", "redirects"),
        ],
    )
    def test_a_lasting_fault_is_the_users_and_not_repeated(
        self, bench: Bench, git: GitHttp, fault: Any, reason: str, words: str
    ) -> None:
        git.faults.append(fault)
        result = bench.run(bench.repository(), allow_private_addresses=True)
        assert (result["reason"], category(result)) == (reason, "user"), result
        assert words in result["message"]
        assert not any("Trying again" in text for text in bench.texts())
