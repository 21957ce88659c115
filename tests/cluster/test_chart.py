"""The objects that the chart renders, without installing it: settings that load, permissions that are used, no secret anywhere."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from deploy.helm import schema
from pydantic import BaseModel, SecretStr

from rabbit2docker.settings import ExecutorKind, Settings, load_settings
from tests.cluster.rendering import (
    EVERYTHING,
    KUBERNETES,
    NAME,
    NAMESPACE,
    NEEDED,
    PASSWORD,
    Objects,
    Read,
    Values,
    consumer,
    docker_api,
    helm,
    merged,
    refusal,
    render,
    rules,
)


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
        {"tenantCredentials": {"hub-a": {"git": {"git.example.org": {"existingSecret": "git-a"}}}}},
        {
            "tenantCredentials": {
                "hub-a": {"git": {"git.example.org": {"existingSecret": "git-a", "sshKeyKey": "key"}}}
            }
        },
        {
            "tenantCredentials": {
                "hub-a": {
                    "git": {
                        "github.com": {
                            "existingSecret": "a",
                            "appId": 1,
                            "appKeyKey": "key",
                            "tokenKey": "token",
                        }
                    }
                }
            }
        },
        {
            "tenantCredentials": {
                "hub-a": {
                    "git": {
                        "github.com": {
                            "existingSecret": "a",
                            "tokenKey": "token",
                            "submoduleAccounts": ["acme"],
                        }
                    }
                }
            }
        },
        {
            "tenantCredentials": {
                "hub-a": {
                    "git": {
                        "github.com": {
                            "existingSecret": "a",
                            "appId": 1,
                            "appKeyKey": "key",
                            "submoduleAccounts": [f"account-{number}" for number in range(11)],
                        }
                    }
                }
            }
        },
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


ITEM = "[]"
"""Part of the path of a setting: an item of a list."""
OTHERS_OF_AN_ITEM = {"provider": "gh", "repository": "course/lecture", "secret": PASSWORD}
"""Without them, the schema would refuse the item before the templates explain anything."""


def secret_settings(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the paths of all settings that hold secrets."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        origin = get_origin(field.annotation)
        key = ("hub-a",) if origin is dict else (ITEM,) if origin is list else ()
        if SecretStr in kinds:
            yield (*path, name, *key)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from secret_settings(kind, (*path, name, *key))


@pytest.mark.parametrize("path", list(secret_settings(Settings)), ids=".".join)
def test_a_password_among_the_settings_is_refused_without_being_shown(path: tuple[str, ...]) -> None:
    values: Any = PASSWORD
    for key in reversed(path):
        values = [{**OTHERS_OF_AN_ITEM, **values}] if key == ITEM else {key: values}
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


# -- replay


def test_a_schedule_rebuilds_what_an_older_builder_has_built(settings_of: Read) -> None:
    replay = {"schedule": "0 3 * * *", "existingSecret": "operator", "days": 3, "sameCommit": True}
    assert ("CronJob", f"{NAME}-replay") not in render()
    job = render({"replay": replay})["CronJob", f"{NAME}-replay"]["spec"]
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (job["schedule"], job["concurrencyPolicy"]) == ("0 3 * * *", "Forbid")
    assert container["args"] == [
        "replay",
        "--since=3d",
        "--outdated",
        "--same-commit",
        "--rate=20/min",
        "--yes",
    ]
    [url] = [variable for variable in container["env"] if variable["name"] == "RABBIT2DOCKER_AMQP__URL"]
    assert url["valueFrom"]["secretKeyRef"] == {"name": "operator", "key": "url"}
    assert pod["automountServiceAccountToken"] is False
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


def test_a_schedule_may_name_a_version_and_needs_an_operator() -> None:
    named = {"schedule": "@daily", "existingSecret": "operator", "builtWith": "repo2docker<2026.4"}
    job = render({"replay": named})["CronJob", f"{NAME}-replay"]["spec"]["jobTemplate"]
    assert "--built-with=repo2docker<2026.4" in job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "replay.existingSecret is not set" in refusal({"replay": {"schedule": "@daily"}})


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
    assert list(settings.tenants) == ["hub-a", "hub-b"]
    assert settings.instance == "r2d"


def test_secrets_come_from_secrets(settings_of: Read) -> None:
    objects = render(EVERYTHING)
    settings = settings_of(objects)

    assert settings.amqp.url.get_secret_value() == PASSWORD
    assert settings.amqp.management_url
    assert settings.providers.github_token
    assert settings.providers.gitlab_token
    tenants = settings.kubernetes.tenants
    assert tenants["hub-a"].push_secret == "push-a"
    assert tenants["hub-b"].push_secret == "push-b"
    assert "Secret" not in {kind for kind, _ in objects}


def test_credentials_for_git_are_files_of_the_consumer(settings_of: Read) -> None:
    objects = render(EVERYTHING)
    tenants = settings_of(objects).tenants
    spec = consumer(objects)["spec"]

    assert tenants.keys() == {"default", "hub-a", "hub-b"}
    directories = {item["name"]: item["mountPath"] for item in spec["containers"][0]["volumeMounts"]}
    files = {
        f"{directories[volume['name']]}/{item['path']}": (volume["secret"]["secretName"], item["key"])
        for volume in spec["volumes"]
        if volume["name"].startswith("git-")
        for item in volume["secret"]["items"]
    }
    by_https, by_ssh = tenants["hub-a"].git["git.example.org"], tenants["hub-a"].git["git.example.org:2222"]
    app = tenants["hub-a"].git["github.com"]
    assert (by_https.user, app.app_id) == ("reader", "4711")
    assert app.submodule_accounts == ["acme", "acme-data"]
    assert files == {
        str(app.app_key_file): ("app-a", "key"),
        str(by_https.token_file): ("git-a", "token"),
        str(by_ssh.ssh_key_file): ("ssh-a", "key"),
        str(by_ssh.known_hosts_file): ("ssh-a", "known_hosts"),
    }


def test_the_registry_check_of_a_tenant_reads_its_own_credentials(settings_of: Read) -> None:
    objects = render({"pushSecret": "push", "tenantCredentials": {"hub-b": {"pushSecret": "push-b"}}})
    tenants, spec = settings_of(objects).tenants, consumer(objects)["spec"]

    directories = {item["mountPath"]: item["name"] for item in spec["containers"][0]["volumeMounts"]}
    volumes = {item["name"]: item for item in spec["volumes"]}
    mounted = volumes[directories[str(tenants["hub-b"].docker_config)]]["secret"]
    assert mounted["secretName"] == "push-b"
    assert mounted["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


def test_tenants_of_the_settings_keep_their_names_beside_their_credentials(settings_of: Read) -> None:
    tenants = settings_of(render(EVERYTHING, {"config": {"tenants": ["hub-b"]}})).tenants
    assert tenants.keys() == {"hub-a", "hub-b"}


def test_nodes_of_a_tenant_stand_beside_its_credentials(settings_of: Read) -> None:
    toleration = {"key": "builds", "operator": "Equal", "value": "hub-a", "effect": "NoSchedule"}
    nodes = {"hub-a": {"node_selector": {"builds": "hub-a"}, "tolerations": [toleration]}}
    values = {
        "config": {"kubernetes": {"tolerations": []}, "tenants": nodes},
        "dockerApi": {"tolerations": [toleration]},
    }
    settings = settings_of(render(EVERYTHING, values))
    assert settings.tenants["hub-a"].git
    assert settings.tenants["hub-a"].node_selector == {"builds": "hub-a"}
    assert settings.tenants["hub-a"].tolerations == [toleration]
    assert settings.kubernetes.tolerations == [], (
        "the engine tolerates the taint, the builds of others do not"
    )


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
        texts = [
            found["data"]["settings.yaml"] for found in objects if "settings.yaml" in found.get("data", {})
        ]
        sockets |= {yaml.safe_load(text)["kubernetes"]["docker_socket"] for text in texts}
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


@pytest.mark.parametrize(
    ("tenants", "allowed", "expected"),
    [
        ({"hub-a": {"node_selector": {"builds": "hub-a"}}}, True, True),
        ({"hub-a": {"tolerations": [{"operator": "Exists"}]}, "hub-b": {}}, True, True),
        ({"hub-a": {"node_selector": {"builds": "hub-a"}}}, False, False),
        ({"hub-a": {}}, True, False),
        (["hub-a"], True, False),
    ],
    ids=str,
)
def test_nodes_may_be_listed_only_where_a_tenant_has_its_own(
    tenants: Any, allowed: bool, expected: bool
) -> None:
    objects = render({"config": {"tenants": tenants}, "rbac": {"nodes": allowed}})
    roles = [found for (kind, _), found in objects.items() if kind == "ClusterRole"]
    bindings = [found for (kind, _), found in objects.items() if kind == "ClusterRoleBinding"]
    assert (len(roles), len(bindings)) == ((1, 1) if expected else (0, 0))
    if expected:
        assert roles[0]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
        assert bindings[0]["roleRef"]["name"] == roles[0]["metadata"]["name"]
        account = consumer(objects)["spec"]["serviceAccountName"]
        assert [subject["name"] for subject in bindings[0]["subjects"]] == [account]


def test_secrets_may_be_written_only_where_builds_need_their_own() -> None:
    objects = render(EVERYTHING)

    assert rules(objects)["secrets"] == ["list", "create", "patch", "delete"]


def test_hubs_may_create_secrets_of_persons_and_nothing_else(settings_of: Read) -> None:
    hub = {"name": "hub", "namespace": "jupyterhub"}
    objects = render({"personalCredentials": {"namespace": "personal", "hubs": [hub]}})

    assert settings_of(objects).kubernetes.personal_namespace == "personal"
    assert rules(objects)["secrets"] == ["list", "create", "patch", "delete"]
    for name, verbs in {"personal": ["get", "list", "delete"], "hubs": ["create"]}.items():
        role = objects["Role", f"{NAME}-{name}"]
        assert role["metadata"]["namespace"] == "personal"
        assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": verbs}]
    binding = objects["RoleBinding", f"{NAME}-hubs"]
    assert binding["roleRef"]["name"] == f"{NAME}-hubs"
    assert binding["subjects"] == [{"kind": "ServiceAccount", **hub}]


def test_persons_secrets_have_a_namespace_of_their_own() -> None:
    values = {"personalCredentials": {"namespace": NAMESPACE}}
    assert "must be another namespace than that of the release" in refusal(values)
    assert not {f"{NAME}-personal", f"{NAME}-hubs"} & {name for kind, name in render() if kind == "Role"}


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


def test_objects_of_the_removal_exist_only_while_their_job_runs() -> None:
    objects = render()
    hooks = {
        key: found["metadata"].get("annotations", {}).get("helm.sh/hook") for key, found in objects.items()
    }
    shared = {(kind, f"{NAME}-removal") for kind in ("ServiceAccount", "Role", "RoleBinding", "ConfigMap")}

    assert {key: hook for key, hook in hooks.items() if hook not in (None, "test")} == {
        **dict.fromkeys(shared, "pre-delete,post-delete"),
        ("Job", f"{NAME}-end-builds"): "pre-delete",
        ("Job", f"{NAME}-removal"): "post-delete",
    }
    assert not [name for kind, name in render({"removeOnUninstall": False}) if kind == "Job"]


def test_builds_are_ended_with_the_settings_of_the_consumer_even_if_its_secrets_are_gone() -> None:
    objects = render(EVERYTHING)
    pod = objects["Job", f"{NAME}-end-builds"]["spec"]["template"]["spec"]
    data = objects["ConfigMap", f"{NAME}-removal"]["data"]
    [container] = pod["containers"]

    assert data["settings.yaml"] == objects["ConfigMap", f"{NAME}-settings"]["data"]["settings.yaml"]
    [url] = [item for item in container["env"] if item["name"] == "RABBIT2DOCKER_AMQP__URL"]
    assert url["valueFrom"]["secretKeyRef"]["optional"]
    [login] = [item["secret"] for item in pod["volumes"] if item["name"] == "docker-config"]
    assert login["optional"]
