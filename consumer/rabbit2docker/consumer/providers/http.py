"""The HTTP client that providers and the registry check share, and its judgement of addresses from requests."""

import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.git_urls import refused, shown
from rabbit2docker.errors import Dependency, DependencyKind, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_REDIRECTS: Final = 8
MAX_CONNECTIONS_PER_HOST: Final = 16

_REDIRECTS = (301, 302, 303, 307, 308)
_PERMANENT = (301, 308)
_SECRETS = ("authorization", "private-token")
_JUDGED: ContextVar[tuple[str, ...]] = ContextVar("judged addresses", default=())
"""The addresses that the current request may connect to; empty where any will do."""


def user_agent() -> str:
    """Return the User-Agent header of our requests."""
    try:
        return f"rabbit2docker/{version('rabbit2docker')}"
    except PackageNotFoundError:
        return "rabbit2docker"


class JudgedResolver(ThreadedResolver):
    """Gives a request the addresses that were judged for it, not those that DNS returns a moment later."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the judged addresses, or ask DNS for a host that needs no judgement."""
        if not (judged := _JUDGED.get()):
            return await super().resolve(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in judged
        ]


@contextmanager
def judged(addresses: Iterable[str]) -> Iterator[None]:
    """Have the requests of this task connect to these addresses alone; to any if there are none."""
    token = _JUDGED.set(tuple(addresses))
    try:
        yield
    finally:
        _JUDGED.reset(token)


def open_session(settings: ProviderSettings) -> aiohttp.ClientSession:
    """Return a session, which the caller closes; call it inside the event loop.

    Proxies are taken from the environment. Cookies are dropped, so that hosts cannot link requests.
    """
    return aiohttp.ClientSession(
        trust_env=True,
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        headers={"User-Agent": user_agent()},
        cookie_jar=aiohttp.DummyCookieJar(),
        # A cache would give one request the addresses of another, which may have been judged otherwise.
        connector=aiohttp.TCPConnector(
            resolver=JudgedResolver(), use_dns_cache=False, limit_per_host=MAX_CONNECTIONS_PER_HOST
        ),
    )


@dataclass(frozen=True, slots=True)
class Response:
    """A response, whose redirects were followed."""

    status: int
    headers: Mapping[str, str]
    body: str
    url: str
    """The URL that gave it."""
    is_moved: bool = False
    """True if a permanent redirect led to it."""

    def json(self) -> Any:
        """Return the JSON content. Raises ProviderUnavailable."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ProviderUnavailable(
                f"{host_of(self.url)} sent a response that is not JSON: waiting for its repair."
            ) from error

    def json_object(self) -> dict[str, Any]:
        """Return the JSON object that the content is. Raises ProviderUnavailable."""
        if isinstance(content := self.json(), dict):
            return content
        raise ProviderUnavailable(
            f"{host_of(self.url)} sent a response of an unknown form: waiting for its repair."
        )

    @property
    def message(self) -> str:
        """The message of an error response; empty if it has none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        text = (content.get("message") or content.get("error")) if isinstance(content, dict) else ""
        return text[:200] if isinstance(text, str) else ""


def host_of(url: str) -> str:
    """Return the host of a URL, with its port if that is named."""
    return urlsplit(url).netloc.rpartition("@")[2]


class HttpClient:
    """Requests URLs; those that come from requests, or from redirects, must have allowed addresses."""

    def __init__(self, settings: ProviderSettings, session: aiohttp.ClientSession | None) -> None:
        """Take limits from the settings; without `session`, nothing can be got."""
        self._policy = AddressPolicy(settings)
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout)
        self._session = session

    async def get(
        self,
        url: str,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        is_trusted: bool = False,
        has_body: bool = True,
    ) -> Response:
        """Return the response to a request, whatever its status, after redirects.

        `title`: the host in messages. `is_trusted`: the operator chose the host, so its address is not judged; only
        it gets the headers with secrets. `has_body`: read the content. Raises RequestRejected (refused address, no such
        host) or ProviderUnavailable.
        """
        first, sent, is_moved = _origin(url), dict(headers or {}), False
        for _ in range(MAX_REDIRECTS + 1):
            is_at_home = _origin(url) == first
            if not is_at_home:
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRETS}
            addresses = () if is_trusted and is_at_home else await self._judged(url, first)
            response = await self._send("GET", url, title or host_of(url), sent, addresses, has_body=has_body)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return Response(response.status, response.headers, response.body, url, is_moved)
            is_moved = is_moved or response.status in _PERMANENT
            url = urljoin(url, location)
        raise RequestRejected(
            RejectReason.REPOSITORY_NOT_FOUND,
            f"{title or first} redirects too many times. Use the final address.",
        )

    async def post(self, url: str, body: bytes, *, title: str, headers: Mapping[str, str]) -> Response:
        """Return the response of a host that the operator chose, whatever its status. Redirects are not followed.

        Raises ProviderUnavailable.
        """
        return await self._send("POST", url, title, headers, (), body=body)

    async def _judged(self, url: str, first: str) -> tuple[str, ...]:
        """Return the addresses to connect to. Raises RequestRejected or ProviderUnavailable."""
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                raise refused(f"{shown(url)} is not an address on the web.")
            return tuple(await self._policy.resolve(url))
        except RequestRejected as error:
            if _origin(url) == first:
                raise
            raise RequestRejected(error.reason, f"{first} redirects elsewhere: {error.message}") from error

    async def _send(
        self,
        method: str,
        url: str,
        title: str,
        headers: Mapping[str, str],
        addresses: tuple[str, ...],
        *,
        body: bytes | None = None,
        has_body: bool = True,
    ) -> Response:
        if self._session is None:
            raise ProviderUnavailable(f"{title} cannot be reached: this command has no HTTP session.")
        dependency = Dependency(DependencyKind.HOST, title)
        token = _JUDGED.set(addresses)
        try:
            async with self._session.request(
                method,
                URL(url, encoded=url.isascii()),
                headers=headers,
                data=body,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                content = (await _read(response, title) if has_body else b"").decode(errors="replace")
                return Response(response.status, response.headers.copy(), content, url)
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"{title} did not answer within {self._timeout.total:g} seconds: waiting for it.",
                outage_of=dependency,
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderUnavailable(
                f"{title} cannot be reached: {error}. Waiting for it.", outage_of=dependency
            ) from error
        finally:
            _JUDGED.reset(token)


async def _read(response: aiohttp.ClientResponse, title: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ProviderUnavailable(f"{title} sent a response that is too large.")
    return bytes(body)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
