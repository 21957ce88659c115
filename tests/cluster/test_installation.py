"""The chart, installed by helm on a real cluster: consumers from the image of the Dockerfile, engines beside them."""

import asyncio
import base64
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from deploy.dev.demo import registry_digest
from deploy.dev.machine import RUN
from deploy.helm.schema import CHART

from rabbit2docker.consumer.removal import BY
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Cancelled, Progress
from tests.cluster import consumer_image
from tests.cluster.harness import choice, faults, kubectl
from tests.cluster.site import IMAGES, REGISTRY, Site
from tests.support.rabbitmq import Management
from tests.support.stories import Asked, asked, build
from tests.support.waiting import eventually, eventually_blocking

pytestmark = pytest.mark.timeout(900)

RELEASE = "rabbit2docker"
CONSUMERS = "app.kubernetes.io/component=consumer"
ENGINES = "app.kubernetes.io/component=docker-api"
TESTS = "app.kubernetes.io/component=test"
KINDS = (
    "pods,services,deployments,daemonsets,jobs,configmaps,secrets,serviceaccounts,leases,roles,rolebindings"
)
Values = dict[str, Any]


class Installation:
    """One release in a namespace of its own, and what its operator provides."""

    def __init__(self, namespace: str, amqp: AmqpSettings, site: Site) -> None:
        self.namespace = namespace
        self.amqp = amqp
        self.site = site

    @property
    def values(self) -> Values:
        return {
            "image": {"repository": f"{IMAGES}rabbit2docker", "tag": "1"},
            "amqp": {"existingSecret": "rabbitmq", "managementUrlKey": "management"},
            # Consumers are ready only if the Job has declared what they need.
            "topologyJob": {"enabled": True, "existingSecret": "rabbitmq"},
            "pushSecret": "push",
            "config": {
                "images": {"prefix": f"{REGISTRY}/{self.namespace}-", "registry_url": f"http://{REGISTRY}"},
                "builder": {"image": f"{IMAGES}repo2docker:1"},
                "providers": {"allow_private_addresses": True},
                "limits": {"attempts": 1},
                "amqp": {"declare": False},
                "hub": {"auth": "none"},
            },
            # No volumes are provided here, so what it stores goes with its pod.
            "hubService": {"enabled": True, "persistence": {"enabled": False}},
            # Registry and git server have private addresses, which the cluster may close.
            "networkPolicy": {"builds": {"egressTo": "all"}},
            "dockerApi": {
                "image": {"repository": f"{IMAGES}docker-api", "tag": "1"},
                "insecureRegistries": [REGISTRY],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                "terminationGracePeriodSeconds": 10,
            },
        }

    def provide_secrets(self) -> None:
        """Make the Secrets that the README asks an operator for."""
        login = base64.b64encode(b"user:password").decode()
        docker_config = {"auths": {REGISTRY: {"auth": login}}}
        management = self.amqp.management_url
        assert management
        secrets: dict[str, tuple[str, dict[str, str]]] = {
            "rabbitmq": (
                "Opaque",
                {"url": self.amqp.url.get_secret_value(), "management": management.get_secret_value()},
            ),
            "push": ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": json.dumps(docker_config)}),
            "git": ("Opaque", {"credentials": "https://user:token@git.example.org"}),
        }
        for name, (kind, data) in secrets.items():
            kubectl.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name},
                    "type": kind,
                    "stringData": data,
                },
                namespace=self.namespace,
            )

    def helm(self, *command: str, values: Values | None = None) -> None:
        result = subprocess.run(
            ["helm", f"--namespace={self.namespace}", *command, "--wait", "--timeout=180s"],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not result.returncode, f"{result.stdout}\n{result.stderr}\n{self.site.kubectl('get', 'pods')}"

    def install(self) -> None:
        self.helm("install", RELEASE, str(CHART), "--values=-", values=self.values)

    def upgrade(self, values: Values) -> None:
        self.helm("upgrade", RELEASE, str(CHART), "--reuse-values", "--values=-", values=values)

    def tested(self, **values: str) -> tuple[int, str]:
        """Run the test of the release, which builds a repository; return exit code and output."""
        self.upgrade({"buildTest": values})
        command = ["helm", f"--namespace={self.namespace}", "test", RELEASE, "--timeout=400s"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        return result.returncode, result.stdout + result.stderr

    def names(self, selector: str) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.site.pods(selector)}

    def everything(self) -> set[str]:
        """Return the names of all objects in the namespace."""
        return set(self.site.kubectl("get", KINDS, "--output=name").split())

    def metrics(self, pod: str) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8090/proxy/metrics"
        return kubectl.kubectl("get", "--raw", path)

    def get_from_hub(self, path: str) -> str:
        """Return the response of the hub's service to a pod of the same namespace."""
        service = kubectl.get("service", f"hub-{RELEASE}", namespace=self.namespace)
        url = f"http://{service['spec']['clusterIP']}:8585{path}"
        script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=300).read().decode())"
        return self.site.kubectl("exec", f"deployment/{RELEASE}", "--", "python", "-c", script, url)

    def refused_calls(self) -> list[str]:
        """Return the calls that the API server refused to the consumers for lack of a permission."""
        calls = [
            line
            for pod in self.names(CONSUMERS)
            for line in self.metrics(pod).splitlines()
            if line.startswith("rabbit2docker_kubernetes_calls_total{")
        ]
        assert any('result="201"' in line for line in calls), calls
        return [line for line in calls if re.search(r'result="40[13]"', line)]


@contextmanager
def prepared(directory: Path) -> Iterator[Installation]:
    """Make a namespace and a virtual host with everything that the chart does not bring."""
    management = Management(os.environ["RABBIT2DOCKER_TEST_CLUSTER_MANAGEMENT_URL"])
    with ExitStack() as stack:
        vhost = management.new_vhost()
        stack.callback(management.delete_vhost, vhost)
        namespace = stack.enter_context(kubectl.new_namespace("chart"))
        amqp = AmqpSettings.model_validate(
            {
                "url": os.environ["RABBIT2DOCKER_TEST_CLUSTER_AMQP_URL"] + vhost,
                "management_url": management.url_of_management,
            }
        )
        installation = Installation(namespace, amqp, Site(namespace, amqp, directory, stack))
        installation.provide_secrets()
        stack.callback(subprocess.run, ["helm", f"--namespace={namespace}", "uninstall", RELEASE, "--wait"])
        yield installation


@pytest.fixture(scope="module")
def _image(cluster: str) -> None:
    """The consumer's image in all nodes; a cluster that was given has it in its registry."""
    if cluster != "given":
        archive = RUN / "consumer.tar"
        consumer_image.make(archive)
        choice.load(archive)


@pytest.fixture(scope="module")
def installation(_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
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
