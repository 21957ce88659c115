"""`rabbit2docker images --from-store`: the images that the database of the hub's service knows."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from rabbit2docker.__main__ import main
from tests.contract.test_binder_stream import BUILD, IMAGE, accepted, completed, failed
from tests.support.hub_api import happened
from tests.support.hub_service import a_store


async def fill(directory: Path) -> None:
    async with a_store(directory) as store:
        await store.put(happened("one", *BUILD, completed(attempt=1)))
        await store.put(happened("two", *BUILD, failed()))
        await store.put(happened("three", accepted(requester="ada")))


def test_images_are_listed_from_the_database_without_rabbitmq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(fill(tmp_path))
    monkeypatch.setenv("RABBIT2DOCKER_HUB__STORE_URL", f"sqlite:///{tmp_path / 'hub.sqlite'}")
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__URL", "amqp://nowhere.invalid/")
    monkeypatch.setattr(sys, "argv", ["rabbit2docker", "images", "--from-store", "--format", "json"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    [image] = map(json.loads, capsys.readouterr().out.splitlines())
    assert image["image"] == IMAGE
    assert (image["tenant"], image["source"]) == ("default", "https://x")
