"""The hub's service of the chart: its settings load, its secrets come from Secrets, and a JupyterHub finds it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.helm import schema

from rabbit2docker.hub.service import base_url_of, bind_address
from rabbit2docker.settings import Settings, load_settings
from tests.cluster.rendering import (
    KUBERNETES,
    NAME,
    NEEDED,
    PASSWORD,
    Objects,
    Values,
    consumer,
    helm,
    merged,
    refusal,
    render,
)

HUB: Values = {"hubService": {"enabled": True}}
ALONE: Values = {**HUB, "consumer": {"enabled": False}, "dockerApi": {"enabled": False}}
POSTGRESQL: Values = {
    "hubService": {"enabled": True, "replicas": 3, "database": {"existingSecret": "database"}}
}
IN_SECRETS = {
    "RABBIT2DOCKER_HUB__TOKENS": '{"ada": "token"}',
    "RABBIT2DOCKER_HUB__WEBHOOKS": json.dumps(
        [{"provider": "gh", "repository": "course/lecture", "secret": PASSWORD}]
    ),
}
EXAMPLE = schema.CHART.parents[1] / "jupyterhub"


def pod(objects: Objects) -> Any:
    return objects["Deployment", f"{NAME}-hub"]["spec"]["template"]


def volumes(objects: Objects) -> dict[str, Any]:
    return {volume["name"]: volume for volume in pod(objects)["spec"]["volumes"]}


def variables(objects: Objects) -> dict[str, Any]:
    [container] = pod(objects)["spec"]["containers"]
    return {variable["name"]: variable for variable in container["env"]}


def secrets(objects: Objects) -> dict[str, tuple[str, str]]:
    """Return Secret and key of the variables that come from Secrets."""
    found = {name: each.get("valueFrom", {}).get("secretKeyRef") for name, each in variables(objects).items()}
    return {name: (secret["name"], secret["key"]) for name, secret in found.items() if secret}


def settings_of(objects: Objects, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as the hub's pod does."""
    for name in list(os.environ):
        if name.startswith(("RABBIT2DOCKER_", "JUPYTERHUB_")) and not name.startswith("RABBIT2DOCKER_TEST_"):
            monkeypatch.delenv(name)
    for name, variable in variables(objects).items():
        monkeypatch.setenv(name, variable.get("value", IN_SECRETS.get(name, PASSWORD)))
    file = directory / "settings.yaml"
    file.write_text(objects["ConfigMap", f"{NAME}-hub"]["data"]["settings.yaml"])
    monkeypatch.setenv("RABBIT2DOCKER_CONFIG", str(file))
    return load_settings()


def test_the_service_is_there_only_on_request() -> None:
    assert not [name for _, name in render() if "hub" in name]


def test_the_service_reads_its_settings_and_those_of_the_consumers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "tenant": "hub-a",
        "hub": {"requests_per_user": 12, "admins": ["ada"]},
        "log": {"level": "debug"},
    }
    objects = render(HUB, {"config": config})
    settings = settings_of(objects, tmp_path, monkeypatch)

    assert (settings.tenant, settings.log.level) == ("hub-a", "debug")
    assert settings.hub.requests_per_user == 12
    assert settings.hub.store_url.get_secret_value() == "sqlite:////data/builds.sqlite"
    assert settings.hub.store_bytes == 3_000_000_000
    assert settings.images.prefix == NEEDED["config"]["images"]["prefix"]
    assert bind_address(settings.hub) == ("0.0.0.0", 8585)
    assert base_url_of(settings.hub) == "/services/binder/"
    consumers = yaml.safe_load(objects["ConfigMap", f"{NAME}-settings"]["data"]["settings.yaml"])
    assert "hub" not in consumers


def test_other_settings_of_the_hub_leave_the_consumers_alone() -> None:
    before, after = render(HUB), render(HUB, {"config": {"hub": {"admins": ["ada"]}}})

    assert consumer(before) == consumer(after)
    assert pod(before) != pod(after)


