"""Many viewers, some of which do not read: all others get everything, and none fills the service's memory.

The builds are played: what is meant is the service, RabbitMQ and HTTP. Nothing here measures time.
"""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from tests.support.crowd import Crowd, Onlooker, need_open_files
from tests.support.fake_consumer import FakeConsumer, fake_consumer
from tests.support.hub_service import HubService, build_path
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

KILOBYTE, MEGABYTE = 1024, 1024 * 1024
VIEWER_KILOBYTES = 36
"""Memory that one more viewer may take; `python -m tests.benchmarks hub` measures it."""
BESIDE_MEGABYTES = 24
"""What the service may take beside, for the first of everything and for what it remembers of builds."""


@pytest.fixture
async def played(settings: Settings) -> AsyncIterator[FakeConsumer]:
    async with fake_consumer(settings) as played:
        yield played


StartHub = Callable[..., Awaitable[HubService]]


@pytest.fixture
def start_hub(tmp_path: Path, amqp: AmqpSettings, played: FakeConsumer) -> Iterator[StartHub]:
    """Start services for many; nothing of them is left afterwards."""
    started: list[HubService] = []

    async def start(**variables: str) -> HubService:
        limits = {
            "RABBIT2DOCKER_HUB__REQUESTS_PER_ADDRESS": "0",
            "RABBIT2DOCKER_HUB__VIEWERS_PER_USER": "0",
            # All requests for one spec in a test share one build.
            "RABBIT2DOCKER_HUB__SHARE_SECONDS": "600",
        }
        started.append(hub := HubService(tmp_path, amqp, **limits, **variables))
        hub.fork = True
        await asyncio.to_thread(hub.start_and_wait)
        return hub

    yield start
    for hub in started:
        hub.end()


@pytest.fixture
async def hub(start_hub: StartHub) -> HubService:
    need_open_files(4096)
    return await start_hub()


