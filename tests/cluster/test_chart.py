"""The objects that the chart renders, without installing it: settings that load, permissions that are used, no secret anywhere."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from deploy.helm import schema
from pydantic import BaseModel, SecretStr

from rabbit2docker.settings import ExecutorKind, Settings, load_settings

# What a helm that was built without a version takes for the cluster's is too old.
KUBERNETES = "1.36"
NAMESPACE = "builds"
NAME = "r2d-rabbit2docker"
PASSWORD = "hunter2"
NEEDED = {
    "image": {"repository": "registry.example.org/rabbit2docker"},
    "amqp": {"existingSecret": "rabbitmq"},
    "config": {"images": {"prefix": "registry.example.org/hub/r2d-"}},
}
EVERYTHING = {
    "amqp": {"managementUrlKey": "management"},
    "pushSecret": "push",
    "githubToken": {"existingSecret": "github"},
    "tenantCredentials": {
        "hub-a": {"pushSecret": "push-a", "gitCredentials": {"existingSecret": "git-a"}},
        "hub-b": {"pushSecret": "push-b"},
    },
    "dockerApi": {
        "insecureRegistries": ["registry.example.org:5000"],
        "tolerations": [{"operator": "Exists"}],
    },
}
Values = dict[str, Any]
Objects = dict[tuple[str, str], Any]
Read = Callable[[Objects], Settings]


def merged(*parts: Values) -> Values:
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def helm(values: Values, *command: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *command, str(schema.CHART), "--values=-", f"--namespace={namespace}"],
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


@pytest.fixture
def settings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read the settings as the chart's consumer does."""
    for name in os.environ:
        if name.startswith("RABBIT2DOCKER_") and not name.startswith("RABBIT2DOCKER_TEST_"):
            monkeypatch.delenv(name)

    def read(objects: Objects) -> Settings:
        [container] = consumer(objects)["spec"]["containers"]
        for variable in container["env"]:
            monkeypatch.setenv(variable["name"], variable.get("value", PASSWORD))
        file = tmp_path / "settings.yaml"
        file.write_text(objects["ConfigMap", f"{NAME}-settings"]["data"]["settings.yaml"])
        monkeypatch.setenv("RABBIT2DOCKER_CONFIG", str(file))
        return load_settings()

    return read


# -- values


def test_the_committed_schema_matches_the_settings() -> None:
    assert schema.TARGET.read_text() == schema.text(), "run python -m deploy.helm.schema"


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["needed", "everything"])
def test_helm_lint_has_no_complaint(values: Values) -> None:
    result = helm(merged(NEEDED, values), "lint", "--strict")
    assert not result.returncode, result.stdout


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 3},
        {"consumer": {"replica": 3}},
        {"dockerApi": {"storage": {"kind": "hostPath"}}},
        {"config": {"limits": {"concurent_builds": 3}}},
        {"config": {"limits": {"concurrent_builds": "many"}}},
        {"tenantCredentials": {"Hub A": {}}},
        {"dockerApi": {"socketDirectory": f"/{'x' * 100}"}},
    ],
    ids=str,
)
def test_unknown_and_impossible_values_are_refused(values: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(values)


@pytest.mark.parametrize("missing", ["image.repository", "amqp.existingSecret", "config.images.prefix"])
def test_a_missing_value_is_named(missing: str) -> None:
    values: Values = {}
    for key in reversed(missing.split(".")):
        values = {key: values or ""}
    assert f"{missing} is not set" in refusal(values)


def secret_settings(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the paths of all settings that hold secrets."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        key = ("hub-a",) if get_origin(field.annotation) is dict else ()
        if SecretStr in kinds:
            yield (*path, name, *key)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from secret_settings(kind, (*path, name, *key))


@pytest.mark.parametrize("path", list(secret_settings(Settings)), ids=".".join)
def test_a_password_among_the_settings_is_refused_without_being_shown(path: tuple[str, ...]) -> None:
    values: Any = PASSWORD
    for key in reversed(path):
        values = {key: values}
    assert "cannot be set" in refusal({"config": values})


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({"executor": "local"}, {}),
        ({"http": {"bind": "0.0.0.0:80"}}, {}),
        ({"docker": {"host": "unix:///docker.sock"}}, {}),
        ({"docker": {"config": "/docker"}}, {"pushSecret": "push"}),
        ({"kubernetes": {"namespace": "elsewhere"}}, {}),
        ({"kubernetes": {"docker_socket": "/docker.sock"}}, {}),
        ({"kubernetes": {"docker_api_labels": {"a": "b"}}}, {}),
        ({"kubernetes": {"push_secret": "push"}}, {}),
    ],
    ids=str,
)
def test_settings_that_the_chart_sets_cannot_be_set_in_config(config: Values, others: Values) -> None:
    assert "cannot be set:" in refusal({"config": config}, others)


