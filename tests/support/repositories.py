"""Git repositories on a real git server, and the environment that real builds need."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

NEEDED = (
    "RABBIT2DOCKER_TEST_GIT_ROOT",
    "RABBIT2DOCKER_TEST_GIT_URL",
    "RABBIT2DOCKER_TEST_BASE_IMAGE",
    "RABBIT2DOCKER_TEST_REGISTRY",
    "RABBIT2DOCKER_IMAGES__PREFIX",
)
BASE_IMAGE = os.environ.get("RABBIT2DOCKER_TEST_BASE_IMAGE", "")


def skip_without_services() -> None:
    """Skip the test if the services for real builds are missing."""
    if missing := [name for name in NEEDED if name not in os.environ]:
        pytest.skip(f"run `make test`, which sets {', '.join(missing)}")


def tools_path() -> str:
    """Return a PATH with the docker client, including the one that `make up` installs."""
    made = os.environ.get("RABBIT2DOCKER_DEV_BIN")
    return f"{made}:{os.environ['PATH']}" if made else os.environ["PATH"]


def dockerfile(*instructions: str) -> dict[str, str]:
    """Return the files of a repository with a Dockerfile on the base image; no engine has its steps in a cache."""
    unique = f"ENV BUILT_BY_TEST={uuid.uuid4().hex}"
    return {"Dockerfile": "\n".join((f"FROM {BASE_IMAGE}", unique, *instructions)) + "\n"}


@dataclass(frozen=True)
class GitServer:
    """A git server for the repositories in a directory."""

    root: Path
    url: str

    @classmethod
    def of_this_machine(cls) -> "GitServer":
        return cls(Path(os.environ["RABBIT2DOCKER_TEST_GIT_ROOT"]), os.environ["RABBIT2DOCKER_TEST_GIT_URL"])


class Repository:
    """A repository with a unique name."""

    def __init__(self, name: str, files: Mapping[str, str | bytes], server: GitServer) -> None:
        """Create it with one commit on `main`."""
        self.name = f"{name}-{uuid.uuid4().hex[:8]}"
        self.directory = server.root / self.name
        self.url = f"{server.url}/{self.name}"
        self.directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit(files)

    def git(self, *arguments: str) -> str:
        """Run git in the repository and return its output."""
        identity = ("-c", "user.name=Example", "-c", "user.email=example@example.org", "-c", "gc.auto=0")
        command = ["git", "-C", str(self.directory), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, files: Mapping[str, str | bytes]) -> str:
        """Commit files on the current branch and return the commit id; files given as bytes are executable."""
        for path, content in files.items():
            file = self.directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
                file.chmod(0o755)
            else:
                file.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A change")
        return self.head()

    def add_submodule(self, path: str, url: str, commit: str, **more: str) -> str:
        """Commit a submodule without fetching it, and return the commit."""
        for key, value in {"path": path, "url": url, **more}.items():
            self.git("config", "--file", ".gitmodules", f"submodule.{path}.{key}", value)
        self.git("add", ".gitmodules")
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        self.git("commit", "--quiet", "--message", "A submodule")
        return self.head()

    def head(self) -> str:
        """Return the id of the checked-out commit."""
        return self.git("rev-parse", "HEAD")

    def spec(self, ref: str = "main") -> str:
        """Return the spec for the provider `git`."""
        return self.spec_of(self.url, ref)

    @staticmethod
    def spec_of(url: str, ref: str) -> str:
        """Return the spec for a repository by one of its addresses."""
        return f"{quote(url, safe='')}/{quote(ref, safe='')}"


@contextmanager
def repository(
    name: str, files: Mapping[str, str | bytes], server: GitServer | None = None
) -> Iterator[Repository]:
    """Create a repository, and remove it afterwards."""
    made = Repository(name, files, server or GitServer.of_this_machine())
    try:
        yield made
    finally:
        shutil.rmtree(made.directory, ignore_errors=True)