@pytest.fixture
async def asleep() -> AsyncIterator[list[socket.socket]]:
    """Sockets that are closed in the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


def memory(hub: HubService) -> int:
    assert hub.process is not None
    return int(psutil.Process(hub.process.pid).memory_info().rss)


def lines(first: int, count: int, size: int = 0) -> list[str]:
    return [f"line {number} ".ljust(size, ".") for number in range(first, first + count)]


async def warm(hub: HubService, played: FakeConsumer) -> int:
    """Let one small build be looked at, and return how many requests that took."""
    crowd = Crowd(hub.address)
    await crowd.join(1, build_path("warm"))
    [build_id] = await played.accepted(1)
    await played.write(build_id, lines(0, 10), first=0, together=5)
    await played.complete(build_id, lines=10)
    await crowd.until(lambda viewer: viewer.is_gone.done())
    crowd.leave()
    return 1


def check(viewers: list[Onlooker], count: int) -> None:
    """Check that all viewers have received every line once, in order, and the end."""
    assert [viewer.disorder for viewer in viewers if viewer.disorder] == []
    assert {viewer.next_line for viewer in viewers} == {count}
    assert all(viewer.is_ready for viewer in viewers)


async def test_a_thousand_viewers_of_one_build_get_every_line_and_its_end_and_take_little_memory(
    hub: HubService, played: FakeConsumer
) -> None:
    await warm(hub, played)
    before, crowd = memory(hub), Crowd(hub.address)
    await crowd.join(1000, build_path("popular"))
    [_, build_id] = await played.accepted(2)
    await crowd.until(lambda viewer: viewer.events > 0)
    waiting = memory(hub)
    await played.write(build_id, lines(0, 200), first=0, together=10)
    await crowd.until(lambda viewer: viewer.next_line == 200)
    following = memory(hub)
    await played.complete(build_id, lines=200)
    await crowd.until(lambda viewer: viewer.is_gone.done())
    check(crowd.viewers, 200)
    assert len(played.builds) == 2
    allowed = before + 1000 * VIEWER_KILOBYTES * KILOBYTE + BESIDE_MEGABYTES * MEGABYTE
    assert waiting < allowed, f"{(waiting - before) / 1000 / KILOBYTE:.0f} KB a viewer who waits"
    assert following < allowed, f"{(following - before) / 1000 / KILOBYTE:.0f} KB a viewer of a running build"


async def test_two_hundred_builds_with_five_viewers_each_reach_all_viewers(
    hub: HubService, played: FakeConsumer
) -> None:
    await warm(hub, played)
    before, crowd = memory(hub), Crowd(hub.address)
    for number in range(200):
        await crowd.join(5, build_path(f"build-{number}"))
    [_, *builds] = await played.accepted(201)
    assert len(builds) == 200
    for first in (0, 20):
        await asyncio.gather(
            *(played.write(build_id, lines(first, 20), first=first, together=10) for build_id in builds)
        )
    await crowd.until(lambda viewer: viewer.next_line == 40)
    following = memory(hub)
    await asyncio.gather(*(played.complete(build_id, lines=40) for build_id in builds))
    await crowd.until(lambda viewer: viewer.is_gone.done())
    check(crowd.viewers, 40)
    # Beside what viewers take, each build is put together once, and its lines are remembered.
    allowed = before + 1000 * VIEWER_KILOBYTES * KILOBYTE + 2 * BESIDE_MEGABYTES * MEGABYTE
    assert following < allowed, f"{(following - before) / MEGABYTE:.0f} MB"


def one_who_does_not_read(hub: HubService, path: str) -> socket.socket:
    """Ask for a build, with as little room for what comes as the kernel allows, and look away."""
    url = urlsplit(hub.address)
    asleep = socket.socket()
    asleep.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    asleep.connect((url.hostname, url.port))
    asleep.sendall(f"GET /{path} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
    return asleep


async def test_the_service_serves_more_viewers_than_the_default_limit_of_open_files(
    start_hub: StartHub,
) -> None:
    need_open_files(4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        hub = await start_hub(RABBIT2DOCKER_HUB__VIEWERS="3000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert hub.process is not None
    allowed, _ = resource.prlimit(hub.process.pid, resource.RLIMIT_NOFILE)
    assert allowed > 3000


SLOW, SIZE, MANY = 40, 8000, 1500
"""Stalled viewers of a log of 12 MB: kept for each of them, it would take half a gigabyte."""


async def write_much(played: FakeConsumer, build_id: str) -> None:
    await played.write(build_id, lines(0, MANY, SIZE), first=0, together=4)
    await played.complete(build_id, lines=MANY)


async def test_stalled_viewers_neither_delay_others_nor_fill_memory(
    start_hub: StartHub, played: FakeConsumer, asleep: list[socket.socket]
) -> None:
    # Long enough for them to stay until the others have received everything.
    hub = await start_hub(RABBIT2DOCKER_HUB__STALLED_SECONDS="600")
    await warm(hub, played)
    before, crowd, path = memory(hub), Crowd(hub.address), build_path("much")
    asleep += [one_who_does_not_read(hub, path) for _ in range(SLOW)]
    await crowd.join(20, path)
    [_, build_id] = await played.accepted(2)
    await crowd.until(lambda viewer: viewer.events > 0)
    await write_much(played, build_id)
    await crowd.until(lambda viewer: viewer.is_gone.done())
    check(crowd.viewers, MANY)
    assert len(connections(hub)) >= SLOW
    assert memory(hub) - before < 100 * MEGABYTE, f"{(memory(hub) - before) / MEGABYTE:.0f} MB"


def connections(hub: HubService) -> list[object]:
    """Return the connections of viewers that the service holds."""
    assert hub.process is not None
    port = urlsplit(hub.address).port
    return [
        each
        for each in psutil.Process(hub.process.pid).net_connections("tcp")
        if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
    ]


async def test_a_stalled_viewer_is_disconnected_and_gets_the_rest_on_resuming(
    start_hub: StartHub, played: FakeConsumer, asleep: list[socket.socket]
) -> None:
    hub = await start_hub(RABBIT2DOCKER_HUB__STALLED_SECONDS="1")
    await warm(hub, played)
    path = build_path("much")
    asleep += [one_who_does_not_read(hub, path) for _ in range(SLOW)]
    [_, build_id] = await played.accepted(2)
    await write_much(played, build_id)
    await eventually(lambda: not connections(hub))
    first = Onlooker(lambda: None)
    first.data_received(await asyncio.to_thread(all_that_came, asleep[0]))
    assert 0 < first.next_line < MANY
    assert not first.is_ready
    crowd = Crowd(hub.address)
    [again] = await crowd.join(1, path, last_id=first.last_id)
    again.next_line = first.next_line
    await crowd.until(lambda viewer: viewer.is_gone.done())
    check([again], MANY)


def all_that_came(asleep: socket.socket) -> bytes:
    """Wake up, and read what is there until the connection ends, which may be the hard way."""
    received = b""
    try:
        while piece := asleep.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received
