"""Config objects of builds in the kubernetes executor, and the garbage collection of what crashes leave behind."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.executors.base import AttemptName, AttemptState, AttemptStatus
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor, gc, manifest
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings, TenantCredentials, TenantSettings
from rabbit2docker_schemas.ids import build_id_of
from tests.behaviour.test_executors import ONE, in_state
from tests.behaviour.test_kubernetes_records import ended, reported, running
from tests.support.kube import Stops
from tests.support.kube.objects import CONFIGMAPS, SECRETS, Resource, stamp
from tests.support.kube.replicas import Replicas
from tests.support.records import a_spec
from tests.support.waiting import eventually

CREDENTIALS = "username=ada\npassword=s3cret-token\n"
TENANTS = {"physics": TenantCredentials(push_secret="physics-push")}
SECRET = manifest.credentials_name(a_spec(ONE))
FILE = "login_0"
HOURS = timedelta(hours=2)


@pytest.fixture(autouse=True)
def credentials(kube: Replicas, tmp_path: Path) -> None:
    """Give a tenant credentials for git."""
    (tmp_path / "token").write_text("s3cret-token")
    tenant = {"git": {"git.example.org": {"user": "ada", "token_file": str(tmp_path / "token")}}}
    tenants = {"physics": TenantSettings.model_validate(tenant)}
    kube.settings = kube.settings.model_copy(update={"tenants": tenants})


def names(kube: Replicas, resource: Resource) -> set[str]:
    found = kube.cluster.store._objects[resource].values()
    return {stored.name for stored in found}


def data_of(kube: Replicas, resource: Resource, name: str) -> dict[str, Any]:
    return kube.cluster.store.get(resource, kube.cluster.namespace, name).data()


def age(kube: Replicas, resource: Resource, name: str, by: timedelta) -> None:
    at = stamp(kube.cluster.store.clock() - by)
    kube.cluster.store.edit(
        resource, kube.cluster.namespace, name, lambda data: data["metadata"].update(creationTimestamp=at)
    )


def put(kube: Replicas, resource: Resource, data: dict[str, Any], *, by: timedelta = HOURS) -> None:
    kube.cluster.store.create(resource, kube.cluster.namespace, data)
    age(kube, resource, data["metadata"]["name"], by)


def a_secret(name: str, *, settings: Settings | None = None) -> dict[str, Any]:
    return manifest.credentials_secret(settings or Settings(), a_spec(name), {FILE: CREDENTIALS})


def a_map(name: str, *, settings: Settings | None = None) -> dict[str, Any]:
    return manifest.builder_config_map(settings or Settings(), name, "print('hello')")


def content(kube: Replicas, name: str = SECRET) -> str:
    return base64.b64decode(data_of(kube, SECRETS, name)["data"][FILE]).decode()


async def made(executor: KubernetesExecutor, tenant: str = "physics") -> None:
    await executor.create(a_spec(ONE, tenant=tenant), AttemptStatus())
    await in_state(executor, ONE, AttemptState.RUNNING)


# -- credentials


async def test_git_credentials_of_a_tenant_are_in_a_secret_that_is_deleted_with_the_pod(
    kube: Replicas,
) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        await made(executor)
        assert content(kube) == CREDENTIALS
        owners = data_of(kube, SECRETS, SECRET)["metadata"]["ownerReferences"]
        pod = kube.cluster.pod(ONE)
        assert [owner["uid"] for owner in owners] == [pod["metadata"]["uid"]]
        assert {"name": "git", "secret": {"secretName": SECRET, "defaultMode": 0o400}} in pod["spec"][
            "volumes"
        ]
        assert "s3cret" not in json.dumps(pod)
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.delete(ONE)
        assert names(kube, SECRETS) == set()


async def test_a_tenant_pushes_with_its_own_secret_and_others_with_the_common_one(kube: Replicas) -> None:
    async with kube.executor(tenants=TENANTS, push_secret="common-push") as executor:
        await made(executor)
        await executor.create(a_spec("build-two", tenant="biology"), AttemptStatus())

    def pushes_with(name: str) -> list[str]:
        volumes = kube.cluster.pod(name)["spec"]["volumes"]
        return [volume["secret"]["secretName"] for volume in volumes if volume["name"] == "docker-config"]

    assert pushes_with(ONE) == ["physics-push"]
    assert pushes_with("build-two") == ["common-push"]
    assert names(kube, SECRETS) == {SECRET}


async def test_the_credentials_of_a_deleted_pod_are_kept_until_its_end_is_reported(kube: Replicas) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        await made(executor)
        kube.cluster.delete(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        assert names(kube, SECRETS) == {SECRET}
        await executor.update_status(ONE, reported)
        assert names(kube, SECRETS) == set()


async def test_credentials_of_an_earlier_build_with_the_same_name_are_not_used(kube: Replicas) -> None:
    earlier = a_spec(ONE, build_id=build_id_of("physics", "earlier"))
    old = manifest.credentials_secret(Settings(), earlier, {FILE: "an old one"})
    owner = {"apiVersion": "v1", "kind": "Pod", "name": ONE, "uid": "gone"}
    old["metadata"]["ownerReferences"] = [owner]
    put(kube, SECRETS, old)
    async with kube.executor(tenants=TENANTS) as executor:
        await made(executor)
    assert content(kube) == CREDENTIALS
    owners = data_of(kube, SECRETS, SECRET)["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [kube.cluster.pod(ONE)["metadata"]["uid"]]


async def test_credentials_whose_creation_lost_its_response_are_used_by_the_repetition(
    kube: Replicas,
) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        kube.server.faults.drop_after(verb="create", resource="secrets")
        with pytest.raises(ExecutorUnavailable):
            await executor.create(a_spec(ONE, tenant="physics"), AttemptStatus())
        await made(executor)
        assert content(kube) == CREDENTIALS
        assert "ownerReferences" in data_of(kube, SECRETS, SECRET)["metadata"]


async def test_a_secret_without_an_owner_is_swept_after_its_pod_is_gone(
    kube: Replicas,
) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        kube.server.faults.answer(500, verb="patch", resource="secrets")
        await made(executor)
        age(kube, SECRETS, SECRET, HOURS)
        await executor.sweep()
        assert names(kube, SECRETS) == {SECRET}
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.delete(ONE)
        await executor.sweep()
        assert names(kube, SECRETS) == set()


# -- garbage collection


async def test_old_builder_programs_that_no_pod_uses_are_swept(kube: Replicas) -> None:
    other = Settings(instance="another")
    async with kube.executor() as executor:
        await running(executor)
        used = names(kube, CONFIGMAPS)
        put(kube, CONFIGMAPS, a_map("old"))
        put(kube, CONFIGMAPS, a_map("young"), by=timedelta(minutes=5))
        put(kube, CONFIGMAPS, a_map("used-by-an-older-version"))
        put(kube, CONFIGMAPS, a_map("of-another-installation", settings=other))
        put(kube, CONFIGMAPS, {"metadata": {"name": "foreign"}})
        kube.cluster.edit(
            ONE,
            lambda data: data["metadata"]["annotations"].update(
                {manifest.BUILDER_MAP: "used-by-an-older-version"}
            ),
        )
        for name in used:
            age(kube, CONFIGMAPS, name, HOURS)
        await executor.update_status(ONE, lambda status: status.model_copy(update={"confirmed_line": 3}))
        await executor.sweep()
        assert names(kube, CONFIGMAPS) == {
            *used,
            "young",
            "used-by-an-older-version",
            "of-another-installation",
            "foreign",
        }


async def test_secrets_of_failed_creations_are_swept(kube: Replicas) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        await made(executor)
        age(kube, SECRETS, SECRET, HOURS)
        put(kube, SECRETS, a_secret("build-never"))
        put(kube, SECRETS, a_secret("build-coming"), by=timedelta(minutes=1))
        put(kube, SECRETS, a_secret("build-elsewhere", settings=Settings(instance="another")))
        put(kube, SECRETS, {"metadata": {"name": "physics-push"}})
        await executor.sweep()
        kept = {manifest.credentials_name(a_spec(name)) for name in ("build-coming", "build-elsewhere")}
        assert names(kube, SECRETS) == {SECRET, "physics-push", *kept}


async def test_nothing_is_swept_while_the_list_of_builds_is_out_of_date(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor(tenants=TENANTS) as executor:
        kube.server.faults.answer(500, verb="patch", resource="secrets")
        await made(executor)
        kube.cluster.edit(
            ONE, lambda data: data["metadata"]["annotations"].update({manifest.BUILDER_MAP: "used"})
        )
    put(kube, CONFIGMAPS, a_map("used"))
    age(kube, SECRETS, SECRET, HOURS)
    before = names(kube, SECRETS), names(kube, CONFIGMAPS)
    fault = kube.server.faults.answer(503, verb="list", resource="pods", times=None)
    async with kube.executor(tenants=TENANTS) as executor:
        with pytest.raises(ExecutorUnavailable):
            await executor.sweep()
        assert (names(kube, SECRETS), names(kube, CONFIGMAPS)) == before
        fault.remove()
        await in_state(executor, ONE, AttemptState.RUNNING)
        await eventually(lambda: not any(executor.problems().values()))
        await executor.sweep()
        assert (names(kube, SECRETS), names(kube, CONFIGMAPS)) == before


async def test_old_pods_without_a_record_are_swept(kube: Replicas) -> None:
    async with kube.executor() as executor:
        for name in ("build-old", "build-young", "build-sound"):
            await running(executor, AttemptName(name))
    for name in ("build-old", "build-young"):
        kube.cluster.edit(name, lambda data: data["metadata"]["annotations"].update({manifest.SPEC: "{"}))
    for name in ("build-old", "build-sound"):
        kube.cluster.age(name, HOURS.total_seconds())
    async with kube.executor() as executor:
        await in_state(executor, "build-sound", AttemptState.RUNNING)
        await executor.sweep()
        assert set(kube.cluster.pods()) == {"build-young", "build-sound"}
        assert "deletionTimestamp" not in kube.cluster.pod("build-sound")["metadata"]


@pytest.mark.parametrize("is_reported", [False, True])
async def test_a_pod_on_a_lost_node_is_swept_only_after_its_end_was_reported(
    kube: Replicas, is_reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "STUCK_AFTER", timedelta(seconds=-60))
    kube.cluster.stops = Stops.HANGS
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.delete(ONE)
        await eventually(lambda: executor._records.informer.objects and is_leaving(executor))
        if is_reported:
            await executor.update_status(ONE, reported)
        await executor.sweep()
        assert kube.cluster.exists(ONE) is not is_reported


def is_leaving(executor: KubernetesExecutor) -> bool:
    return any(
        pod.metadata.deletion_timestamp is not None for pod in executor._records.informer.objects.values()
    )


async def test_a_sweep_without_permission_fails_and_changes_nothing(kube: Replicas) -> None:
    fault = kube.server.faults.answer(403, verb="list", resource="configmaps")
    async with kube.executor() as executor:
        await ended(kube, executor)
        with pytest.raises(ExecutorUnavailable, match="injected"):
            await executor.sweep()
        assert fault.hits == 1
        attempt = await executor.get(ONE)
        assert attempt is not None
