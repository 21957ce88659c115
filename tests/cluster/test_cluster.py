"""The properties of the cluster that all other tests here rely on."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deploy.dev.machine import Unable

from tests.cluster.harness import choice, faults
from tests.cluster.harness import images as harness_images
from tests.cluster.harness.fake_nodes import TAINT, fake_nodes, placement
from tests.cluster.harness.images import Image, write_archive
from tests.cluster.harness.kubectl import apply, get, kubectl, new_namespace, phase
from tests.support.waiting import eventually_blocking

IMAGES = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_IMAGES", "")
REGISTRY = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_REGISTRY", "")
BASE_IMAGE = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_BASE_IMAGE", "")
SOCKET = "/var/run/docker-api/docker.sock"


def pod(name: str, image: str, *command: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, "command": list(command), **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


def has_ended(name: str, namespace: str) -> bool:
    return phase(name, namespace) in ("Succeeded", "Failed")


def sockets(namespace: str) -> dict[str, Any]:
    """Return the volume that docker-api and builders share: one directory of the node for each namespace."""
    return {
        "name": "run",
        "hostPath": {"path": f"/var/run/rabbit2docker-{namespace}", "type": "DirectoryOrCreate"},
    }


def docker_api(namespace: str) -> dict[str, Any]:
    labels = {"app": "docker-api"}
    container = {
        "name": "dockerd",
        "image": f"{IMAGES}docker-api:1",
        "command": ["dockerd", f"--host=unix://{SOCKET}", f"--insecure-registry={REGISTRY}"],
        "securityContext": {"privileged": True},
        "readinessProbe": {
            "exec": {"command": ["docker", f"--host=unix://{SOCKET}", "version"]},
            "periodSeconds": 5,
            "timeoutSeconds": 10,
        },
        "volumeMounts": [
            {"name": "run", "mountPath": str(Path(SOCKET).parent)},
            {"name": "data", "mountPath": "/var/lib/docker"},
        ],
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": [sockets(namespace), {"name": "data", "emptyDir": {}}],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "docker-api"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


@pytest.fixture(scope="module")
def builders() -> Iterator[str]:
    """A namespace with a docker-api that is ready on each node."""
    with new_namespace() as namespace:
        apply(docker_api(namespace), namespace=namespace)
        kubectl("rollout", "status", "daemonset/docker-api", "--timeout=100s", namespace=namespace)
        yield namespace


def build(name: str, namespace: str, node: str = "") -> str:
    """Build and push an image from a pod beside docker-api, and return its name; on a chosen node, or any."""
    image = f"{REGISTRY}/{namespace}/{name}:1"
    script = f"""set -e
mkdir /context
printf 'FROM {BASE_IMAGE}\\nRUN echo from a step of the build > /greeting\\n' > /context/Dockerfile
docker build --tag {image} /context
docker push {image}
"""
    affinity = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app": "docker-api"}},
                }
            ]
        }
    }
    mount = {"name": "run", "mountPath": str(Path(SOCKET).parent)}
    container = {
        "env": [{"name": "DOCKER_HOST", "value": f"unix://{SOCKET}"}],
        "volumeMounts": [mount],
    }
    builder = pod(
        name,
        f"{IMAGES}repo2docker:1",
        *("sh", "-c", script),
        affinity=affinity,
        nodeSelector={"kubernetes.io/hostname": node} if node else {},
        container=container,
        volumes=[sockets(namespace)],
        automountServiceAccountToken=False,
    )
    apply(builder, namespace=namespace)
    eventually_blocking(lambda: has_ended(name, namespace), seconds=120)
    assert phase(name, namespace) == "Succeeded", kubectl("logs", name, namespace=namespace)
    return image


def test_every_node_is_ready(cluster: str) -> None:
    nodes = get("nodes")["items"]
    ready = [
        condition["status"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    ]
    assert ready == ["True"] * (2 if cluster == "own" else max(1, len(nodes)))


def test_a_pod_runs_and_its_log_can_be_read(namespace: str) -> None:
    apply(pod("greeter", f"{IMAGES}busybox:1", "echo", "hello from a pod"), namespace=namespace)
    eventually_blocking(lambda: has_ended("greeter", namespace))
    assert kubectl("logs", "greeter", namespace=namespace) == "hello from a pod\n"


def test_a_pod_reaches_git_registry_and_rabbitmq(namespace: str) -> None:
    script = """
