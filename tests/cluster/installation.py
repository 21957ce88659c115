"""A release of the chart on the cluster, and what its operator provides."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploy.helm.schema import CHART

from rabbit2docker.settings import AmqpSettings
from tests.cluster.harness import kubectl
from tests.cluster.site import IMAGES, REGISTRY, Site
from tests.support.rabbitmq import Management

RELEASE = "rabbit2docker"
CONSUMERS = "app.kubernetes.io/component=consumer"
ENGINES = "app.kubernetes.io/component=docker-api"
TESTS = "app.kubernetes.io/component=test"
KINDS = (
    "pods,services,deployments,daemonsets,jobs,configmaps,secrets,serviceaccounts,leases,roles,rolebindings"
)
Values = dict[str, Any]


def merged(*values: Mapping[str, Any]) -> Values:
    """Return values as helm merges them: mappings key by key, of everything else the last; None removes."""
    result: Values = {}
    for each in values:
        for name, value in each.items():
            if value is None:
                result.pop(name, None)
                continue
            both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
            result[name] = merged(result[name], value) if both else value
    return result


def docker_config(**accounts: str) -> str:
    """Return Docker's config.json with `user:password` by registry."""
    auths = {name: {"auth": base64.b64encode(login.encode()).decode()} for name, login in accounts.items()}
    return json.dumps({"auths": auths})


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
        management = self.amqp.management_url
        assert management
        secrets: dict[str, tuple[str, dict[str, str]]] = {
            "rabbitmq": (
                "Opaque",
                {"url": self.amqp.url.get_secret_value(), "management": management.get_secret_value()},
            ),
            "push": (
                "kubernetes.io/dockerconfigjson",
                {".dockerconfigjson": docker_config(**{REGISTRY: "user:password"})},
            ),
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

    def install(self, values: Values | None = None) -> None:
        """Install the chart; `values` are merged into those that it needs here."""
        self.install_alone(merged(self.values, values or {}))

    def install_alone(self, values: Values) -> None:
        """Install the chart with these values and no others."""
        self.helm("install", RELEASE, str(CHART), "--values=-", values=values)

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
