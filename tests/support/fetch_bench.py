"""A directory to run the builder in, with scripts in the place of repo2docker and docker."""

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.builder.builder import EXIT_CODES
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.executors.fetch_access import fetch_files
from rabbit2docker.consumer.git_files import write_files
from rabbit2docker.settings import TenantSettings
from tests.support.git_http import GitHttp
from tests.support.records import a_spec
from tests.support.repositories import Repository

DIGEST = "sha256:" + "ab" * 32
# In the place of `python -m repo2docker`: shows what it was given.
PYTHON = """#!/bin/bash
cd {directory}
printf '%s\\n' "$@" > arguments
env > environment
for last; do :; done
cp -a "$last" tree
while [ "$1" != --config ]; do shift; done
cp "$2" config.py
docker buildx build --progress plain --load --tag any tree
"""
DOCKER = """#!/bin/bash
case "$1" in
version) echo 28.0;;
image) echo 1234;;
buildx) printf '%s\\0' "$@" >> {directory}/builds; echo >> {directory}/builds; cat > /dev/null;;
push) echo "one: digest: {digest} size: 950";;
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
        self.before: list[str] = []
        """A command that starts the builder elsewhere."""
        self.script("docker", DOCKER.format(directory=directory, digest=DIGEST))
        self.script("fake-python", PYTHON.format(directory=directory))

    def script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def repository(self, files: Mapping[str, str | bytes] | None = None, name: str = "one") -> Repository:
        return Repository(name, files or {"README.md": "Text.\n"}, self.git.server)

    def run(self, repository: Repository | str, ref: str | None = None, **spec: Any) -> dict[str, Any]:
        """Run to the end and return the result."""
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
        (self.directory / "spec.json").write_text(json.dumps(defaults | spec))
        command = [*self.before, *BUILDER_COMMAND, "--spec", str(self.directory / "spec.json")]
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

    def give_credentials(self, tenant: Mapping[str, Any]) -> dict[str, Any]:
        """Write the files with a tenant's credentials, and return what the specification says about them."""
        credentials = GitCredentials({"default": TenantSettings.model_validate(tenant)})
        directory = self.directory / "credentials"
        access = asyncio.run(fetch_files(credentials, a_spec(), directory))
        assert access
        write_files(directory, access.files)
        return dict(access.instructions)

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    def texts(self) -> list[str]:
        return [json.loads(line)["text"] for line in self.log.read_bytes().splitlines()]

    @property
    def tree(self) -> Path:
        """A copy of the directory that repo2docker was given."""
        return self.directory / "tree"

    def builds(self) -> list[list[str]]:
        """Return the arguments of each build of the engine."""
        return [call.split("\0") for call in (self.directory / "builds").read_text().split("\0\n") if call]

    def arguments(self) -> list[str]:
        return (self.directory / "arguments").read_text().splitlines()
