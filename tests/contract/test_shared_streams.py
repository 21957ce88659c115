"""Viewers of one build share its stream over real HTTP: whenever they come, each gets every event once and in order."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest

from rabbit2docker.hub.web import broadcast
from tests.contract.test_binder_stream import PATH, accepted, completed, lines
from tests.support.hub_service import MemoryBuilds, Viewer, parse, serving, texts
from tests.support.waiting import eventually


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [accepted(), lines(0, "line 0 of the build")]
    return builds


@pytest.fixture
async def viewer(builds: MemoryBuilds) -> AsyncIterator[Viewer]:
    async with serving(builds, share_seconds=600) as viewer:
        yield viewer


class Reader:
    """One viewer, and what has come to it."""

    def __init__(self, viewer: Viewer, path: str, **headers: str) -> None:
        self.sent = bytearray()
        self._viewer = viewer
        self._headers = headers
        self.reading = asyncio.create_task(self._read(path))

    async def _read(self, path: str) -> None:
        async with self._viewer.live_bytes(path) as chunks:
            async for chunk in chunks:
                self.sent += chunk

    @property
    def lines(self) -> list[str]:
        return texts(parse(bytes(self.sent)))

    async def has_bytes(self, expected: bytes) -> None:
        await eventually(lambda: expected in self.sent)

    async def has(self, count: int) -> None:
        await eventually(lambda: len(self.lines) >= count)


def said(count: int) -> list[str]:
    return [f"line {number} of the build" for number in range(count)]


async def test_viewers_of_one_build_are_served_from_one_reading_of_it(
    builds: MemoryBuilds, viewer: Viewer
) -> None:
    readers = [Reader(viewer, PATH) for _ in range(20)]
    for reader in readers:
        await reader.has(1)
    assert builds.reading == 1
    await builds.add(lines(1, "line 1 of the build"), completed())
    await asyncio.gather(*(reader.reading for reader in readers))
    assert len({bytes(reader.sent) for reader in readers}) == 1
    assert readers[0].lines == said(2)
    await eventually(lambda: builds.reading == 0)


async def test_a_viewer_that_comes_late_reads_the_past_alone_and_then_shares(
    builds: MemoryBuilds, viewer: Viewer
) -> None:
    with patch.multiple(broadcast, MIN_BYTES=1, MAX_BYTES=1):
        first = Reader(viewer, PATH)
        for number in range(1, 20):
            await builds.add(lines(number, f"line {number} of the build"))
            await first.has(number + 1)
        late = Reader(viewer, PATH)
        await late.has(20)
        await builds.add(lines(20, "line 20 of the build"))
        await late.has(21)
        await eventually(lambda: builds.reading == 1)
        assert builds.readings == 2
        await builds.add(lines(21, "line 21 of the build"), completed())
        await asyncio.gather(first.reading, late.reading)
    assert first.lines == late.lines == said(22)


async def test_a_viewer_of_the_json_api_shares_as_well(builds: MemoryBuilds, viewer: Viewer) -> None:
    first = Reader(viewer, PATH)
    await first.has(1)
    path = f"api/builds/{builds.asked[0].request_id}/events"
    readers = [Reader(viewer, path) for _ in range(5)]
    for reader in readers:
        await reader.has_bytes(b"line 0")
    assert builds.reading == 2
    await builds.add(completed())
    await asyncio.gather(first.reading, *(reader.reading for reader in readers))
    assert len({bytes(reader.sent) for reader in readers}) == 1


async def test_a_viewer_that_resumes_shares_without_a_line_twice(
    builds: MemoryBuilds, viewer: Viewer
) -> None:
    first = Reader(viewer, PATH)
    await builds.add(lines(1, "line 1 of the build", "line 2 of the build"))
    await first.has(3)
    in_the_middle = parse(bytes(first.sent))[-2].id
    assert in_the_middle is not None
    resuming = asyncio.create_task(viewer.watch(PATH, Last_Event_ID=in_the_middle))
    await eventually(lambda: builds.reading == 2)
    await builds.add(lines(3, "line 3 of the build"), completed())
    await first.reading
    assert texts(await resuming) == ["line 2 of the build", "line 3 of the build"]


async def test_old_and_new_http_carry_the_same_events(builds: MemoryBuilds, viewer: Viewer) -> None:
    new, url = Reader(viewer, PATH), urlsplit(viewer.address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"GET /{PATH} HTTP/1.0\r\n\r\n".encode())
    await new.has(1)
    await eventually(lambda: builds.reading == 1)
    for number in range(1, 200):
        await builds.add(lines(number, f"line {number} of the build"))
    await builds.add(completed())
    await new.reading
    old = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    assert old == bytes(new.sent)
    assert new.lines == said(200)


async def test_a_viewer_that_leaves_in_the_middle_ends_nothing_for_the_others(
    builds: MemoryBuilds, viewer: Viewer
) -> None:
    readers, url = [Reader(viewer, PATH) for _ in range(3)], urlsplit(viewer.address)
    hasty = socket.create_connection((url.hostname, url.port))
    hasty.sendall(f"GET /{PATH} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    for reader in readers:
        await reader.has(1)
    hasty.close()
    readers[0].reading.cancel()
    with suppress(asyncio.CancelledError):
        await readers[0].reading
    await builds.add(lines(1, "line 1 of the build"), completed())
    await asyncio.gather(*(reader.reading for reader in readers[1:]))
    assert [reader.lines for reader in readers[1:]] == [said(2), said(2)]