# -- settings


def test_the_consumer_reads_the_settings_of_the_chart(settings_of: Read) -> None:
    config = {"limits": {"concurrent_builds": 12_345_678}, "tenants": ["hub-a", "hub-b"]}
    settings = settings_of(render(EVERYTHING, {"config": config}))

    assert settings.executor is ExecutorKind.KUBERNETES
    assert settings.kubernetes.namespace == NAMESPACE
    assert settings.kubernetes.push_secret == "push"
    assert settings.kubernetes.docker_group == 2375
    assert settings.kubernetes.tolerations == [{"operator": "Exists"}], "as docker-api has them"
    assert settings.limits.concurrent_builds == 12_345_678
    assert settings.tenants == ["hub-a", "hub-b"]
    assert settings.instance == "r2d"


def test_secrets_come_from_secrets(settings_of: Read) -> None:
    objects = render(EVERYTHING)
    settings = settings_of(objects)

    assert settings.amqp.url.get_secret_value() == PASSWORD
    assert settings.amqp.management_url
    assert settings.providers.github_token
    tenants = settings.kubernetes.tenants
    assert tenants["hub-a"].push_secret == "push-a"
    assert tenants["hub-a"].git_credentials
    assert tenants["hub-b"].push_secret == "push-b"
    assert tenants["hub-b"].git_credentials is None
    assert "Secret" not in {kind for kind, _ in objects}


