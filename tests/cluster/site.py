"""A place to build on the cluster: a namespace with docker-api on every node, and consumers beside it."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rabbit2docker.settings import AmqpSettings
from tests.cluster.harness import kubectl
from tests.cluster.harness.layout import NODES_NETWORK
from tests.support.consumer import Consumer
from tests.support.rabbitmq import Management
from tests.support.repositories import GitServer, Repository, repository
from tests.support.waiting import eventually_blocking

Object = dict[str, Any]

REGISTRY = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_REGISTRY", "")
IMAGES = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_IMAGES", "")
DOCKER_API = {"app.kubernetes.io/component": "docker-api"}
DOCKER_API_SELECTOR = "app.kubernetes.io/component=docker-api"
BUILD_SELECTOR = "app.kubernetes.io/managed-by=rabbit2docker,app.kubernetes.io/component=build"


def docker_api(name: str, socket_directory: str) -> Object:
    """Return a DaemonSet as the chart makes it, without what these tests do not need."""
    socket = f"unix://{socket_directory}/docker.sock"
    command = ["dockerd", f"--host={socket}", "--data-root=/var/lib/docker", "--group=2375"]
    answers = {"exec": {"command": ["docker", f"--host={socket}", "version"]}, "timeoutSeconds": 10}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": DOCKER_API},
            "template": {
                "metadata": {"labels": DOCKER_API},
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 5,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [
                        {
                            "name": "docker",
                            "image": f"{IMAGES}docker-api:1",
                            "command": [
                                *command,
                                f"--insecure-registry={REGISTRY}",
                                f"--insecure-registry={NODES_NETWORK}",
                            ],
                            "securityContext": {"privileged": True},
                            # Each probe starts a process in the container: often until the first answer, seldom after.
                            "startupProbe": {**answers, "periodSeconds": 1, "failureThreshold": 120},
                            "readinessProbe": {**answers, "periodSeconds": 30},
                            "volumeMounts": [
                                {"name": "socket", "mountPath": socket_directory},
                                {"name": "data", "mountPath": "/var/lib/docker"},
                            ],
                        }
                    ],
                    "volumes": [
                        {
                            "name": "socket",
                            "hostPath": {"path": socket_directory, "type": "DirectoryOrCreate"},
                        },
                        {"name": "data", "emptyDir": {}},
                    ],
                },
            },
        },
    }


class Site:
    """One namespace, one virtual host, and what was started in them."""

    def __init__(self, namespace: str, amqp: AmqpSettings, directory: Path, stack: ExitStack) -> None:
        self.namespace = namespace
        self.amqp = amqp
        self.socket_directory = f"/var/run/rabbit2docker/{namespace}"
        self._directory = directory
        self._stack = stack
        self._server = GitServer(
            Path(os.environ["RABBIT2DOCKER_TEST_CLUSTER_GIT_ROOT"]),
            os.environ["RABBIT2DOCKER_TEST_CLUSTER_GIT_URL"],
        )

    # -- docker-api

    def provide_docker_api(self) -> None:
        """Start docker-api on every node that has none, and wait for it."""
        kubectl.apply(docker_api("docker-api", self.socket_directory), namespace=self.namespace)
        kubectl.kubectl(
            "rollout", "status", "daemonset/docker-api", "--timeout=120s", namespace=self.namespace
        )

    def remove_docker_api(self) -> None:
        kubectl.kubectl("delete", "daemonset", "docker-api", "--wait=true", namespace=self.namespace)
        eventually_blocking(lambda: not self.pods(DOCKER_API_SELECTOR))

    # -- consumers

    def variables(self) -> dict[str, str]:
        """Return the settings of a consumer that builds here."""
        return {
            "RABBIT2DOCKER_EXECUTOR": "kubernetes",
            "RABBIT2DOCKER_KUBERNETES__NAMESPACE": self.namespace,
            "RABBIT2DOCKER_KUBERNETES__DOCKER_SOCKET": f"{self.socket_directory}/docker.sock",
            "RABBIT2DOCKER_BUILDER__IMAGE": f"{IMAGES}repo2docker:1",
            "RABBIT2DOCKER_IMAGES__PREFIX": f"{REGISTRY}/{self.namespace}-",
            "RABBIT2DOCKER_IMAGES__REGISTRY_URL": f"http://{REGISTRY}",
        }

    def consumer(self, **variables: str) -> Consumer:
        """Return a consumer that is not started yet and ends with the site."""
        directory = self._directory / f"consumer-{uuid.uuid4().hex[:6]}"
        directory.mkdir()
        consumer = Consumer(directory, self.amqp, real=True, **{**self.variables(), **variables})
        self._stack.callback(consumer.end_everything)
        return consumer

    # -- repositories

    def repository(self, name: str, *instructions: str) -> Repository:
        """Make a repository with a Dockerfile that has busybox and nothing else."""
        lines = ["FROM scratch", "COPY busybox /bin/busybox", *instructions]
        files: dict[str, str | bytes] = {"Dockerfile": "\n".join(lines) + "\n", "busybox": busybox()}
        return self._stack.enter_context(repository(name, files, self._server))

    def quick(self, name: str = "quick") -> Repository:
        """Make a repository that takes a moment to build."""
        return self.repository(name, shell("echo said-by-a-step"), 'CMD ["/bin/busybox", "echo", "hello"]')

    def slow(self, seconds: int, name: str = "slow") -> Repository:
        """Make a repository whose build prints each second's number; its step can be found by `step_of(name)`."""
        step = f": {self.step_of(name)}; i=0; while [ $i -lt {seconds} ]; do echo second-$i; /bin/busybox sleep 1; i=$((i+1)); done"
        return self.repository(name, shell(step))

    def step_of(self, name: str) -> str:
        """Return text in the command line of a slow build's step and of no other process."""
        return f"{self.namespace}/{name}"

    # -- looking

    def pods(self, selector: str = BUILD_SELECTOR) -> list[Object]:
        return list(kubectl.get("pods", namespace=self.namespace, selector=selector)["items"])

    def running(self) -> Object | None:
        """Return a build pod whose container runs."""
        for pod in self.pods():
            statuses = pod["status"].get("containerStatuses", [])
            if any("running" in status["state"] for status in statuses):
                return pod
        return None

    def kubectl(self, *arguments: str) -> str:
        return kubectl.kubectl(*arguments, namespace=self.namespace)

    def end_all_builds(self) -> None:
        """Remove all build pods, also those whose build has no consumer left to end it."""
        for pod in self.pods():
            patch = '--patch={"metadata": {"finalizers": null}}'
            self.kubectl("patch", "pod", pod["metadata"]["name"], "--type=merge", patch)
        self.kubectl(
            "delete", "pods", f"--selector={BUILD_SELECTOR}", "--grace-period=0", "--force", "--wait=true"
        )

    def leftovers(self) -> list[str]:
        """Return what is there of builds: pods, their Secrets, and Leases."""
        kinds = "pods,secrets,leases"
        found = self.kubectl(
            "get", kinds, "--selector=app.kubernetes.io/managed-by=rabbit2docker", "--output=name"
        )
        return found.split()


