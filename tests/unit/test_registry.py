"""An image is found, absent, or the lookup fails: an unclear answer is never taken for absence."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rabbit2docker import metrics
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.images.registry import Reference, Registry, parse_image
from rabbit2docker.errors import RegistryDenied, RegistryUnavailable
from rabbit2docker.registry_urls import api_url
from rabbit2docker.settings import DockerSettings, ImageSettings

MANIFEST = json.dumps(
    {"schemaVersion": 2, "config": {"size": 7}, "layers": [{"size": 100}, {"size": 23}]}
).encode()
INDEX = json.dumps({"schemaVersion": 2, "manifests": [{"size": 1}]}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
API = {"Docker-Distribution-Api-Version": "registry/2.0"}


class FakeRegistry:
    """The pull side of a registry with a token service, on loopback."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {"r2d-a:1": MANIFEST}
        self.auth = "none"
        self.users = {"robot": "secret"}
        self.headers: dict[str, str] = dict(API)
        self.digest = True
        self.always: Callable[[], web.Response] | None = None
        self.denies_absent = False
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.expires_in = 300
        self.scopes: list[str] = []
        self.realm_path = "/token"
        app = web.Application()
        app.router.add_route("*", "/v2/{name:.+}/manifests/{version}", self._manifest)
        app.router.add_route("*", "/token", self._token)
        self.server = TestServer(app)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def _refuse(self) -> web.Response:
        realm = str(self.server.make_url(self.realm_path))
        challenge = {
            "basic": 'Basic realm="here"',
            "bearer": f'Bearer realm="{realm}",service="reg, istry",scope="repository:r2d-a:pull"',
        }[self.auth]
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED"}]},
            status=401,
            headers=self.headers | {"WWW-Authenticate": challenge},
        )

    def _is_allowed(self, request: web.Request) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if self.auth == "basic":
            return scheme == "Basic" and self._knows(value)
        return self.auth == "none" or (scheme == "Bearer" and value in self.tokens)

    def _knows(self, basic: str) -> bool:
        user, _, password = base64.b64decode(basic).decode().partition(":")
        return self.users.get(user) == password

    async def _manifest(self, request: web.Request) -> web.Response:
        self.asked.append(request.method)
        assert "application/vnd.oci.image.index.v1+json" in request.headers["Accept"]
        if self.always:
            return self.always()
        if not self._is_allowed(request):
            return self._refuse()
        image = f"{request.match_info['name']}:{request.match_info['version']}"
        if image not in self.images:
            if self.denies_absent:
                return web.json_response({"errors": [{"code": "DENIED"}]}, status=403)
            return web.json_response(
                {"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404, headers=self.headers
            )
        body = self.images[image]
        digest = (
            {"Docker-Content-Digest": f"sha256:{hashlib.sha256(body).hexdigest()}"} if self.digest else {}
        )
        return web.Response(body=body, headers=self.headers | digest)

    async def _token(self, request: web.Request) -> web.Response:
        self.asked.append(f"token {request.method}")
        if request.method == "POST":
            form = await request.post()
            if form["grant_type"] != "refresh_token" or form["refresh_token"] != "identity":
                return web.json_response({}, status=401)
            self.scopes.append(str(form["scope"]))
            return web.json_response({"access_token": self._new_token(), "expires_in": self.expires_in})
        self.scopes.append(request.query["scope"])
        assert request.query["service"] == "reg, istry"
        basic = request.headers.get("Authorization", "").removeprefix("Basic ")
        if not basic or not self._knows(basic):
            return web.json_response({"details": "incorrect username or password"}, status=401)
        return web.json_response({"token": self._new_token(), "expires_in": self.expires_in})

    def _new_token(self) -> str:
        self.tokens = {f"t{len(self.asked)}"}
        return next(iter(self.tokens))


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    fake = FakeRegistry()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


@asynccontextmanager
async def asking(
    directory: Path, entry: dict[str, Any] | None = None, *, host: str = "", **images: Any
) -> AsyncIterator[Registry]:
    if entry is not None:
        (directory / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    async with aiohttp.ClientSession() as session:
        yield Registry(session, ImageSettings(**images), DockerSettings(config=directory))


ROBOT = {"auth": base64.b64encode(b"robot:secret").decode()}


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("127.0.0.1:5000/r2d-a:1", Reference("127.0.0.1:5000", "r2d-a", "1")),
        ("localhost:5000/img", Reference("localhost:5000", "img", "latest")),
        ("localhost/img:2", Reference("localhost", "img", "2")),
        ("quay.io/org/pfx-a:1@sha256:abc", Reference("quay.io", "org/pfx-a", "sha256:abc")),
        ("org/pfx-a:1", Reference("docker.io", "org/pfx-a", "1")),
        ("busybox", Reference("docker.io", "library/busybox", "latest")),
        ("index.docker.io/org/a:1", Reference("docker.io", "org/a", "1")),
    ],
)
def test_an_image_name_is_parsed_as_docker_does(image: str, reference: Reference) -> None:
    assert parse_image(image) == reference


