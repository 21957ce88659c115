"""The chart, installed by helm on a real cluster: consumers from the image of the Dockerfile, engines beside them."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy.dev.demo import registry_digest

from rabbit2docker.consumer.removal import BY
from rabbit2docker_schemas.events import Cancelled, Progress
from tests.cluster.harness import faults, kubectl
from tests.cluster.installation import CONSUMERS, ENGINES, RELEASE, TESTS, Installation, prepared
from tests.cluster.site import IMAGES
from tests.support.stories import Asked, asked, build
from tests.support.waiting import eventually, eventually_blocking

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def installation(consumer_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with prepared(tmp_path_factory.mktemp("installation")) as made:
        made.install()
        yield made


def test_helm_waits_until_all_consumers_and_engines_are_ready(installation: Installation) -> None:
    deployment = kubectl.get("deployment", RELEASE, namespace=installation.namespace)
    engines = kubectl.get("daemonset", f"{RELEASE}-docker-api", namespace=installation.namespace)

    assert deployment["status"]["readyReplicas"] == 2
    assert engines["status"]["numberReady"] == len(kubectl.get("nodes")["items"])


async def test_a_request_becomes_an_image_in_the_registry_and_its_log_is_seen(
    installation: Installation,
) -> None:
    repository = installation.site.quick("installed")

    story = await build(installation.amqp, repository.spec())

    assert story.completed.digest == registry_digest(story.completed.image)
    assert any(line.endswith("said-by-a-step") for line in story.log), story.log


def test_the_hubs_service_of_the_release_streams_a_build_and_keeps_it(installation: Installation) -> None:
    spec = installation.site.quick("by-http").spec()

    stream = installation.get_from_hub(f"/build/git/{spec}?build_only=true")
    kept = json.loads(installation.get_from_hub("/api/builds?q=by-http"))

    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1]["phase"] == "ready", stream
    assert any("said-by-a-step" in event.get("message", "") for event in events)
    assert registry_digest(events[-1]["imageName"])
    assert [build["state"] for build in kept["builds"]] == ["completed"]


def test_the_command_of_the_release_notes_builds_inside_a_consumer(installation: Installation) -> None:
    repository = installation.site.quick("by-hand")

    output = installation.site.kubectl(
        "exec", f"deployment/{RELEASE}", "--", "rabbit2docker", "build", "git", repository.spec()
    )

    assert "said-by-a-step" in output


def test_helm_test_builds_an_image_and_fails_with_the_build(installation: Installation) -> None:
    repository = installation.site.quick("tested").url

    code, output = installation.tested(repository=repository, ref="main")
    assert not code, output
    assert "said-by-a-step" in output
    eventually_blocking(lambda: not installation.names(TESTS))

    code, output = installation.tested(repository=repository, ref="absent")
    assert code
    assert "absent" in output


async def test_an_upgrade_in_mid_build_loses_no_line(installation: Installation) -> None:
    before = installation.names(CONSUMERS)
    repository = installation.site.slow(25, "upgraded")

    async with asked(installation.amqp, repository.spec()) as request:
        await request.until_line("second-2")
        changed = {"consumer": {"podAnnotations": {"changed": uuid.uuid4().hex}}}
        await asyncio.to_thread(installation.upgrade, changed)
        story = await request.story()

    assert story.completed.digest
    said = [line.rpartition(" ")[2] for line in story.log]
    assert [text for text in said if re.fullmatch(r"second-\d+", text)] == [f"second-{n}" for n in range(25)]
    await eventually(lambda: not before & installation.names(CONSUMERS))


async def test_the_permissions_of_the_chart_are_enough_with_and_without_secrets(
    installation: Installation,
) -> None:
    story = await build(installation.amqp, installation.site.quick("plain").spec())
    assert story.completed.digest
    assert not installation.refused_calls()

    git = {"git.example.org": {"existingSecret": "git", "tokenKey": "credentials"}}
    credentials = {"default": {"git": git}}
    await asyncio.to_thread(installation.upgrade, {"tenantCredentials": credentials})
    try:
        story = await build(installation.amqp, installation.site.quick("private").spec())
        assert story.completed.digest
        pod = kubectl.get("pod", story.accepted.build_name, namespace=installation.namespace)
        [volume] = [item for item in pod["spec"]["volumes"] if item["name"] == "git"]
        name = volume["secret"]["secretName"]
        secret = kubectl.get("secret", name, namespace=installation.namespace)
        assert secret["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
        assert not installation.refused_calls()
    finally:
        await asyncio.to_thread(installation.upgrade, {"tenantCredentials": {"default": None}})


async def test_a_build_prefers_caches_among_the_nodes_of_its_tenant_alone(
    installation: Installation,
) -> None:
    nodes = [node["metadata"]["name"] for node in kubectl.get("nodes")["items"]]
    own = {"default": {"node_selector": {"kubernetes.io/hostname": nodes[-1]}}}
    await asyncio.to_thread(installation.upgrade, {"config": {"tenants": own}})
    try:
        story = await build(installation.amqp, installation.site.quick("pool").spec())
        pod = kubectl.get("pod", story.accepted.build_name, namespace=installation.namespace)
        terms = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        preferred = [term["preference"]["matchFields"][0]["values"] for term in terms]
        assert preferred == [[nodes[-1]]], "of the ranked nodes each one can be chosen"
        assert not installation.refused_calls()
    finally:
        await asyncio.to_thread(installation.upgrade, {"config": {"tenants": None}})


@contextmanager
def volume_of_the_hub(installation: Installation) -> Iterator[None]:
    """A volume for the claim of the hub's service: a directory of the first node that its user may write to."""
    name = f"{installation.namespace}-builds"
    node = kubectl.get("nodes")["items"][0]["metadata"]["name"]
    directory = {"path": f"/var/lib/{name}", "type": "DirectoryOrCreate"}
    maker = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "volume-maker"},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "volumes": [{"name": "directory", "hostPath": directory}],
            "containers": [
                {
                    "name": "maker",
                    "image": f"{IMAGES}busybox:1",
                    "command": ["chmod", "777", "/directory"],
                    "volumeMounts": [{"name": "directory", "mountPath": "/directory"}],
                }
            ],
        },
    }
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": directory,
            "claimRef": {"namespace": installation.namespace, "name": f"{RELEASE}-hub"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }
    kubectl.apply(maker, namespace=installation.namespace)
    try:
        eventually_blocking(lambda: kubectl.phase("volume-maker", installation.namespace) == "Succeeded")
        kubectl.apply(volume)
        yield
    finally:
        installation.site.kubectl("delete", "pod", "volume-maker")
        kubectl.kubectl("delete", "persistentvolume", name, "--ignore-not-found", "--wait=false")


