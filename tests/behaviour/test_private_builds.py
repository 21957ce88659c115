"""Private repositories, from message to image: with the credentials of their tenant, which are in nothing that is left."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import docker
import pytest

from rabbit2docker.settings import AmqpSettings
from tests.support.consumer import Consumer
from tests.support.git_http import Handler
from tests.support.git_lfs import ATTRIBUTES, LfsServer
from tests.support.github_app import OWNER, enterprise
from tests.support.private_git import PrivateGit, private_git
from tests.support.repositories import dockerfile, tools_path
from tests.support.stories import build

pytestmark = [pytest.mark.docker, pytest.mark.broker, pytest.mark.xdist_group("real-builds")]

OTHER = "acme-data"
"""An account with an installation of its own."""
LARGE = b"A large file."
SHOWS_ALL = (
    "COPY . /everything",
    "RUN cat /everything/data.bin /everything/sub/inner.txt /everything/other/data.txt; env; cat /proc/*/environ; true",
)


class Processes:
    """Looks for secrets in the arguments and variables of all processes whenever the server is asked."""

    def __init__(self, secrets: Callable[[], list[str]]) -> None:
        self.secrets = secrets
        self.searched: set[str] = set()
        self.found: set[str] = set()

    def __call__(self, handler: Handler) -> bool:
        if "/info/refs" not in handler.path:
            return False
        for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            self.searched.update(word for word in ("ls-remote", "fetch") if word.encode() in content)
            if any(secret.encode() in content for secret in self.secrets()):
                self.found.add(str(path))
        return False


def image_has(image: str, secrets: list[str]) -> bool:
    """Return whether a layer, the configuration or the history of an image has one of the secrets."""
    client = docker.DockerClient(base_url=os.environ.get("RABBIT2DOCKER_DOCKER__HOST"))
    try:
        found = client.images.get(image)
        content = b"".join(found.save(named=True)) + repr((found.history(), found.attrs)).encode()
    finally:
        client.close()
    return any(secret.encode() in content for secret in secrets)


def with_submodule(git: PrivateGit, files: dict[str, str], url: str | None = None) -> tuple[str, str]:
    """Make a repository with a submodule on the same host; return their addresses by HTTPS and by SSH."""
    inner = git.repository("inner", {"inner.txt": "From the submodule.\n"})
    outer = git.repository("outer", {**dockerfile(*SHOWS_ALL), **files})
    outer.add_submodule("sub", url or f"../{inner.name}", inner.head())
    return outer.url, git.ssh_url(outer)


async def test_private_repositories_are_built_with_the_credentials_of_their_tenant(
    own_amqp: AmqpSettings, tmp_path: Path
) -> None:
    with private_git(tmp_path / "git") as git:
        address = f"{git.https.server.url}/lfs-content/{{oid}}"
        lfs = LfsServer(login=f"Basic {git.secrets[1]}", href=address)
        processes = Processes(lambda: git.secrets)
        git.https.faults[:0] = [processes, lfs]
        by_https, _ = with_submodule(git, {**ATTRIBUTES, "data.bin": lfs.add(LARGE)})
        _, by_ssh = with_submodule(git, {"data.bin": "Plain."})
        (tmp_path / "consumer").mkdir()
        consumer = Consumer(
            tmp_path / "consumer",
            own_amqp,
            real=True,
            PATH=tools_path(),
            GIT_SSL_CAINFO=str(git.authority),
            RABBIT2DOCKER_TENANTS=git.tenants("default"),
        )
        short = head_of(git, by_ssh)[:10]
        consumer.start_and_wait()
        try:
            stories = [
                await build(own_amqp, f"{quote(url, safe='')}/{ref}")
                for url, ref in ((by_https, "main"), (by_ssh, short))
            ]
        finally:
            consumer.end_everything()
        for story, large in zip(stories, (LARGE.decode(), "Plain."), strict=True):
            found = {text for text in (large, "From the submodule.") if text in "\n".join(story.log)}
            assert {"From the submodule.", large} <= found, "\n".join(story.log)
            assert not image_has(story.completed.image, git.secrets)
        assert processes.searched == {"ls-remote", "fetch"}
        assert not processes.found
        left = [path for path in (tmp_path / "consumer").rglob("*") if path.is_file()]
        shown = repr([story.events for story in stories]) + "".join(
            path.read_text(errors="replace") for path in left
        )
        assert len(left) > 5
        assert not [secret for secret in git.secrets if secret in shown]


async def test_a_repository_that_only_a_github_app_can_read_is_built(
    own_amqp: AmqpSettings, tmp_path: Path
) -> None:
    with enterprise(tmp_path / "github") as github:
        inner = github.repository("inner", {"inner.txt": "From the submodule.\n"})
        outer = github.repository("outer", {**dockerfile(*SHOWS_ALL), "data.bin": "Plain."})
        outer.add_submodule("sub", f"../{inner.name}", inner.head())
        data = github.repository("data", {"data.txt": "From another account.\n"}, account=OTHER)
        outer.add_submodule("other", github.url(data, OTHER), data.head())
        processes = Processes(lambda: github.secrets)
        github.https.faults.insert(0, processes)
        (tmp_path / "consumer").mkdir()
        consumer = Consumer(
            tmp_path / "consumer",
            own_amqp,
            real=True,
            PATH=tools_path(),
            GIT_SSL_CAINFO=str(github.authority),
            SSL_CERT_FILE=str(github.authority),
            RABBIT2DOCKER_PROVIDERS__GITHUB_HOSTNAME=github.host,
            RABBIT2DOCKER_TENANTS=json.dumps({"default": github.tenant(submodule_accounts=[OTHER])}),
        )
        consumer.start_and_wait()
        try:
            spec = f"{OWNER}/{outer.name}/{outer.head()[:10]}"
            story = await build(own_amqp, spec, provider="gh")
        finally:
            consumer.end_everything()
        assert "From the submodule." in "\n".join(story.log), "\n".join(story.log)
        assert "From another account." in "\n".join(story.log)
        assert github.accounts_of_tokens_for(data) == {OTHER}
        assert github.accounts_of_tokens_for(inner) == {OWNER}
        assert not image_has(story.completed.image, github.secrets)
        assert processes.searched >= {"fetch"}
        assert not processes.found
        left = [path for path in (tmp_path / "consumer").rglob("*") if path.is_file()]
        shown = repr(story.events) + "".join(path.read_text(errors="replace") for path in left)
        scopes = [token.repositories for token in github.tokens]
        assert {f"{OWNER}/{made.name}" for made in (inner, outer)} in scopes
        assert {f"{OTHER}/{data.name}"} in scopes
        assert not [secret for secret in github.secrets if secret in shown]


def head_of(git: PrivateGit, url: str) -> str:
    directory = git.https.root / url.rpartition("/")[2]
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