async def test_an_existing_image_is_found_with_digest_and_size(fake: FakeRegistry, tmp_path: Path) -> None:
    async with asking(tmp_path) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)


async def test_an_image_for_several_platforms_is_found(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.images["r2d-a:2"] = INDEX
    async with asking(tmp_path) as registry:
        found = await registry.find(f"{fake.host}/r2d-a:2")
    assert found == ImageInfo(f"sha256:{hashlib.sha256(INDEX).hexdigest()}", None)


async def test_the_digest_is_computed_when_the_registry_sends_none(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    fake.digest = False
    async with asking(tmp_path) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)


@pytest.mark.parametrize("says_what_it_is", [True, False])
async def test_a_missing_image_is_absent(fake: FakeRegistry, tmp_path: Path, says_what_it_is: bool) -> None:
    fake.headers = dict(API) if says_what_it_is else {}
    async with asking(tmp_path) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:2") is None


async def test_the_address_of_the_registry_can_be_overridden(fake: FakeRegistry, tmp_path: Path) -> None:
    async with asking(tmp_path, registry_url=f"http://{fake.host}/") as registry:
        assert await registry.find("registry.example.org/r2d-a:1") == ImageInfo(DIGEST, 123)


async def test_a_404_from_another_kind_of_server_is_not_an_absent_image(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    fake.always = lambda: web.Response(status=404, text="<html>nothing here</html>")
    async with asking(tmp_path) as registry:
        with pytest.raises(RegistryUnavailable, match=r"images\.registry_url"):
            await registry.find(f"{fake.host}/r2d-a:1")


@pytest.mark.parametrize("status", [400, 403, 418, 500, 502, 503])
async def test_an_error_of_the_registry_is_not_an_absent_image(
    fake: FakeRegistry, tmp_path: Path, status: int
) -> None:
    fake.always = lambda: web.json_response({"errors": [{"code": "UNKNOWN"}]}, status=status, headers=API)
    async with asking(tmp_path) as registry:
        with pytest.raises(RegistryUnavailable):
            await registry.find(f"{fake.host}/r2d-a:1")


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("17", 17, 17), ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400, 86_400), ("soon", None, None)],
)
async def test_a_rate_limit_carries_the_time_to_wait(
    fake: FakeRegistry, tmp_path: Path, header: str, least: float | None, most: float | None
) -> None:
    fake.always = lambda: web.Response(status=429, headers={"Retry-After": header})
    async with asking(tmp_path) as registry:
        with pytest.raises(RegistryUnavailable, match="limits the rate") as caught:
            await registry.find(f"{fake.host}/r2d-a:1")
    wait = caught.value.retry_after
    assert wait is None if least is None or most is None else wait is not None and least <= wait <= most


async def test_an_unreachable_registry_is_not_an_absent_image(fake: FakeRegistry, tmp_path: Path) -> None:
    host = fake.host
    await fake.server.close()
    async with asking(tmp_path) as registry:
        with pytest.raises(RegistryUnavailable, match="cannot be reached"):
            await registry.find(f"{host}/r2d-a:1")


