"""Streams of a service that stops: an end without a verdict, or that of a short build."""

import asyncio
import re
from unittest.mock import patch

import pytest

from rabbit2docker.hub.store.store import Store
from tests.contract.test_binder_stream import BUILD, PATH, accepted, completed, lines
from tests.support.hub_service import MemoryBuilds, Viewer, parse, serving, texts
from tests.support.waiting import eventually

RETRY = re.compile(rb"\n\nretry: (\d+)\n\n\Z")


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [accepted(), lines(0, "line 0 of the build", "line 1 of the build")]
    return builds


async def is_watched(builds: MemoryBuilds, count: int = 1) -> None:
    await eventually(lambda: builds.reading == count)


async def read_to_end(viewer: Viewer, path: str, seen: bytearray) -> None:
    """Add the bytes of a stream to `seen`; fails if the connection breaks in the middle of the response."""
    async with viewer.live_bytes(path) as chunks:
        async for chunk in chunks:
            seen += chunk


class TestRestart:
    async def test_streams_end_without_a_verdict_and_resume_at_the_next_instance(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        raw = bytearray()
        async with serving(builds, store) as viewer:
            assert viewer.server is not None
            viewing = asyncio.create_task(read_to_end(viewer, PATH, raw))
            await eventually(lambda: len(texts(parse(bytes(raw)))) == 2)
            await viewer.server.close()
            await viewing
        found = RETRY.search(bytes(raw))
        assert found, raw
        assert 2000 <= int(found[1]) <= 15_000
        seen = parse(bytes(raw))
        assert [each.phase for each in seen] == ["waiting", "building", "building"]
        await builds.add(lines(2, "line 2 of the build"), completed())
        async with serving(builds, store) as viewer:
            rest = await viewer.watch(PATH, Last_Event_ID=str(seen[-1].id))
        assert [each.message for each in rest] == ["line 2 of the build\n", "Done! Image built\n"]
        assert len(builds.asked) == 1

    async def test_streams_of_the_json_api_end_in_the_same_way(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        raw, watched = bytearray(), bytearray()
        async with serving(builds, store) as viewer:
            assert viewer.server is not None
            first = asyncio.create_task(read_to_end(viewer, PATH, watched))
            await is_watched(builds)
            path = f"api/builds/{builds.asked[0].request_id}/events"
            second = asyncio.create_task(read_to_end(viewer, path, raw))
            await eventually(lambda: b"event: log" in raw)
            await viewer.server.close()
            await asyncio.gather(first, second)
        assert RETRY.search(bytes(raw))
        assert [each.event for each in parse(bytes(raw))] == ["accepted", "log"]


class TestDrain:
    async def test_a_build_that_ends_in_time_ends_its_stream_and_with_it_the_drain(
        self, builds: MemoryBuilds
    ) -> None:
        raw = bytearray()
        async with serving(builds) as viewer:
            assert viewer.server is not None
            viewing = asyncio.create_task(read_to_end(viewer, PATH, raw))
            await is_watched(builds)
            closing = asyncio.create_task(viewer.server.close(drain_seconds=600))
            with pytest.raises(OSError, match="Connect"):
                await asyncio.open_connection("127.0.0.1", viewer.server.port)
            await builds.add(completed())
            await closing
            await viewing
        assert parse(bytes(raw))[-1].phase == "ready"
        assert b"retry" not in raw

    async def test_a_second_signal_ends_the_drain(self, builds: MemoryBuilds) -> None:
        raw, hurry = bytearray(), asyncio.Event()
        builds.plan = [*BUILD]
        async with serving(builds) as viewer:
            assert viewer.server is not None
            viewing = asyncio.create_task(read_to_end(viewer, PATH, raw))
            await is_watched(builds)
            closing = asyncio.create_task(viewer.server.close(600, hurry))
            hurry.set()
            await closing
            await viewing
        assert RETRY.search(bytes(raw))

    async def test_a_service_without_viewers_stops_at_once(self, builds: MemoryBuilds) -> None:
        async with serving(builds) as viewer:
            assert viewer.server is not None
            await viewer.server.close(drain_seconds=600)


async def test_the_service_stops_after_the_handlers_of_requests_whose_clients_have_left(
    builds: MemoryBuilds, store: Store
) -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def build(id_: str) -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    with patch.object(store, "build", build):
        async with serving(builds, store) as viewer:
            request = asyncio.create_task(viewer.raw("api/builds/some-request"))
            await begun.wait()
            request.cancel()
            await asyncio.wait({request})
            asyncio.get_running_loop().call_later(0.1, may_end.set)
        assert ended.is_set()
