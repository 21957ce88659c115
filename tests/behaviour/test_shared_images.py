"""Tenants that share images: what one of them built of private content is never answered to another."""

import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.client import BuildEvents
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.consumer import Consumer
from tests.support.git_lfs import ATTRIBUTES, LfsServer
from tests.support.github_app import OWNER, Enterprise, enterprise
from tests.support.private_git import PrivateGit, private_git
from tests.support.repositories import Repository, dockerfile, tools_path
from tests.support.stories import Story

pytestmark = [pytest.mark.docker, pytest.mark.broker, pytest.mark.xdist_group("real-builds")]

INSIDE = "Only alpha may read this."


@dataclass
class Content:
    """A public repository with private content, and what alpha has to read it."""

    repository: Repository
    url: str
    tenant: dict[str, Any]
    authority: Path
    secrets: list[str] = field(default_factory=list)


def steps(*files: str) -> dict[str, str]:
    return dockerfile("COPY . /everything", f"RUN cat {' '.join(f'/everything/{name}' for name in files)}")


def with_submodule(git: PrivateGit, *, user: str | None, by_ssh: bool = False) -> Content:
    inner = git.repository("inner", {"inner.txt": INSIDE})
    outer = git.repository("public", steps("sub/inner.txt"))
    outer.add_submodule("sub", git.ssh_url(inner) if by_ssh else f"../{inner.name}", inner.head())
    git.user = user or "oauth2"
    tenant = git.tenant()
    if user is None:
        del tenant["git"][git.https_host]["user"]
    return Content(outer, outer.url, tenant, git.authority, git.secrets)


def with_large_file(git: PrivateGit) -> Content:
    lfs = LfsServer(login=f"Basic {git.secrets[1]}", href=f"{git.https.server.url}/lfs-content/{{oid}}")
    git.https.faults.insert(0, lfs)
    outer = git.repository(
        "public", {**ATTRIBUTES, "data.bin": lfs.add(INSIDE.encode()), **steps("data.bin")}
    )
    return Content(outer, outer.url, git.tenant(), git.authority, git.secrets)


def of_app(github: Enterprise) -> Content:
    inner = github.repository("inner", {"inner.txt": INSIDE})
    outer = github.repository("outer", steps("sub/inner.txt"))
    outer.add_submodule("sub", f"../{inner.name}", inner.head())
    github.public.add(f"{OWNER}/{outer.name}")
    return Content(outer, github.url(outer), github.tenant(), github.authority)


@pytest.fixture(params=["password", "token", "ssh", "app", "lfs"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    servers: AbstractContextManager[Any] = (
        enterprise(tmp_path / "git") if request.param == "app" else private_git(tmp_path / "git")
    )
    make: dict[str, Callable[[Any], Content]] = {
        "password": lambda git: with_submodule(git, user="reader"),
        "token": lambda git: with_submodule(git, user=None),
        "ssh": lambda git: with_submodule(git, user="reader", by_ssh=True),
        "app": of_app,
        "lfs": with_large_file,
    }
    with servers as git:
        yield make[request.param](git)


async def build(amqp: AmqpSettings, tenant: str, content: Content) -> Story:
    spec = Repository.spec_of(content.url, content.repository.head())
    request = BuildRequest(provider="git", spec=spec, request_id=f"{tenant}-{uuid.uuid4().hex}")
    async with BuildEvents(amqp, tenant, wait_seconds=180) as events:
        await events.submit(request)
        return Story([event async for event in events.of_request(str(request.request_id))])


def registry_has(image: str) -> bool:
    host, _, path = image.partition("/")
    name, _, tag = path.rpartition(":")
    try:
        with urllib.request.urlopen(f"http://{host}/v2/{name}/manifests/{tag}", timeout=60):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 404:
            raise
        return False


def start(content: Content, amqp: AmqpSettings, directory: Path) -> Consumer:
    """Start a service in which alpha and beta share their images, and alpha alone has credentials."""
    directory.mkdir()
    shared = {"images": {"prefix": f"{os.environ['RABBIT2DOCKER_TEST_REGISTRY']}/shared-"}}
    consumer = Consumer(
        directory,
        amqp,
        real=True,
        PATH=tools_path(),
        GIT_SSL_CAINFO=str(content.authority),
        SSL_CERT_FILE=str(content.authority),
        RABBIT2DOCKER_TENANTS=json.dumps({"alpha": {**shared, **content.tenant}, "beta": shared}),
    )
    consumer.start_and_wait()
    return consumer


async def test_what_a_tenant_read_with_credentials_is_its_own(
    own_amqp: AmqpSettings, content: Content, tmp_path: Path
) -> None:
    consumer = start(content, own_amqp, tmp_path / "consumer")
    try:
        of_alpha = await build(own_amqp, "alpha", content)
        of_beta = await build(own_amqp, "beta", content)
        again = await build(own_amqp, "alpha", content)
    finally:
        consumer.end_everything()
    digest = of_alpha.completed.digest
    assert INSIDE in "\n".join(of_alpha.log)
    assert "/shared-alpha." in of_alpha.completed.image
    shared_name = of_alpha.accepted.image
    assert "/shared-alpha." not in shared_name
    assert not of_beta.accepted.cached
    assert digest not in repr(of_beta.events)
    assert INSIDE not in repr(of_beta.events)
    assert (again.accepted.cached, again.completed.digest) == (True, digest)
    assert again.accepted.image == of_alpha.completed.image
    # Without files of Git LFS there is an image, which has pointers in their place.
    if of_beta.end.kind == "completed":
        assert of_beta.completed.warnings
    else:
        assert not registry_has(shared_name)
    assert registry_has(of_alpha.completed.image)
    assert not [secret for secret in content.secrets if secret in repr([of_alpha.events, of_beta.events])]


async def test_what_anybody_can_read_is_shared(own_amqp: AmqpSettings, tmp_path: Path) -> None:
    with private_git(tmp_path / "git") as git:
        inner = git.repository("public-inner", {"inner.txt": "For all."})
        outer = git.repository("public", steps("sub/inner.txt"))
        outer.add_submodule("sub", f"../{inner.name}", inner.head())
        content = Content(outer, outer.url, git.tenant(), git.authority)
        consumer = start(content, own_amqp, tmp_path / "consumer")
        try:
            of_alpha = await build(own_amqp, "alpha", content)
            of_beta = await build(own_amqp, "beta", content)
        finally:
            consumer.end_everything()
    assert of_alpha.completed.image == of_alpha.accepted.image
    assert (of_beta.accepted.cached, of_beta.completed.digest) == (True, of_alpha.completed.digest)
