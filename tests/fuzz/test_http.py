"""Requests to the hub's service: each is answered or refused, none with an internal error, and the next is served."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.examples import EVENTS
from tests.fuzz.inputs import bodies, byte_variants, fuzzed
from tests.support.hub_service import MemoryBuilds, serving
from tests.support.waiting import PATIENCE

PATHS = [
    b"/",
    b"/new",
    b"/builds/a-build",
    b"/build/gh/owner/repository/HEAD?build_only=true",
    b"/build/git/https%3A%2F%2Fhost%2Fa/main?build_only=1&build_token=x",
    b"/api/builds?limit=5&state=failed&before=x&text=y",
    b"/api/builds/a-build",
    b"/api/builds/a-build/events?after=1",
    b"/api/builds/a-build/log?download=1&attempt=1&first=0",
    b"/api/builds/a-build/rebuild?after=failed",
    b"/api/openapi.json",
    b"/health",
    b"/versions",
    b"/metrics",
    b"/_config",
    b"/static/build.js",
]
HEADERS = [
    b"Content-Type: application/json",
    b"Last-Event-ID: hub-00000000-00000000000000000000-00000000000000000000:1.0.0",
    b"Authorization: token abc",
    b"Accept: text/event-stream, text/html;q=0.9",
    b"X-Forwarded-For: 10.0.0.1, ::1",
    b"Range: bytes=0-5",
    b'If-None-Match: "x", *',
    b"Cookie: _xsrf=1; a=b",
]
SAMPLES = [
    {"provider": "gh", "spec": "owner/repository/HEAD", "options": {"force": True, "labels": {"a": "b"}}}
]


@dataclass
class Served:
    """The service, in the loop of `runner`."""

    runner: asyncio.Runner
    port: int

    def send(self, request: bytes, *, seconds: float = PATIENCE) -> int | None:
        """Send bytes; return the status of the answer, None if there is none: the request may lack its end."""
        return self.runner.run(self._send(request, seconds))

    async def _send(self, request: bytes, seconds: float) -> int | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(seconds):
                line = await reader.readline()
            return int(line.split()[1]) if line else None
        except (ConnectionError, TimeoutError):
            return None
        finally:
            writer.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    builds = MemoryBuilds()
    builds.plan = [EVENTS[Kind.ACCEPTED].data, EVENTS[Kind.COMPLETED].data]
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        viewer = runner.run(stack.enter_async_context(serving(builds)))
        yield Served(runner, urlsplit(viewer.address).port or 0)
        runner.run(stack.aclose())


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"GET", b"POST", b"DELETE", b"HEAD", b"PUT", b"OPTIONS", b"BREW"]))
    headers = draw(st.lists(byte_variants(HEADERS), max_size=4))
    body = draw(bodies(SAMPLES)) if method in (b"POST", b"PUT") else b""
    lines = [b"%s %s HTTP/1.1" % (method, draw(byte_variants(PATHS))), b"Host: localhost", *headers]
    if draw(st.integers(0, 9)):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


@fuzzed()
@given(requests())
def test_any_request_is_answered_and_the_next_one_is_served(served: Served, request: bytes) -> None:
    status = served.send(request, seconds=0.5)
    assert status is None or 200 <= status < 500
    assert served.send(b"GET /versions HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
