"""Objects that the chart renders for given values, without installing them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from deploy.helm import schema

from rabbit2docker.settings import Settings

# What a helm that was built without a version takes for the cluster's is too old.
KUBERNETES = "1.36"
NAMESPACE = "builds"
NAME = "r2d-rabbit2docker"
PASSWORD = "hunter2-hunter2-hunter2"
Values = dict[str, Any]

NEEDED: Values = {
    "image": {"repository": "registry.example.org/rabbit2docker"},
    "amqp": {"existingSecret": "rabbitmq"},
    "config": {"images": {"prefix": "registry.example.org/hub/r2d-"}},
}
EVERYTHING: Values = {
    "amqp": {"managementUrlKey": "management"},
    "pushSecret": "push",
    "githubToken": {"existingSecret": "github"},
    "gitlabToken": {"existingSecret": "gitlab"},
    "tenantCredentials": {
        "hub-a": {
            "pushSecret": "push-a",
            "git": {
                "git.example.org": {"existingSecret": "git-a", "tokenKey": "token", "user": "reader"},
                "github.com": {
                    "existingSecret": "app-a",
                    "appId": 4711,
                    "appKeyKey": "key",
                    "submoduleAccounts": ["acme", "acme-data"],
                },
                "git.example.org:2222": {
                    "existingSecret": "ssh-a",
                    "sshKeyKey": "key",
                    "knownHostsKey": "known_hosts",
                },
            },
        },
        "hub-b": {"pushSecret": "push-b"},
    },
    "dockerApi": {
        "insecureRegistries": ["registry.example.org:5000"],
        "tolerations": [{"operator": "Exists"}],
    },
}
Objects = dict[tuple[str, str], Any]
Read = Callable[[Objects], Settings]


def merged(*parts: Values) -> Values:
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def helm(
    values: Values, *command: str, namespace: str = NAMESPACE, chart: Path = schema.CHART
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *command, str(chart), "--values=-", f"--namespace={namespace}"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def template(*values: Values) -> subprocess.CompletedProcess[str]:
    return helm(merged(NEEDED, *values), "template", f"--kube-version={KUBERNETES}", "r2d")


def render(*values: Values) -> Objects:
    """Return the objects by kind and name."""
    result = template(*values)
    assert not result.returncode, result.stderr
    return {
        (found["kind"], found["metadata"]["name"]): found
        for found in yaml.safe_load_all(result.stdout)
        if found
    }


def refusal(*values: Values) -> str:
    """Return the reason for which helm refuses the values."""
    result = template(*values)
    assert result.returncode, "the values are not refused"
    assert PASSWORD not in result.stderr
    return result.stderr


def consumer(objects: Objects) -> Any:
    return objects["Deployment", NAME]["spec"]["template"]


def docker_api(objects: Objects) -> Any:
    return objects["DaemonSet", f"{NAME}-docker-api"]["spec"]["template"]


def rules(objects: Objects) -> dict[str, list[str]]:
    return {
        "/".join([*filter(None, rule["apiGroups"]), *rule["resources"]]): rule["verbs"]
        for rule in objects["Role", NAME]["rules"]
    }