import os, socket
from urllib.parse import urlsplit
for url in os.environ["URLS"].split():
    parts = urlsplit(url)
    socket.create_connection((parts.hostname, parts.port), timeout=20).close()
print("reached")
"""
    names = ("GIT_URL", "AMQP_URL", "MANAGEMENT_URL")
    urls = [os.environ[f"RABBIT2DOCKER_TEST_CLUSTER_{name}"] for name in names]
    environment = {"env": [{"name": "URLS", "value": " ".join([*urls, f"http://{REGISTRY}"])}]}
    image = f"{IMAGES}repo2docker:1"
    apply(pod("caller", image, "python3", "-c", script, container=environment), namespace=namespace)
    eventually_blocking(lambda: has_ended("caller", namespace))
    assert kubectl("logs", "caller", namespace=namespace) == "reached\n"


def test_a_pod_beside_docker_api_builds_and_pushes_what_then_runs(builders: str) -> None:
    image = build("builder", builders)
    apply(pod("built", image, "cat", "/greeting"), namespace=builders)
    eventually_blocking(lambda: has_ended("built", builders))
    assert kubectl("logs", "built", namespace=builders) == "from a step of the build\n"
    with urllib.request.urlopen(f"http://{REGISTRY}/v2/{builders}/builder/tags/list", timeout=20) as answer:
        assert json.load(answer)["tags"] == ["1"]


def test_an_image_that_was_loaded_runs_on_every_node(namespace: str, tmp_path: Path) -> None:
    if os.environ["RABBIT2DOCKER_TEST_CLUSTER"] == "given":
        with pytest.raises(Unable, match="not ours"):
            choice.load(tmp_path)
        return
    layer = tmp_path / "layer"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc/loaded").write_text("loaded\n")
    shutil.copytree(harness_images.busybox_root(), layer, symlinks=True, dirs_exist_ok=True)
    name = f"loaded-{namespace}:1"
    archive = tmp_path / "image.tar"
    write_archive(archive, [Image(name, (layer,), {"Env": ["PATH=/bin"]})])
    choice.load(archive)
    nodes = [item["metadata"]["name"] for item in get("nodes")["items"]]
    for node in nodes:
        apply(pod(node, f"{IMAGES}{name}", "cat", "/etc/loaded", nodeName=node), namespace=namespace)
    for node in nodes:
        eventually_blocking(lambda node=node: has_ended(node, namespace))  # type: ignore[misc]
        assert kubectl("logs", node, namespace=namespace) == "loaded\n"


@pytest.mark.disruptive  # other tests count the nodes, and their engines would be placed on these
def test_pods_on_fake_nodes_are_ready_at_once(namespace: str) -> None:
    if not faults.are_possible():
        pytest.skip("kwok is not there")
    with fake_nodes(3) as group:
        for number in range(5):
            apply(pod(f"fake-{number}", "none.test/none:1", "none", **placement(group)), namespace=namespace)
        everyone = [f"pod/fake-{number}" for number in range(5)]
        kubectl("wait", "--for=condition=Ready", *everyone, "--timeout=60s", namespace=namespace)
    assert not get("nodes", selector=f"{TAINT}={group}")["items"]


def test_programs_of_the_cluster_are_on_the_path() -> None:
    for program in ("kubectl", "helm"):
        assert shutil.which(program)
    version = subprocess.run(["helm", "version", "--short"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("v3")