def test_a_release_can_have_the_service_alone_in_the_namespace_of_the_hub() -> None:
    objects = render(ALONE)

    assert set(objects) == {
        ("ConfigMap", f"{NAME}-hub"),
        ("Deployment", f"{NAME}-hub"),
        ("NetworkPolicy", f"{NAME}-hub"),
        ("PersistentVolumeClaim", f"{NAME}-hub"),
        ("Pod", f"{NAME}-test-build"),
        ("PodDisruptionBudget", f"{NAME}-hub"),
        ("Service", f"hub-{NAME}"),
    }
    assert pod(objects)["spec"]["automountServiceAccountToken"] is False
    without_prefix = merged({**NEEDED, "config": {}}, ALONE)
    assert not helm(without_prefix, "template", f"--kube-version={KUBERNETES}", "r2d").returncode


def test_builds_and_logs_are_on_a_volume_that_an_uninstall_keeps() -> None:
    objects = render(HUB, {"hubService": {"persistence": {"size": "20Gi", "storageClass": "ssd"}}})
    claim = objects["PersistentVolumeClaim", f"{NAME}-hub"]

    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert claim["spec"]["storageClassName"] == "ssd"
    assert volumes(objects)["data"]["persistentVolumeClaim"]["claimName"] == f"{NAME}-hub"
    assert objects["Deployment", f"{NAME}-hub"]["spec"]["strategy"] == {"type": "Recreate"}
    assert pod(objects)["spec"]["securityContext"]["fsGroup"] == 1000, "the volume must be writable"


