"""Image lookups in a registry. An unclear answer is an error, never taken for an absent image.

Speaks the pull side of the OCI distribution specification with Basic and Bearer authentication
(https://distribution.github.io/distribution/spec/auth/token/).
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from cachetools import TLRUCache
from yarl import URL

from rabbit2docker import metrics
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.images.docker_config import Credentials, DockerConfig
from rabbit2docker.errors import Dependency, DependencyKind, RegistryDenied, RegistryUnavailable
from rabbit2docker.registry_urls import DOCKER_HUB, api_url, split_registry
from rabbit2docker.settings import DockerSettings, ImageSettings

MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024  # the limit of common registries
MAX_TOKENS: Final = 4096

_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_LATEST = "latest"
# These answer 401 or 403 for a repository that does not exist yet, even to an account that may create it with a push.
_DENIES_WHAT_IS_ABSENT = {DOCKER_HUB, "quay.io"}
_ABSENT_CODES = {"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND"}
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,}")
_CHALLENGE = re.compile(r"\s*(?P<scheme>[A-Za-z]+)(?:\s+(?P<parameters>.*))?", re.DOTALL)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_TOKEN_SECONDS = 60.0  # the specification's default where a token has no lifetime
_TOKEN_MARGIN = 10.0


@dataclass(frozen=True, slots=True)
class Reference:
    """The parts of an image name."""

    registry: str
    repository: str
    version: str
    """A tag or a digest."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a registry or its token service."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    seconds: float


def parse_image(image: str) -> Reference:
    """Parse `registry/repository:tag` or `…@digest`, with docker's defaults for missing parts."""
    name, _, digest = image.partition("@")
    registry, path = split_registry(name)
    path, _, tag = path.partition(":")
    if registry == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return Reference(registry, path, digest or tag or _LATEST)