def test_the_registry_check_reads_the_credentials_that_builds_push_with(settings_of: Read) -> None:
    objects = render({"pushSecret": "push"})
    spec = consumer(objects)["spec"]

    [mount] = [item for item in spec["containers"][0]["volumeMounts"] if item["name"] == "docker-config"]
    [volume] = [item for item in spec["volumes"] if item["name"] == "docker-config"]
    assert str(settings_of(objects).docker.config) == mount["mountPath"]
    assert volume["secret"]["secretName"] == "push"
    assert volume["secret"]["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


def test_builds_are_sent_to_the_engines_of_this_release_alone(settings_of: Read) -> None:
    objects = render()
    settings = settings_of(objects).kubernetes
    ours = docker_api(objects)["metadata"]["labels"]
    theirs = consumer(objects)["metadata"]["labels"]

    assert settings.docker_api_labels.items() <= ours.items()
    assert not settings.docker_api_labels.items() <= theirs.items()
    assert settings.docker_api_labels["app.kubernetes.io/instance"] == "r2d"


def test_the_socket_is_where_builds_look_for_it(settings_of: Read) -> None:
    objects = render()
    socket = Path(settings_of(objects).kubernetes.docker_socket)
    spec = docker_api(objects)["spec"]

    [volume] = [item for item in spec["volumes"] if item["name"] == "socket"]
    assert volume["hostPath"]["path"] == str(socket.parent)
    for container in (*spec["initContainers"], *spec["containers"]):
        assert {"name": "socket", "mountPath": str(socket.parent)} in container["volumeMounts"]
    assert f"--host=unix://{socket}" in spec["containers"][0]["args"]


def test_releases_of_long_names_have_sockets_of_their_own_that_can_be_listened_at(settings_of: Read) -> None:
    sockets = set()
    for namespace in ("builds-of-the-first-hub", "builds-of-the-second-hub"):
        command = ("template", f"--kube-version={KUBERNETES}", "r" * 53)
        result = helm(NEEDED, *command, namespace=namespace.rjust(63, "n"))
        objects = [found for found in yaml.safe_load_all(result.stdout) if found]
        assert all(len(found["metadata"]["name"]) <= 63 for found in objects), result.stderr
        [text] = [
            found["data"]["settings.yaml"] for found in objects if "settings.yaml" in found.get("data", {})
        ]
        sockets.add(yaml.safe_load(text)["kubernetes"]["docker_socket"])
    assert len(sockets) == 2
    assert all(len(socket) <= 107 for socket in sockets)


def test_existing_engines_can_be_used(settings_of: Read) -> None:
    kubernetes = {"docker_socket": "/var/run/docker/docker.sock", "docker_api_labels": {"app": "dind"}}
    assert "config.kubernetes.docker_socket is not set" in refusal({"dockerApi": {"enabled": False}})

    objects = render({"dockerApi": {"enabled": False}, "config": {"kubernetes": kubernetes}})

    assert "DaemonSet" not in {kind for kind, _ in objects}
    assert settings_of(objects).kubernetes.docker_api_labels == {"app": "dind"}


# -- permissions and rights


def test_the_consumer_may_do_what_it_does_and_nothing_else() -> None:
    objects = render({"pushSecret": "push", "tenantCredentials": {"hub-b": {"pushSecret": "push-b"}}})

    assert rules(objects) == {
        "pods": ["get", "list", "watch", "create", "patch", "delete"],
        "pods/log": ["get"],
        "events": ["list"],
        "configmaps": ["list", "create", "delete"],
        "coordination.k8s.io/leases": ["list", "watch", "create", "patch", "delete"],
        "namespaces": ["get"],
    }
    assert not {kind for kind, _ in objects} & {"ClusterRole", "ClusterRoleBinding"}
    [subject] = objects["RoleBinding", NAME]["subjects"]
    assert subject["name"] == consumer(objects)["spec"]["serviceAccountName"]


def test_secrets_may_be_written_only_where_builds_need_their_own() -> None:
    objects = render(EVERYTHING)

    assert rules(objects)["secrets"] == ["list", "create", "patch", "delete"]


def test_consumers_run_without_privileges_and_engines_without_an_account() -> None:
    objects = render()
    spec = consumer(objects)["spec"]
    [container] = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert docker_api(objects)["spec"]["automountServiceAccountToken"] is False


def test_service_variables_of_kubernetes_are_not_taken_for_settings() -> None:
    """Kubernetes would set RABBIT2DOCKER_PORT and others in the pods of a release named rabbit2docker."""
    assert consumer(render())["spec"]["enableServiceLinks"] is False


# -- changes


def test_other_settings_restart_the_consumers_and_leave_the_engines_alone() -> None:
    before, after = render(), render({"config": {"limits": {"concurrent_builds": 3}}})

    assert consumer(before) != consumer(after)
    assert docker_api(before) == docker_api(after)


def test_the_engine_is_configured_with_its_cache_and_registries() -> None:
    more = {
        "dockerApi": {"buildCache": "50GB", "daemonConfig": {"mtu": 1400, "builder": {"gc": {"policy": []}}}}
    }
    objects = render(EVERYTHING, more)
    config = json.loads(objects["ConfigMap", f"{NAME}-docker-api"]["data"]["daemon.json"])

    assert config["builder"]["gc"]["defaultKeepStorage"] == "50GB"
    assert config["builder"]["gc"]["policy"] == []
    assert config["insecure-registries"] == ["registry.example.org:5000"]
    assert config["mtu"] == 1400


def test_the_engine_keeps_the_output_of_build_steps_at_any_speed() -> None:
    more = {"dockerApi": {"stepLogBytes": -1, "extraEnv": [{"name": "HTTP_PROXY", "value": "proxy"}]}}
    for objects, size, others in ((render(), "67108864", {}), (render(more), "-1", {"HTTP_PROXY": "proxy"})):
        [dockerd] = docker_api(objects)["spec"]["containers"]
        assert {item["name"]: item["value"] for item in dockerd["env"]} == {
            "BUILDKIT_STEP_LOG_MAX_SIZE": size,
            "BUILDKIT_STEP_LOG_MAX_SPEED": "-1",
            **others,
        }


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "50Gi"}, {"emptyDir": {"sizeLimit": "50Gi"}}),
        (
            {"type": "hostPath"},
            {"hostPath": {"path": f"/var/lib/rabbit2docker/{NAMESPACE}-{NAME}", "type": "DirectoryOrCreate"}},
        ),
        (
            {"type": "hostPath", "path": "/big/docker"},
            {"hostPath": {"path": "/big/docker", "type": "DirectoryOrCreate"}},
        ),
    ],
    ids=str,
)
def test_the_engine_keeps_its_data_in_the_configured_volume(storage: Values, expected: Values) -> None:
    volumes = docker_api(render({"dockerApi": {"storage": storage}}))["spec"]["volumes"]

    [volume] = [item for item in volumes if item["name"] == "storage"]
    assert volume == {"name": "storage", **expected}


def test_objects_of_the_removal_job_are_made_after_the_uninstall() -> None:
    objects = render()
    removal = [found for (_, name), found in objects.items() if name == f"{NAME}-removal"]

    assert {found["kind"] for found in removal} == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "Job",
    }
    assert all(found["metadata"]["annotations"]["helm.sh/hook"] == "post-delete" for found in removal)
    assert not [name for _, name in render({"removeOnUninstall": False}) if "removal" in name]