async def test_a_registry_that_does_not_answer_is_not_an_absent_image(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(say_nothing, "127.0.0.1", unused_tcp_port)
    async with asking(tmp_path, registry_timeout=0.1) as registry:
        with pytest.raises(RegistryUnavailable, match="did not answer"):
            await registry.find(f"127.0.0.1:{unused_tcp_port}/r2d-a:1")
    await left.wait()
    server.close()
    await server.wait_closed()


async def test_basic_credentials_are_sent_on_a_challenge(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.auth = "basic"
    async with asking(tmp_path, ROBOT, host=fake.host) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)
        assert await registry.find(f"{fake.host}/r2d-a:2") is None


async def test_a_token_is_fetched_once_and_reused(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.auth = "bearer"
    async with asking(tmp_path, ROBOT, host=fake.host) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)
        assert await registry.find(f"{fake.host}/r2d-a:2") is None
    assert fake.asked.count("token GET") == 1
    assert fake.scopes == ["repository:r2d-a:pull"]


async def test_a_revoked_token_is_replaced(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.auth = "bearer"
    async with asking(tmp_path, ROBOT, host=fake.host) as registry:
        await registry.find(f"{fake.host}/r2d-a:1")
        fake.tokens.clear()
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)
    assert fake.asked.count("token GET") == 2


async def test_an_identity_token_is_exchanged(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.auth = "bearer"
    async with asking(tmp_path, {"identitytoken": "identity"}, host=fake.host) as registry:
        assert await registry.find(f"{fake.host}/r2d-a:1") == ImageInfo(DIGEST, 123)
    assert "token POST" in fake.asked


@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize("entry", [None, {"auth": base64.b64encode(b"robot:wrong").decode()}])
async def test_missing_or_wrong_credentials_raise_an_error_with_advice(
    fake: FakeRegistry, tmp_path: Path, auth: str, entry: dict[str, Any] | None
) -> None:
    fake.auth = auth
    async with asking(tmp_path, entry, host=fake.host) as registry:
        with pytest.raises(RegistryDenied, match=r"operator must") as caught:
            await registry.find(f"{fake.host}/r2d-a:1")
    # Trying again would not help, so the request is rejected at once.
    assert (caught.value.reason, caught.value.retryable) == ("registry_denied", True)
    assert entry is None or "refuses the configured credentials" in caught.value.message


async def test_a_denial_is_not_absence_except_at_registries_known_to_deny_absent_images(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    fake.auth, fake.denies_absent = "bearer", True
    async with asking(tmp_path, ROBOT, host=fake.host) as registry:
        with pytest.raises(RegistryUnavailable, match=r"images\.check"):
            await registry.find(f"{fake.host}/r2d-a:2")
    async with asking(
        tmp_path, ROBOT, host="https://index.docker.io/v1/", registry_url=f"http://{fake.host}"
    ) as registry:
        assert await registry.find("docker.io/org/r2d-a:2") is None
        assert await registry.find("docker.io/r2d-a:1") is None


async def test_a_lookup_at_docker_hub_does_not_count_as_a_pull(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.images["org/a:1"] = MANIFEST
    async with asking(tmp_path, registry_url=f"http://{fake.host}") as registry:
        assert await registry.find("docker.io/org/a:1") == ImageInfo(DIGEST, None)
    assert fake.asked == ["HEAD"]


@pytest.mark.parametrize(("header", "left"), [("76;w=21600", 76), ("5", 5), ("many", None)])
async def test_what_a_registry_says_is_left_is_a_metric(
    fake: FakeRegistry, tmp_path: Path, header: str, left: int | None
) -> None:
    fake.headers["RateLimit-Remaining"] = header
    async with asking(tmp_path) as registry:
        await registry.find(f"{fake.host}/r2d-a:1")
    name = "rabbit2docker_registry_requests_left"
    assert metrics.REGISTRY.get_sample_value(name, {"registry": fake.host}) == left


@pytest.mark.parametrize(
    ("registry", "scheme"),
    [
        ("127.0.0.1:5000", "http"),
        ("registry.local:5000", "http"),
        ("registry.local", "https"),
        ("other.local:5000", "https"),
    ],
)
def test_only_listed_registries_are_asked_without_encryption(registry: str, scheme: str) -> None:
    assert api_url(registry, None, ["registry.local:5000"]) == f"{scheme}://{registry}"
