"""Two tenants with the shipped permissions, one of whom tries to get the other's images, against the real service."""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from rabbit2docker.client import BuildEvents
from rabbit2docker_schemas.events import Accepted, Completed
from rabbit2docker_schemas.requests import BuildRequest
from tests.behaviour.conftest import ImportUsers
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import COMMIT, Consumer
from tests.support.exported_users import ExportedUsers
from tests.support.private_git import PrivateGit, private_git

pytestmark = pytest.mark.broker


class Registry:
    """A registry that has what the fake docker has pushed, and asks for an account."""

    def __init__(self) -> None:
        self.pushed = Path("/nonexistent")
        self.asked: set[tuple[str, str]] = set()
        """Account and repository of each look-up."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                registry.answer(self)

            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        login = request.headers.get("Authorization", "").removeprefix("Basic ")
        if not login:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="registry"')
        else:
            repository, tag = request.path.removeprefix("/v2/").split("/manifests/")
            self.asked.add((base64.b64decode(login).decode().partition(":")[0], repository))
            image = f"{self.host}/{repository}:{tag}"
            has = self.pushed.exists() and image in self.pushed.read_text().split()
            request.send_response(200 if has else 404)
            request.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            request.send_header(
                "Docker-Content-Digest", f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"
            )
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever, args=(0.05,))
    thread.start()
    yield registry
    registry.server.shutdown()
    thread.join()
    registry.server.server_close()


@pytest.fixture
def git(tmp_path: Path) -> Iterator[PrivateGit]:
    with private_git(tmp_path / "git") as git:
        yield git


@pytest.fixture
def users(import_users: ImportUsers) -> ExportedUsers:
    return import_users("alpha", "beta", "gamma")


@pytest.fixture
def consumer(
    users: ExportedUsers, make_consumer: MakeConsumer, registry: Registry, git: PrivateGit, tmp_path: Path
) -> Consumer:
    """The service as the exported worker: alpha has credentials, beta and gamma share their public images."""
    configs = {name: tmp_path / f"docker-{name}" for name in ("common", "alpha")}
    for name, path in configs.items():
        path.mkdir()
        account = {"auths": {registry.host: {"username": name, "password": "x"}}}
        (path / "config.json").write_text(json.dumps(account))
    shared = {"images": {"prefix": f"{registry.host}/shared-"}}
    tenants: dict[str, Any] = {
        "alpha": {**git.tenant(), "docker_config": str(configs["alpha"])},
        "beta": shared,
        "gamma": {**shared, **git.tenant()},
    }
    consumer = make_consumer(
        amqp_settings=users.settings("rabbit2docker-worker"),
        RABBIT2DOCKER_AMQP__DECLARE="false",
        RABBIT2DOCKER_IMAGES__PREFIX=f"{registry.host}/r2d-",
        RABBIT2DOCKER_IMAGES__CHECK_REGISTRY="true",
        RABBIT2DOCKER_DOCKER__CONFIG=str(configs["common"]),
        RABBIT2DOCKER_TENANTS=json.dumps(tenants),
        GIT_SSL_CAINFO=str(git.authority),
    )
    registry.pushed = consumer.fake_docker / "pushed"
    consumer.start_and_wait()
    return consumer


async def image_of(users: ExportedUsers, tenant: str, number: int, url: str, commit: str) -> tuple[str, bool]:
    """Build as a tenant, with the permissions of its hub; return the image, and whether it existed."""
    spec = f"{quote(url, safe='')}/{commit}"
    request = BuildRequest(provider="git", spec=spec, request_id=f"{tenant}-{number}")
    async with BuildEvents(users.settings(f"hub-{tenant}"), tenant, wait_seconds=180) as events:
        await events.submit(request)
        cached = None
        async for event in events.of_request(str(request.request_id)):
            if isinstance(event.data, Accepted):
                cached = event.data.cached
            if isinstance(event.data, Completed):
                assert cached is not None
                return event.data.image.partition("@")[0], cached
    raise AssertionError(f"{tenant} got no image")


@pytest.mark.usefixtures("consumer")
def test_no_tenant_is_answered_with_an_image_of_another(
    users: ExportedUsers, registry: Registry, git: PrivateGit
) -> None:
    public = "https://127.0.0.1/public"
    private = git.repository("private")

    def image(tenant: str, number: int, url: str, commit: str = COMMIT) -> tuple[str, bool]:
        return asyncio.run(image_of(users, tenant, number, url, commit))

    of_alpha, existed = image("alpha", 1, public)
    assert not existed
    of_beta, existed = image("beta", 1, public)
    assert not existed
    assert of_beta != of_alpha
    assert image("gamma", 1, public) == (of_beta, True), "they share"
    # The commit of a private repository can become known; gamma shares with beta, but not this.
    of_gamma, existed = image("gamma", 2, private.url, private.head())
    assert not existed
    assert "/shared-gamma." in of_gamma
    other, existed = image("beta", 2, private.url, private.head())
    assert (other == of_gamma, existed) == (False, False)
    accounts = {account for account, repository in registry.asked if "alpha." in repository}
    assert accounts == {"alpha"}
    assert {account for account, repository in registry.asked if "alpha." not in repository} == {"common"}