async def test_the_hubs_service_stores_builds_on_a_volume_that_outlives_its_pod(
    installation: Installation,
) -> None:
    hub = f"deployment/{RELEASE}-hub"
    file = ("exec", hub, "--", "stat", "--format=%d:%i", "/data/builds.sqlite")
    with volume_of_the_hub(installation):
        await asyncio.to_thread(installation.upgrade, {"hubService": {"persistence": {"enabled": True}}})
        try:
            await build(installation.amqp, installation.site.quick("stored").spec())
            await eventually(lambda: '"completed"' in installation.get_from_hub("/api/builds?q=stored"))
            before = installation.site.kubectl(*file)

            installation.site.kubectl("rollout", "restart", hub)
            installation.site.kubectl("rollout", "status", hub, "--timeout=120s")

            assert installation.site.kubectl(*file) == before
            assert '"completed"' in installation.get_from_hub("/api/builds?q=stored")
        finally:
            off = {"hubService": {"persistence": {"enabled": False}}}
            await asyncio.to_thread(installation.upgrade, off)
            installation.site.kubectl("delete", "persistentvolumeclaim", f"{RELEASE}-hub")


async def test_an_engine_starts_where_a_directory_lies_in_the_place_of_its_socket(
    installation: Installation,
) -> None:
    node = kubectl.get("nodes")["items"][0]["metadata"]["name"]
    socket = f"/var/run/rabbit2docker/{installation.namespace}-{RELEASE}/docker.sock"
    spoiler = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "spoiler"},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "volumes": [{"name": "directory", "hostPath": {"path": str(Path(socket).parent)}}],
            "containers": [
                {
                    "name": "spoiler",
                    "image": f"{IMAGES}busybox:1",
                    "command": ["sh", "-c", "rm -f /socket/docker.sock && mkdir /socket/docker.sock"],
                    "volumeMounts": [{"name": "directory", "mountPath": "/socket"}],
                }
            ],
        },
    }
    [engine] = [
        pod["metadata"]["name"] for pod in installation.site.pods(ENGINES) if pod["spec"]["nodeName"] == node
    ]
    kubectl.apply(spoiler, namespace=installation.namespace)
    await eventually(lambda: kubectl.phase("spoiler", installation.namespace) == "Succeeded")
    installation.site.kubectl("delete", "pod", "spoiler", engine)

    installation.site.kubectl("rollout", "status", f"daemonset/{RELEASE}-docker-api", "--timeout=120s")


async def test_a_build_leaves_a_frozen_engine_and_is_ended_by_an_uninstall_that_leaves_nothing_behind(
    installation: Installation, tmp_path: Path
) -> None:
    with prepared(tmp_path) as second:
        before = second.everything()
        second.install()
        engines = {pod["spec"]["volumes"][0]["hostPath"]["path"] for pod in second.site.pods(ENGINES)}
        assert not engines & {
            pod["spec"]["volumes"][0]["hostPath"]["path"] for pod in installation.site.pods(ENGINES)
        }
        async with asked(second.amqp, second.site.slow(600, "uninstalled").spec()) as request:
            await request.until_line("second-1")
            if faults.are_possible():
                await move_from_a_frozen_engine(second, request)
            await asyncio.to_thread(second.helm, "uninstall", RELEASE)
            story = await request.story()

        assert isinstance(story.end, Cancelled)
        assert story.end.by == BY
        await eventually(lambda: second.everything() == before, seconds=90)


async def move_from_a_frozen_engine(installation: Installation, request: Asked) -> None:
    """Freeze the engine of the running build until the build, which has one attempt, runs on another node."""
    [pod] = installation.site.pods()
    node = pod["spec"]["nodeName"]
    with faults.docker_api_frozen(node, installation.namespace):
        retry = await request.until(lambda event: getattr(event.data, "attempt", 1) == 2)
        assert isinstance(retry.data, Progress)
        assert retry.data.detail.failed_reason == "docker_unavailable"
        await request.until_line("second-1")
    [moved] = [found for found in installation.site.pods() if found["metadata"]["name"].endswith("-a2")]
    assert moved["spec"]["nodeName"] != node