@pytest.mark.parametrize(
    ("persistence", "expected"),
    [
        ({"existingClaim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}),
        ({"enabled": False}, {"emptyDir": {}}),
    ],
    ids=["existing", "none"],
)
def test_another_volume_or_none_may_be_used(persistence: Values, expected: Values) -> None:
    objects = render(HUB, {"hubService": {"persistence": persistence}})

    assert volumes(objects)["data"] == {"name": "data", **expected}
    assert "PersistentVolumeClaim" not in {kind for kind, _ in objects}


def test_several_instances_share_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render(POSTGRESQL)

    assert secrets(objects)["RABBIT2DOCKER_HUB__STORE_URL"] == ("database", "url")
    assert settings_of(objects, tmp_path, monkeypatch).hub.store_url.get_secret_value() == PASSWORD
    assert "data" not in volumes(objects)
    assert objects["Deployment", f"{NAME}-hub"]["spec"]["strategy"]["type"] == "RollingUpdate"
    assert "SQLite allows one instance" in refusal(HUB, {"hubService": {"replicas": 2}})


def test_all_secrets_come_from_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {
        "amqp": {"existingSecret": "of-the-tenant"},
        "tokens": {"existingSecret": "tokens"},
        "buildToken": {"existingSecret": "build-token"},
        "webhooks": {"existingSecret": "webhooks"},
        "deadLetters": {"existingSecret": "dead-letters"},
    }
    objects = render(POSTGRESQL, {"hubService": more})

    assert secrets(objects) == {
        "RABBIT2DOCKER_AMQP__URL": ("of-the-tenant", "url"),
        "RABBIT2DOCKER_HUB__STORE_URL": ("database", "url"),
        "RABBIT2DOCKER_HUB__TOKENS": ("tokens", "tokens"),
        "RABBIT2DOCKER_HUB__BUILD_TOKEN_SECRET": ("build-token", "secret"),
        "RABBIT2DOCKER_HUB__WEBHOOKS": ("webhooks", "webhooks"),
        "RABBIT2DOCKER_HUB__DEAD_LETTERS_URL": ("dead-letters", "url"),
        "JUPYTERHUB_API_TOKEN": ("hub", "hub.services.binder.apiToken"),
    }
    assert "Secret" not in {kind for kind, _ in objects}
    hub = settings_of(objects, tmp_path, monkeypatch).hub
    assert set(hub.tokens) == {"ada"}
    assert [webhook.secret.get_secret_value() for webhook in hub.webhooks] == [PASSWORD]
    assert secrets(render(HUB))["RABBIT2DOCKER_AMQP__URL"] == ("rabbitmq", "url"), "that of the consumers"


def test_settings_of_the_hub_without_the_service_are_refused() -> None:
    assert "hubService.enabled is false" in refusal({"config": {"hub": {"admins": ["ada"]}}})


@pytest.mark.parametrize("auth", ["tokens", "none"])
def test_without_a_jupyterhub_an_ingress_leads_to_the_service(auth: str) -> None:
    ingress = {
        "enabled": True,
        "className": "nginx",
        "hosts": ["builds.{{ .Release.Namespace }}.example.org"],
    }
    objects = render(
        HUB, {"hubService": {"ingress": ingress}, "config": {"hub": {"auth": auth, "base_url": "/r2d"}}}
    )

    [rule] = objects["Ingress", f"{NAME}-hub"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert rule["host"] == "builds.builds.example.org"
    assert path["path"] == "/r2d/"
    assert ("Service", path["backend"]["service"]["name"]) in objects
    assert not [name for name in variables(objects) if name.startswith("JUPYTERHUB_")]
    assert "hub.jupyter.org/network-access-hub" not in pod(objects)["metadata"]["labels"]
    [container] = pod(objects)["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/r2d/versions"


def test_an_ingress_without_a_host_is_refused() -> None:
    assert "hubService.ingress.hosts is empty" in refusal(HUB, {"hubService": {"ingress": {"enabled": True}}})


def test_the_name_of_the_service_makes_no_variables_that_look_like_settings() -> None:
    """Kubernetes sets RABBIT2DOCKER_HUB_PORT for a Service rabbit2docker-hub in every pod of its namespace."""
    objects = render(HUB, {"fullnameOverride": "rabbit2docker"})
    names = [name for kind, name in objects if kind == "Service"]

    assert [name for name in names if not name.startswith("rabbit2docker")] == ["hub-rabbit2docker"]
    assert (
        objects["Deployment", "rabbit2docker-hub"]["spec"]["template"]["spec"]["enableServiceLinks"] is False
    )


def test_the_example_for_zero_to_jupyterhub_refers_to_the_service_of_its_values() -> None:
    hub = yaml.safe_load((EXAMPLE / "values.yaml").read_text())
    ours = yaml.safe_load((EXAMPLE / "rabbit2docker.yaml").read_text())
    objects = render(ours, {"fullnameOverride": "rabbit2docker"})
    [service] = [found for (kind, _), found in objects.items() if kind == "Service"]
    [name] = hub["hub"]["services"]
    [container] = objects["Deployment", "rabbit2docker-hub"]["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in container["env"]}

    url = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert hub["hub"]["services"][name]["url"] == url
    assert environment["JUPYTERHUB_SERVICE_NAME"]["value"] == name
    assert environment["JUPYTERHUB_SERVICE_PREFIX"]["value"] == f"/services/{name}/"
    assert environment["JUPYTERHUB_CLIENT_ID"]["value"] == f"service-{name}"
    key = environment["JUPYTERHUB_API_TOKEN"]["valueFrom"]["secretKeyRef"]["key"]
    assert key == f"hub.services.{name}.apiToken"


@pytest.mark.parametrize(
    "values",
    [
        {"hubService": {"replica": 2}},
        {"hubService": {"database": {"url": "postgresql://user:password@host/database"}}},
        {"hubService": {"jupyterhub": {"apiToken": PASSWORD}}},
        {"hubService": {"jupyterhub": {"apiUrl": "hub:8081"}}},
        {"hubService": {"service": {"type": "Cluster"}}},
        {"hubService": {"persistence": {"accessModes": []}}},
        {"hubService": {"ingress": {"hosts": [{"host": "builds.example.org"}]}}},
    ],
    ids=str,
)
def test_unknown_and_impossible_values_are_refused(values: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(HUB, values)