def shell(script: str) -> str:
    """Return the instruction that runs a script where there is only busybox."""
    return "RUN " + json.dumps(["/bin/busybox", "sh", "-c", script])


@cache
def busybox() -> bytes:
    """Return the program, fetched from the image that every kind of cluster has."""
    with kubectl.new_namespace("busybox") as namespace:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "busybox"},
            "spec": {
                "containers": [
                    {"name": "busybox", "image": f"{IMAGES}busybox:1", "command": ["sleep", "600"]}
                ],
                "terminationGracePeriodSeconds": 0,
            },
        }
        kubectl.apply(pod, namespace=namespace)
        kubectl.kubectl("wait", "--for=condition=Ready", "pod/busybox", "--timeout=60s", namespace=namespace)
        command = ["kubectl", "--namespace", namespace, "exec", "busybox", "--", "cat", "/bin/busybox"]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@contextmanager
def opened(directory: Path) -> Iterator[Site]:
    """Make a site and remove it with everything in it."""
    management = Management(os.environ["RABBIT2DOCKER_TEST_CLUSTER_MANAGEMENT_URL"])
    with ExitStack() as stack:
        namespace = stack.enter_context(kubectl.new_namespace("site"))
        vhost = management.new_vhost()
        stack.callback(management.delete_vhost, vhost)
        amqp = AmqpSettings.model_validate(
            {
                "url": os.environ["RABBIT2DOCKER_TEST_CLUSTER_AMQP_URL"] + vhost,
                "management_url": management.url_of_management,
                "heartbeat": 5,
            }
        )
        with ExitStack() as things:
            site = Site(namespace, amqp, directory, things)
            stack.callback(site.end_all_builds)
            site.provide_docker_api()
            yield site
