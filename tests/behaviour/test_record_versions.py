"""Records that services of different versions share, in files and in pods."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.executors.base import AttemptName, AttemptState, AttemptStatus, Executor
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.local import state_directory
from rabbit2docker.errors import ExecutorUnavailable
from tests.behaviour.test_executors import ONE, in_state, synced, with_request
from tests.support.kube.objects import PODS, stamp
from tests.support.kube.replicas import Replicas
from tests.support.records import a_spec
from tests.support.stages import LocalStage

Edit = Callable[[dict[str, Any]], None]
FUTURE = {"of_the_future": {"x": 1}}


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStage]:
    stage = LocalStage(tmp_path)
    monkeypatch.setenv("SCRIPTED_BUILDER_DIR", str(stage.pipes))
    yield stage
    stage.close()


def edit_file(stage: LocalStage, part: str, edit: Edit) -> dict[str, Any]:
    path = stage.folder(ONE) / part
    content: dict[str, Any] = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return content


def edit_pod(kube: Replicas, part: str, edit: Edit) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def change(data: dict[str, Any]) -> None:
        annotations = data["metadata"]["annotations"]
        found.update(json.loads(annotations[part]))
        edit(found)
        annotations[part] = json.dumps(found)

    kube.cluster.store.edit(PODS, kube.cluster.namespace, ONE, change)
    return found


def nothing(content: dict[str, Any]) -> None:
    pass


def with_future_fields(content: dict[str, Any]) -> None:
    content.update(FUTURE)
    content["version"] = "1.7"
    if "request" in content:
        content["request"].update(FUTURE)


def of_major(version: str) -> Edit:
    # What a later major version changes may look like anything.
    return lambda content: content.update(version=version, requests=[])


async def check_left_alone(executor: Executor) -> None:
    async with synced(executor):
        assert await executor.get(ONE) is None
    problem = executor.problems()["records"]
    assert problem is not None
    assert "2.0" in problem
    assert ONE in problem
    with pytest.raises(ExecutorUnavailable, match=r"newer version \(2\.0\)"):
        await executor.create(a_spec(ONE), AttemptStatus())
    await executor.sweep()


async def test_fields_of_a_later_minor_version_outlive_a_rewrite_in_files(local: LocalStage) -> None:
    local.prepare(ONE)
    async with local.service() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    for part in (state_directory.SPEC, state_directory.STATUS):
        edit_file(local, part, with_future_fields)
    async with local.service() as executor:
        found = await executor.update_status(ONE, with_request("two"))
        assert found.spec.request.unknown_fields == ("of_the_future",)
        assert executor.problems()["records"] is None
        again = json.loads(found.spec.model_copy(update={"attempt": 2}).model_dump_json())
        assert again["request"].items() >= FUTURE.items()
    status = edit_file(local, state_directory.STATUS, nothing)
    assert status.items() >= (FUTURE | {"version": "1.7"}).items()
    assert "two" in status["requests"]


async def test_fields_of_a_later_minor_version_outlive_a_rewrite_in_pods(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        for part in (manifest.SPEC, manifest.STATUS):
            edit_pod(kube, part, with_future_fields)
    async with kube.executor() as executor:
        await executor.update_status(ONE, with_request("two"))
        assert executor.problems()["records"] is None
    status = edit_pod(kube, manifest.STATUS, nothing)
    assert status.items() >= (FUTURE | {"version": "1.7"}).items()
    assert "two" in status["requests"]


@pytest.mark.parametrize("part", [state_directory.SPEC, state_directory.STATUS])
async def test_files_of_a_later_major_version_are_left_alone_until_a_service_reads_them(
    local: LocalStage, part: str
) -> None:
    local.prepare(ONE)
    async with local.service() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    before = (local.folder(ONE) / part).read_text()
    edit_file(local, part, of_major("2.0"))
    newer = (local.folder(ONE) / part).read_text()
    async with local.service() as executor:
        await check_left_alone(executor)
    assert (local.folder(ONE) / part).read_text() == newer
    # A service that understands the record is played by this one, which does once the version is its own.
    (local.folder(ONE) / part).write_text(before)
    async with local.service() as executor:
        assert executor.problems()["records"] is None
        local.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)


@pytest.mark.parametrize("part", [manifest.SPEC, manifest.STATUS])
async def test_pods_of_a_later_major_version_are_left_alone_until_a_service_reads_them(
    kube: Replicas, part: str
) -> None:
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    before = edit_pod(kube, part, nothing)
    old = stamp(kube.cluster.store.clock() - timedelta(hours=2))
    kube.cluster.store.edit(
        PODS, kube.cluster.namespace, ONE, lambda data: data["metadata"].update(creationTimestamp=old)
    )
    newer = edit_pod(kube, part, of_major("2.0"))
    async with kube.executor() as executor:
        await check_left_alone(executor)
        assert edit_pod(kube, part, nothing) == newer
        edit_pod(kube, part, lambda content: content.update(before))
        await in_state(executor, AttemptName(ONE), AttemptState.RUNNING)
        assert executor.problems()["records"] is None
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
