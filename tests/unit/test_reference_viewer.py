"""The viewer of a comparison reads what BinderHub sends over HTTP, and says what went wrong with a reference."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.benchmarks.compare_sides import Side, Unusable, check
from tests.benchmarks.comparison import REFERENCE
from tests.benchmarks.reference import Target, all_over, count_all, look
from tests.support.ports import free_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADERS = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n"


def event(**data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def line(number: int, at: float) -> bytes:
    return event(phase="building", message=f"line {number} of the build {at:.6f}\n")


@asynccontextmanager
async def binderhub(serve: Serve) -> AsyncIterator[tuple[Target, list[bytes]]]:
    """Serve every request alike, in BinderHub's format; give the address and the heads of requests."""
    heads: list[bytes] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await serve(reader, writer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Target(f"http://127.0.0.1:{port}/services/binder/", token="secret"), heads


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what BinderHub sends for a build, cut anywhere, with its comments and lines that have no phase."""
    now = time.time()
    whole = b"".join(
        (
            HEADERS,
            event(phase="waiting", message="Waiting for build to start...\n"),
            event(message="Picked Git content provider.\n"),
            *(line(number, now - 0.5) for number in range(30)),
            b":keepalive\n\n",
            event(phase="ready", message="Done! Image built\n", imageName="r/i:1"),
        )
    )
    for start in range(0, len(whole), 97):
        writer.write(whole[start : start + 97])
        await asyncio.sleep(0)


async def test_a_build_is_followed_from_its_first_event_to_its_end() -> None:
    async with binderhub(good) as (target, heads):
        viewer = await look(target, "play-30-0-x")
        await all_over([viewer], seconds=20)
    assert (viewer.problem, viewer.next_line, viewer.disorder) == ("", 30, [])
    assert len(viewer.ages) == 30
    assert all(0.5 <= age < 30 for age in viewer.ages)
    assert viewer.asked_at <= viewer.first_at
    assert viewer.last_line_at < viewer.ended_at
    head = heads[0].decode()
    assert head.startswith("GET /services/binder/build/git/https%3A%2F%2F127.0.0.1%2Fplay-30-0-x/")
    assert "?build_only=true " in head
    assert "\r\nAccept: text/event-stream\r\n" in head
    assert "\r\nAuthorization: Bearer secret\r\n" in head


async def test_a_viewer_leaves_a_failed_build_whose_stream_stays_open() -> None:
    left = asyncio.Event()

    async def failing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS + event(phase="failed", message="No such repository\n"))
        await reader.read()
        left.set()

    async with binderhub(failing) as (target, _):
        viewer = await look(target, "x")
        await all_over([viewer], seconds=20)
        assert "No such repository" in viewer.problem
        await asyncio.wait_for(left.wait(), 20)


async def test_a_stream_that_breaks_off_is_no_end() -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADERS + event(phase="waiting", message="Waiting\n") + line(0, time.time())[:20])

    async with binderhub(breaking) as (target, _):
        viewer = await look(target, "x")
        await all_over([viewer], seconds=20)
    assert viewer.problem == "the stream ended before the build did"
    assert (viewer.events, viewer.next_line, viewer.ended_at) == (1, 0, 0.0)


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_an_answer_with_another_status_is_a_problem(status: int) -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.0 {status} No\r\n\r\n".encode())

    async with binderhub(refusing) as (target, _):
        viewer = await look(target, "x")
        await all_over([viewer], seconds=20)
        assert viewer.problem == f"answered with status {status}"
        with pytest.raises(Unusable, match=f"did not build: answered with status {status}"):
            await check(Side(REFERENCE, target))


async def test_an_answer_that_is_not_http_is_a_problem() -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"AMQP\0\0\x09\x01")

    async with binderhub(other) as (target, _):
        viewer = await look(target, "x")
        await all_over([viewer], seconds=20)
    assert viewer.problem == "did not answer in HTTP"


async def test_a_reference_that_does_not_answer_is_said_before_anything_is_measured() -> None:
    target = Target(f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(Unusable, match="does not answer"):
        await check(Side(REFERENCE, target))


async def test_a_reference_that_builds_can_be_measured() -> None:
    async with binderhub(good) as (target, _):
        await check(Side(REFERENCE, target))


async def test_viewers_that_only_count_miss_no_line_that_comes_in_two_parts() -> None:
    async with binderhub(good) as (target, _):
        counters = await count_all(target, "x", 5)
        await all_over(counters, seconds=20)
    assert [counter.lines for counter in counters] == [30] * 5
