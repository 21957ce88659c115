"""The HTTP client connects to the addresses that it judged, and gives secrets to the operator's host alone."""

import asyncio
import socket
from collections.abc import AsyncIterator
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.host_api import rate_limited
from rabbit2docker.consumer.providers.http import MAX_ANSWER_BYTES, HttpClient, Response, open_session
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

STRICT = ProviderSettings()


class Server:
    """Redirects `/to?url=…`, and answers everything else with the headers that it got."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        app = web.Application()
        app.router.add_get("/to", self._redirect)
        app.router.add_get("/loop", self._loop)
        app.router.add_get("/large", self._large)
        app.router.add_get("/{rest:.*}", self._answer)
        self.server = TestServer(app)

    async def _redirect(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["url"]})

    async def _loop(self, _request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/loop"})

    async def _large(self, _request: web.Request) -> web.Response:
        return web.Response(body=b"x" * (MAX_ANSWER_BYTES + 1))

    async def _answer(self, request: web.Request) -> web.Response:
        self.seen.append(dict(request.headers))
        return web.json_response({"path": request.path})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.server.start_server()
    yield server
    await server.server.close()


async def got(url: str, settings: ProviderSettings = STRICT, **options: Any) -> Response:
    async with open_session(settings) as session:
        return await HttpClient(settings, session).get(url, **options)


def lookups(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Have every name resolve to these addresses; return the names that are looked up."""
    names: list[str] = []

    async def getaddrinfo(_self: object, host: str, port: int, **_options: object) -> list[Any]:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return names


async def test_the_judged_address_is_the_one_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_self: AddressPolicy, url: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    names = lookups(monkeypatch, "192.0.2.1")
    answer = await got(f"http://data.example.org:{server.server.port}/x")
    assert answer.json_object() == {"path": "/x"}
    assert names == [], "DNS could give another address than the one that was judged"


async def test_a_host_with_one_private_address_of_two_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups(monkeypatch, "8.8.8.8", "127.0.0.1")
    with pytest.raises(RequestRejected, match=r"is at 127\.0\.0\.1") as caught:
        await got(f"http://data.example.org:{server.server.port}/x")
    assert caught.value.reason is RejectReason.REFUSED_URL
    assert server.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/",
        "http://[fd00::1]/",
        "//169.254.169.254/",
        "file:///etc/passwd",
        "ftp://example.org/",
        "http://0x7f.1/",
    ],
)
async def test_a_redirect_to_an_address_inside_the_network_is_refused(server: Server, url: str) -> None:
    start = str(server.server.make_url("/to").with_query(url=url))
    with pytest.raises(RequestRejected, match="redirects elsewhere") as caught:
        await got(start, is_trusted=True)
    assert caught.value.reason is RejectReason.REFUSED_URL


async def test_secrets_stay_at_the_host_that_the_operator_chose(server: Server) -> None:
    other = Server()
    await other.server.start_server()
    try:
        there = str(other.server.make_url("/there"))
        start = str(server.server.make_url("/to").with_query(url=there))
        headers = {"Authorization": "Bearer s3cret", "PRIVATE-TOKEN": "s3cret", "Accept": "x/y"}
        open_settings = ProviderSettings(allow_private_addresses=True)
        answer = await got(start, open_settings, headers=headers, is_trusted=True)
    finally:
        await other.server.close()
    assert answer.url == there
    assert "s3cret" not in str(other.seen)
    assert other.seen[0]["Accept"] == "x/y"


async def test_endless_redirects_end(server: Server) -> None:
    with pytest.raises(RequestRejected, match="redirects too many times"):
        await got(str(server.server.make_url("/loop")), is_trusted=True)


async def test_a_response_that_is_too_large_is_not_read(server: Server) -> None:
    with pytest.raises(ProviderUnavailable, match="too large"):
        await got(str(server.server.make_url("/large")), is_trusted=True)


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "30"}, 30),
        (429, {"Retry-After": "DATE"}, 300),
        (429, {"Retry-After": "soon"}, 60),
        (429, {"RateLimit-Remaining": "0", "RateLimit-Reset": "45"}, 45),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "EPOCH"}, 300),
        (403, {"X-RateLimit-Remaining": "5"}, None),
        (503, {"Retry-After": "30"}, None),
        (429, {"Retry-After": "9" * 40}, 60),
        (429, {"Retry-After": "\u00b2"}, 60),
    ],
)
def test_the_time_that_a_host_names_is_read(status: int, headers: dict[str, str], wait: float | None) -> None:
    values = {"DATE": formatdate(time() + 300, usegmt=True), "EPOCH": str(int(time() + 300))}
    sent = {name: values.get(text, text) for name, text in headers.items()}
    found = rate_limited(Response(status, sent, "", "https://example.org/"))
    assert found == (None if wait is None else pytest.approx(wait, abs=5))
