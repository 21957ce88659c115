"""Answers that follow a stream have everything a viewer has seen there, although the store gets events later."""

import asyncio
from pathlib import Path

import pytest

from rabbit2docker.hub.store.models import Build
from rabbit2docker_schemas.ids import build_id_of
from tests.contract.test_binder_stream import PATH, accepted, completed, lines
from tests.support.hub_api import Api
from tests.support.hub_service import MemoryBuilds, a_store, serving
from tests.support.waiting import PATIENCE, eventually


async def test_answers_after_ready_have_the_end_and_all_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = MemoryBuilds()
    builds.plan = [accepted(), lines(0, "one", "two"), completed(attempt=1, lines=2)]
    async with a_store(tmp_path) as store, serving(builds, store, PATIENCE) as viewer:
        sent = await viewer.watch(PATH)
        assert sent[-1].phase == "ready"
        request_id = str(builds.asked[0].request_id)
        path = f"api/builds/{build_id_of('default', request_id)}"
        lagging: list[str] = []
        original = store.build

        async def build(id_: str) -> Build | None:
            found = await original(id_)
            lagging.extend([found.state] if found and not found.state.is_end else [])
            return found

        monkeypatch.setattr(store, "build", build)
        api = Api(viewer.address)
        answers = asyncio.gather(api.get(path), api.get(f"{path}/log"), api.delete(path))
        await eventually(lambda: len(lagging) >= 6)  # each of them has looked twice
        assert not answers.done()
        await store.put([event async for event in builds.of_request(request_id)])
        build_, log, refused = await answers
    assert build_.json["state"] == "completed"
    assert log.text.split() == ["one", "two"]
    assert refused.status == 409
    assert builds.cancelled == []