class Registry:
    """A client for image lookups in any registry."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        images: ImageSettings,
        docker: DockerSettings,
        breakers: Breakers | None = None,
    ) -> None:
        """Use the caller's `session`, which stays open, and the credentials of the docker configuration."""
        self._breakers = breakers or Breakers()
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=images.registry_timeout)
        self._override = images.registry_url
        self._unencrypted = images.insecure_registries
        self._config = DockerConfig(docker)
        self._tokens: TLRUCache[tuple[str, str], _Token] = TLRUCache(MAX_TOKENS, _expires_at)

    async def find(self, image: str) -> ImageInfo | None:
        """Return the image; None when the registry confirms that it is absent.

        Raises RegistryDenied if the credentials are refused or missing, and RegistryUnavailable in every other case:
        no answer, an error, an unclear answer.
        """
        reference = parse_image(image)
        with self._breakers.guard(self._dependency(reference)):
            return await self._find(reference)

    async def _find(self, reference: Reference) -> ImageInfo | None:
        answer = await self._request("HEAD", reference)
        if answer.status == 200:
            return await self._found(reference, answer)
        if answer.status == 404:
            await self._confirm_absent(reference, answer)
            return None
        if answer.status in (401, 403):
            await self._confirm_denial_means_absent(reference, answer)
            return None
        raise self._unclear(reference, answer)

    async def _found(self, reference: Reference, head: Answer) -> ImageInfo:
        digest = head.headers.get("Docker-Content-Digest", "")
        is_known = _DIGEST.fullmatch(digest) is not None
        # Docker Hub counts each GET of a manifest as a pull; the digest came with the free HEAD.
        if is_known and reference.registry == DOCKER_HUB:
            return ImageInfo(digest, None)
        answer = await self._request("GET", reference)
        if answer.status != 200:
            if is_known:
                return ImageInfo(digest, None)
            raise self._unclear(reference, answer)
        return ImageInfo(
            digest if is_known else f"sha256:{hashlib.sha256(answer.body).hexdigest()}", _size(answer.body)
        )

    async def _confirm_absent(self, reference: Reference, answer: Answer) -> None:
        """Raise RegistryUnavailable if the 404 comes from a server that is not a registry."""
        if "Docker-Distribution-Api-Version" in answer.headers:
            return
        answer = await self._request("GET", reference)
        if answer.status == 404 and (
            "Docker-Distribution-Api-Version" in answer.headers or error_codes(answer.body) & _ABSENT_CODES
        ):
            return
        raise self._away(
            reference,
            f"{self._base(reference)} does not answer like an image registry (status {answer.status}). "
            "The operator should check images.prefix and images.registry_url.",
        )

    async def _confirm_denial_means_absent(self, reference: Reference, answer: Answer) -> None:
        """Raise RegistryDenied or RegistryUnavailable unless this registry denies access to absent repositories."""
        credentials = await self._credentials(reference)
        is_accepted = self._token_key(reference) in self._tokens
        if credentials is not None and is_accepted and reference.registry in _DENIES_WHAT_IS_ABSENT:
            return
        if credentials is None:
            message = (
                f"{reference.registry} requires credentials for {reference.repository}, and none are configured. "
                "The operator must add them to the docker configuration (docker.config)."
            )
        elif answer.status == 401 and not is_accepted:
            message = (
                f"{reference.registry} refuses the configured credentials for {reference.repository} (status 401). "
                "The operator must check the docker configuration (docker.config)."
            )
        else:
            raise RegistryUnavailable(
                f"{reference.registry} does not let the configured account read {reference.repository} "
                f"(status {answer.status}). The operator must grant it the right to pull, or set images.check_registry to false."
            )
        if answer.status == 401:
            raise RegistryDenied(message)
        raise RegistryUnavailable(message)

    async def _request(self, method: str, reference: Reference) -> Answer:
        """Request the manifest; authenticate on a challenge."""
        url = f"{self._base(reference)}/v2/{reference.repository}/manifests/{reference.version}"
        key = self._token_key(reference)
        if (token := self._tokens.get(key)) is not None:
            answer = await self._send(reference, method, url, _ACCEPT | _bearer(token.text))
            if answer.status != 401:
                return answer
            self._tokens.pop(key, None)
        answer = await self._send(reference, method, url, _ACCEPT)
        if answer.status != 401:
            return answer
        header = await self._authorization(reference, answer)
        return await self._send(reference, method, url, _ACCEPT | header) if header else answer

    async def _authorization(
        self, reference: Reference, refusal: Answer, *, scope: str | None = None
    ) -> dict[str, str]:
        """Return the headers that answer the challenge; none where that is impossible.

        `scope`: the rights to ask for, in place of those that the challenge names. Such a token is not kept.
        """
        credentials = await self._credentials(reference)
        challenge = _CHALLENGE.match(refusal.headers.get("WWW-Authenticate", ""))
        scheme = challenge["scheme"].lower() if challenge else ""
        if scheme == "bearer" and challenge:
            if credentials and credentials.registry_token:
                return _bearer(credentials.registry_token)
            parameters = _parameters(challenge["parameters"] or "")
            wanted = parameters if scope is None else parameters | {"scope": scope}
            token = await self._fetch_token(reference, wanted, credentials)
            if scope is None:
                self._tokens[self._token_key(reference)] = token
            return _bearer(token.text)
        if scheme == "basic" and credentials and credentials.username:
            return _basic(credentials)
        return {}

    async def _fetch_token(
        self, reference: Reference, challenge: dict[str, str], credentials: Credentials | None
    ) -> _Token:
        realm = challenge.get("realm", "")
        base = self._base(reference)
        if urlsplit(realm).scheme not in ("http", "https"):
            raise self._away(reference, f"{base} names no address to request a token from.")
        if credentials and base.startswith("https:") and not realm.startswith("https:"):
            raise self._away(
                reference, f"{base} demands credentials unencrypted at {realm}, which is refused."
            )
        wanted = {"service": challenge.get("service", "")} if "service" in challenge else {}
        wanted["scope"] = challenge.get("scope") or f"repository:{reference.repository}:pull"
        if credentials and credentials.identity_token:
            form = wanted | {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": "rabbit2docker",
            }
            answer = await self._send(reference, "POST", realm, {}, form=form)
        else:
            header = _basic(credentials) if credentials and credentials.username else {}
            answer = await self._send(reference, "GET", realm, header, query=wanted)
        return self._read_token(reference, realm, answer, is_known=credentials is not None)

    def _read_token(self, reference: Reference, realm: str, answer: Answer, *, is_known: bool) -> _Token:
        if answer.status in (400, 401, 403):
            what = (
                "refuses the configured credentials"
                if is_known
                else "issues no token without credentials, and none are configured"
            )
            error = RegistryDenied if answer.status == 401 else RegistryUnavailable
            raise error(
                f"{urlsplit(realm).netloc} {what} for {reference.registry}/{reference.repository} "
                f"(status {answer.status}). The operator must check the docker configuration (docker.config)."
            )
        if answer.status != 200:
            raise self._unclear(reference, answer, url=realm)
        content = _object(answer.body)
        text = content.get("token") or content.get("access_token")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise self._away(reference, f"{realm} answered without a token.")
        seconds = content.get("expires_in")
        return _Token(text, float(seconds) if isinstance(seconds, int | float) else _TOKEN_SECONDS)

    async def _send(
        self,
        reference: Reference,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        query: dict[str, str] | None = None,
        form: dict[str, str] | None = None,
    ) -> Answer:
        host = urlsplit(url).netloc
        try:
            address = URL(url, encoded=True).update_query(query or {})
            async with self._session.request(
                method, address, headers=headers, data=form, timeout=self._timeout
            ) as response:
                body = await _read(response)
                _note_quota(reference, response.headers)
                return Answer(response.status, response.headers.copy(), body)
        except TimeoutError as error:
            raise self._away(
                reference,
                f"{host} did not answer within {self._timeout.total:g} seconds: waiting for the registry.",
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(
                reference, f"{host} cannot be reached: {error}. Waiting for the registry."
            ) from error

    async def _credentials(self, reference: Reference) -> Credentials | None:
        found = await self._config.credentials(reference.registry)
        if found is None and self._override:
            found = await self._config.credentials(urlsplit(self._override).netloc.rpartition("@")[2])
        return found

    def _dependency(self, reference: Reference) -> Dependency:
        return Dependency(DependencyKind.REGISTRY, urlsplit(self._base(reference)).netloc)

    def _away(
        self, reference: Reference, message: str, retry_after: float | None = None
    ) -> RegistryUnavailable:
        return RegistryUnavailable(message, retry_after=retry_after, outage_of=self._dependency(reference))

    def _base(self, reference: Reference) -> str:
        return api_url(reference.registry, self._override, self._unencrypted)

    def _token_key(self, reference: Reference) -> tuple[str, str]:
        return self._base(reference), reference.repository

    def _unclear(self, reference: Reference, answer: Answer, url: str | None = None) -> RegistryUnavailable:
        host = urlsplit(url or self._base(reference)).netloc
        if answer.status == 429:
            return self._away(reference, f"{host} limits the rate of requests.", _retry_after(answer.headers))
        codes = ", ".join(sorted(error_codes(answer.body)))
        return self._away(
            reference,
            f"{host} did not answer clearly whether {reference.repository} exists: status {answer.status}"
            f"{f' ({codes})' if codes else ''}.",
            _retry_after(answer.headers),
        )


def _note_quota(reference: Reference, headers: Mapping[str, str]) -> None:
    """Export what is left of a limit: Docker Hub sends `76;w=21600`, the rest within a number of seconds."""
    left = headers.get("RateLimit-Remaining", "").partition(";")[0]
    if re.fullmatch(r"[0-9]{1,15}", left):
        metrics.REGISTRY_REQUESTS_LEFT.labels(registry=reference.registry).set(int(left))


def _expires_at(_key: tuple[str, str], token: _Token, now: float) -> float:
    return now + max(token.seconds - _TOKEN_MARGIN, token.seconds / 2)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _basic(credentials: Credentials) -> dict[str, str]:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _parameters(text: str) -> dict[str, str]:
    return {
        name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
        for name, quoted, plain in _PARAMETER.findall(text)
    }


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_MANIFEST_BYTES:
            raise ValueError(f"the answer is larger than {MAX_MANIFEST_BYTES} bytes")
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def error_codes(body: bytes) -> set[str]:
    """Return the error codes in the body of an answer."""
    errors = _object(body).get("errors")
    return (
        {str(item.get("code")) for item in errors if isinstance(item, dict)}
        if isinstance(errors, list)
        else set()
    )


def _size(manifest: bytes) -> int | None:
    layers = _object(manifest).get("layers")
    if not isinstance(layers, list):
        return None
    sizes = [layer.get("size") if isinstance(layer, dict) else None for layer in layers]
    known = [size for size in sizes if isinstance(size, int)]
    return sum(known) if len(known) == len(sizes) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())
