"""Registries on loopback that answer as their documentation describes: challenges, token services, absence, pushes."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.test_utils import TestServer

MANIFEST = json.dumps({"schemaVersion": 2, "layers": [{"size": 100}, {"size": 23}]}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
API = {"Docker-Distribution-Api-Version": "registry/2.0"}


@dataclass(frozen=True)
class Flavour:
    """Traits in which registries differ."""

    name: str
    token_path: str | None
    """Path of its token service; None where it takes the password itself (Basic)."""
    token_field: str = "token"
    absent: tuple[int, str] = (404, "NAME_UNKNOWN")
    """Status and code for a repository that does not exist."""
    denied: tuple[int, str] = (403, "DENIED")
    """Status and code for an account that may not push."""
    creates: bool = True
    """Whether a push makes the repository."""
    media_type: str = "application/vnd.oci.image.manifest.v1+json"
    scope_of_ping: str | None = None
    """Scope in the challenge of /v2/, where there is one."""
    says_what_it_is: bool = True
    """Whether it sends Docker-Distribution-Api-Version."""


FLAVOURS = (
    Flavour("plain", None),
    Flavour("Docker Hub", "/token", denied=(401, "UNAUTHORIZED"), absent=(404, "MANIFEST_UNKNOWN")),
    Flavour("quay.io", "/v2/auth", absent=(404, "MANIFEST_UNKNOWN"), denied=(401, "UNAUTHORIZED")),
    Flavour("GHCR", "/token", scope_of_ping="repository:user/image:pull"),
    Flavour("GitLab", "/jwt/auth", denied=(401, "UNAUTHORIZED")),
    Flavour("ECR", None, creates=False, media_type="application/vnd.docker.distribution.manifest.v2+json"),
    Flavour("GAR", "/v2/token", says_what_it_is=False),
    Flavour("ACR", "/oauth2/token", token_field="access_token", denied=(401, "UNAUTHORIZED")),
    Flavour("Harbor", "/service/token", absent=(404, "NOT_FOUND"), denied=(403, "FORBIDDEN")),
)


class AnyRegistry:
    """A registry of one flavour, with one image `r2d-a:1` and one account `robot`."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.password = "secret"
        self.may_push = True
        self.repositories = {"r2d-a"}
        self.uploads: list[str] = []
        self.begun = 0
        self.ping_status: int | None = None
        app = web.Application()
        app.router.add_get("/v2/", self._ping)
        app.router.add_route("*", "/v2/{name:.+}/manifests/{version}", self._manifest)
        app.router.add_post("/v2/{name:.+}/blobs/uploads/", self._begin)
        app.router.add_delete("/v2/{name:.+}/blobs/uploads/{upload}", self._drop)
        if flavour.token_path:
            app.router.add_get(flavour.token_path, self._token)
        self.server = TestServer(app)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def config(self) -> str:
        """Return a docker config.json with the account."""
        auth = base64.b64encode(b"robot:secret").decode()
        return json.dumps({"auths": {self.host: {"auth": auth}}})

    def _error(self, status: int, code: str, **headers: str) -> web.Response:
        own = API if self.flavour.says_what_it_is else {}
        return web.json_response({"errors": [{"code": code}]}, status=status, headers={**own, **headers})

    def _challenge(self, scope: str | None) -> web.Response:
        if self.flavour.token_path is None:
            challenge = f'Basic realm="https://{self.host}/",service="ecr.amazonaws.com"'
        else:
            realm = self.server.make_url(self.flavour.token_path)
            challenge = f'Bearer realm="{realm}",service="{self.host}"'
            challenge += f',scope="{scope}"' if scope else ""
        return self._error(401, "UNAUTHORIZED", **{"WWW-Authenticate": challenge})

    def _grant(self, request: web.Request) -> str | None:
        """Return the scope of the request's login, None if it has none."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(value).decode().partition(":")
            return "pull,push" if (user, password) == ("robot", self.password) else None
        return base64.b64decode(value).decode() if scheme == "Bearer" else None

    async def _ping(self, request: web.Request) -> web.Response:
        if self.ping_status is not None:
            return web.Response(status=self.ping_status, text="<html>")
        return self._challenge(self.flavour.scope_of_ping)

    async def _token(self, request: web.Request) -> web.Response:
        if self._grant(request) is None:
            return self._error(401, "UNAUTHORIZED")
        scope = request.query["scope"]
        assert request.query["service"] == self.host
        # It is given for what the account may do, which may be less than asked.
        granted = scope if self.may_push else scope.replace("pull,push", "pull")
        token = base64.b64encode(granted.encode()).decode()
        return web.json_response({self.flavour.token_field: token, "expires_in": 300})

    async def _manifest(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        assert self.flavour.media_type in request.headers["Accept"]
        assert "application/vnd.oci.image.index.v1+json" in request.headers["Accept"]
        if self._grant(request) is None:
            return self._challenge(f"repository:{name}:pull")
        if name not in self.repositories:
            return self._error(*self.flavour.absent)
        if request.match_info["version"] != "1":
            return self._error(404, "MANIFEST_UNKNOWN")
        headers = {**API, "Docker-Content-Digest": DIGEST, "Content-Type": self.flavour.media_type}
        return web.Response(body=MANIFEST, headers=headers)

    async def _begin(self, request: web.Request) -> web.Response:
        name, granted = request.match_info["name"], self._grant(request)
        if granted is None:
            return self._challenge(f"repository:{name}:pull,push")
        if "push" not in granted or not self.may_push:
            return self._error(*self.flavour.denied)
        if name not in self.repositories and not self.flavour.creates:
            return self._error(404, "NAME_UNKNOWN")
        self.begun += 1
        self.uploads.append(f"upload-{self.begun}")
        return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{self.uploads[-1]}"})

    async def _drop(self, request: web.Request) -> web.Response:
        assert self._grant(request) is not None
        self.uploads.remove(request.match_info["upload"])
        return web.Response(status=204)


@asynccontextmanager
async def any_registry(flavour: Flavour) -> AsyncIterator[AnyRegistry]:
    """Serve a registry of this flavour."""
    registry = AnyRegistry(flavour)
    async with registry.server:
        yield registry
