"""Manifests of build pods, and the records read back from them."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.credentials import HostCredential, Login, SshKey
from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec, AttemptStatus, StoredOutcome
from rabbit2docker.consumer.executors.fetch_access import FetchAccess
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import JSON_PATCH
from rabbit2docker.consumer.executors.kubernetes.containers import GIT_DIR, pod_builder_spec
from rabbit2docker.consumer.executors.kubernetes.executor import KubernetesExecutor
from rabbit2docker.consumer.executors.kubernetes.manifest import (
    FINALIZER,
    SPEC,
    STATUS,
    STATUS_VERSION,
    build_pod,
    builder_config_map,
    credentials_name,
    credentials_secret,
    encode_status,
    read_spec,
    read_status,
    status_patch,
    without_finalizer,
)
from rabbit2docker.consumer.executors.kubernetes.models import Pod
from rabbit2docker.consumer.following.follower import TAIL_BYTES
from rabbit2docker.consumer.following.outcome import stored
from rabbit2docker.consumer.following.progress import last_of
from rabbit2docker.consumer.git_files import git_files
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Failed
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.tracing import Trace
from tests.support.kube.patches import read_patch
from tests.support.records import NOW, REQUEST, a_spec

Json = dict[str, Any]

ANNOTATIONS_BYTES: Final = 256 * 1024
"""Limit of the API server for all names and values of an object's annotations together."""
ARGUMENT_BYTES: Final = 128 * 1024
"""Limit of the kernel for one variable of the environment, with its name (MAX_ARG_STRLEN)."""
NODES: Final = ("node-a", "node-b", "node-c", "node-d", "node-e")
SEPARATE: Final = (("builder", ""), ("fetch", "-fetch"), ("cage", "-cage"))
GIVEN: Final = git_files(
    [
        HostCredential(
            "git.example.org", Login("robot", "s3cr3t-t0ken"), SshKey("s3cr3t-key", "git.example.org ssh x")
        )
    ],
    GIT_DIR,
)
assert GIVEN
ACCESS: Final = FetchAccess(
    GIVEN.files,
    {
        "directory": GIT_DIR,
        "config": GIVEN.config,
        "ssh_command": GIVEN.ssh_command,
        "ssh_hosts": ["git.example.org"],
    },
)


def with_kubernetes(**kubernetes: Any) -> Settings:
    return Settings.model_validate({"kubernetes": kubernetes})


def made(
    spec: AttemptSpec | None = None,
    settings: Settings | None = None,
    *,
    status: AttemptStatus | None = None,
    access: FetchAccess | None = None,
    ready_nodes: Sequence[str] = NODES,
) -> Json:
    return build_pod(
        spec or a_spec(),
        status or AttemptStatus(),
        settings or Settings(),
        replica="replica-1",
        builder_map="rabbit2docker-builder-0",
        access=access,
        ready_nodes=ready_nodes,
    )


def as_pod(made: Json) -> Pod:
    """Return the pod as the API server would hand it out."""
    metadata = {**made["metadata"], "uid": "u-1", "resourceVersion": "7"}
    return Pod.model_validate_json(json.dumps({**made, "metadata": metadata}))


def part(made: Json, name: str) -> Json:
    [container] = [item for item in made["spec"]["containers"] if item["name"] == name]
    assert isinstance(container, dict)
    return container


def environment(made: Json, name: str = "builder") -> dict[str, str]:
    return {item["name"]: item["value"] for item in part(made, name)["env"]}


def volumes(made: Json) -> dict[str, Json]:
    return {item["name"]: item for item in made["spec"]["volumes"]}


def mounts(made: Json, name: str = "builder") -> dict[str, Json]:
    return {item["name"]: item for item in part(made, name)["volumeMounts"]}


def preferred_nodes(made: Json) -> list[tuple[int, str]]:
    node = made["spec"]["affinity"].get("nodeAffinity", {})
    found = []
    for item in node.get("preferredDuringSchedulingIgnoredDuringExecution", ()):
        field = item["preference"]["matchFields"][0]
        if field["operator"] == "NotIn":
            continue
        assert (field["key"], field["operator"]) == ("metadata.name", "In")
        found.append((item["weight"], field["values"][0]))
    return found


def avoided_nodes(made: Json) -> list[str]:
    node = made["spec"]["affinity"].get("nodeAffinity", {})
    # Never excluded: the node may be well again, and the only one that can take the pod.
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in node
    found = [
        item["preference"]
        for item in node.get("preferredDuringSchedulingIgnoredDuringExecution", ())
        if item["preference"]["matchFields"][0]["operator"] == "NotIn"
    ]
    if not found:
        return []
    [term] = found
    # The API server takes exactly one value in each of these.
    assert all(
        (field["key"], field["operator"], len(field["values"])) == ("metadata.name", "NotIn", 1)
        for field in term["matchFields"]
    )
    return [field["values"][0] for field in term["matchFields"]]


# -- isolation


def test_a_build_pod_has_neither_a_token_nor_the_addresses_of_the_clusters_services() -> None:
    spec = made()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert "serviceAccountName" not in spec


def test_a_build_pod_has_a_restricted_security_context() -> None:
    pod = made()
    for container in pod["spec"]["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    assert pod["spec"]["securityContext"] == {
        "seccompProfile": {"type": "RuntimeDefault"},
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "runAsNonRoot": True,
        "fsGroup": 1000,
        "supplementalGroups": [2375],
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & pod["spec"].keys()


def test_an_operator_can_choose_the_user_of_the_image_or_root() -> None:
    own = made(settings=with_kubernetes(run_as_user=None, docker_group=None))
    assert own["spec"]["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    root = made(settings=with_kubernetes(run_as_user=0))
    assert root["spec"]["securityContext"]["runAsNonRoot"] is False


def test_credentials_are_mounted_and_never_written_into_the_pod() -> None:
    settings = with_kubernetes(
        push_secret="push-all",
        tenants={"default": {"push_secret": "push-default"}},
    )
    pod = made(settings=settings, access=ACCESS)
    assert "s3cr3t" not in json.dumps(pod)
    for container in pod["spec"]["containers"]:
        assert not any("valueFrom" in item for item in container["env"])
        assert "envFrom" not in container
        read_only = {"git", "docker-config", "builder"} & mounts(pod, container["name"]).keys()
        assert all(mounts(pod, container["name"])[name]["readOnly"] for name in read_only)
    assert "s3cr3t" not in json.dumps(pod_builder_spec(a_spec(), settings, ACCESS))


def test_what_reads_the_repository_has_no_credentials_and_no_engine() -> None:
    settings = with_kubernetes(
        push_secret="push-all",
        env={"HTTPS_PROXY": "http://proxy", "DOCKER_AUTH_CONFIG": "auth", "GIT_CONFIG_VALUE_1": "token"},
    )
    pod = made(settings=settings, access=ACCESS)
    kinds = {name: next(iter(volume.keys() - {"name"})) for name, volume in volumes(pod).items()}
    seen = {name: {kinds[mount] for mount in mounts(pod, name)} for name in ("builder", "fetch", "cage")}
    assert seen["cage"] == {"configMap", "emptyDir"}
    assert environment(pod, "cage").keys() == {"HOME", "USER", "LANG"}
    assert mounts(pod, "fetch").keys() == {"builder", "attempt", "tmp-fetch", "git"}
    assert not [name for name in environment(pod, "fetch") if name.startswith("DOCKER")]
    assert mounts(pod).keys() == {"builder", "attempt", "tmp", "docker-api", "docker-config"}
    directories = [mounts(pod, name)[f"tmp{tail}"] for name, tail in SEPARATE]
    assert len({item["name"] for item in directories}) == 3
    assert "shareProcessNamespace" not in pod["spec"]


def test_the_other_containers_take_nothing_of_the_nodes_beyond_the_pods_reservation() -> None:
    pod = made()
    requests = [container["resources"]["requests"] for container in pod["spec"]["containers"]]
    assert requests[1:] == [{"cpu": "0", "memory": "0"}] * 2


def test_content_that_repo2docker_fetches_itself_needs_no_container_with_credentials_for_git() -> None:
    pod = made(a_spec(content_provider="Zenodo"), access=ACCESS)
    assert [container["name"] for container in pod["spec"]["containers"]] == ["builder", "cage"]
    assert "git" not in volumes(pod)
    assert "fetch" not in json.loads(environment(pod)["RABBIT2DOCKER_BUILD"])["containers"]


def test_the_push_secret_of_a_tenant_replaces_the_common_one() -> None:
    settings = with_kubernetes(push_secret="push-all", tenants={"ada": {"push_secret": "push-ada"}})
    for tenant, secret in (("ada", "push-ada"), ("default", "push-all")):
        pod = made(a_spec(tenant=tenant), settings)
        assert volumes(pod)["docker-config"]["secret"] == {
            "secretName": secret,
            "items": [{"key": ".dockerconfigjson", "path": "config.json"}],
        }
        assert environment(pod)["DOCKER_CONFIG"] == mounts(pod)["docker-config"]["mountPath"]


def test_the_builder_has_the_trace_context_of_the_request() -> None:
    pod = made(a_spec(trace=Trace(parent="00-1-2-3", state="a=1")))
    found = environment(pod)
    assert (found["TRACEPARENT"], found["TRACESTATE"]) == ("00-1-2-3", "a=1")
    assert "TRACEPARENT" not in environment(made())
    assert "TRACEPARENT" not in environment(pod, "cage")


def test_a_tenant_without_credentials_gets_none_mounted() -> None:
    settings = with_kubernetes(tenants={"ada": {"push_secret": "push-ada"}})
    pod = made(settings=settings)
    kept = {"builder", "docker-api", "attempt", "tmp", "tmp-cage", "tmp-fetch"}
    assert volumes(pod).keys() == kept
    for name in ("builder", "fetch"):
        assert mounts(pod, name).keys() <= kept
        assert "DOCKER_CONFIG" not in environment(pod, name)


def test_git_and_ssh_read_their_credentials_from_the_mounted_secret() -> None:
    secret = credentials_secret(Settings(), a_spec("build-1"), ACCESS.files)
    assert secret["stringData"].items() >= ACCESS.files.items()
    assert secret["immutable"] is True
    assert secret["metadata"]["annotations"] == {manifest.FOR: "build-1"}
    pod = made(a_spec("build-1"), access=ACCESS)
    assert volumes(pod)["git"]["secret"] == {"secretName": secret["metadata"]["name"], "defaultMode": 0o400}
    [directory, users] = [item for item in part(pod, "fetch")["volumeMounts"] if item["name"] == "git"]
    read = json.loads(environment(pod)["RABBIT2DOCKER_BUILD"])["git"]
    assert read["directory"] == directory["mountPath"] == GIT_DIR
    assert f"{GIT_DIR}/login_0" in json.dumps(read["config"])
    assert read["ssh_command"] == f"ssh -F {GIT_DIR}/ssh_config"
    # ssh refuses to work for a user without a name.
    assert (users["mountPath"], users["subPath"]) == ("/etc/passwd", "passwd")
    assert "builder:x:1000:1000:" in secret["stringData"]["passwd"]


def test_builds_with_the_same_pod_name_have_different_secrets() -> None:
    name = "a" * 63
    first = credentials_name(a_spec(name))
    assert len(first) <= 253
    assert first != credentials_name(a_spec(name, build_id="another"))
    assert first != credentials_name(a_spec(f"{name[:60]}-a2", build_id=a_spec(name).build_id))


# -- end


def test_the_kubelet_ends_a_pod_after_the_builders_deadline_and_never_restarts_it() -> None:
    pod = made(a_spec(timeout_seconds=600))["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["activeDeadlineSeconds"] > 600 + 60, "builder and service end it before the kubelet does"


def test_a_pod_leaves_an_unreachable_node_within_a_minute() -> None:
    tolerations = made()["spec"]["tolerations"]
    gone = {item["key"]: item for item in tolerations if item["effect"] == "NoExecute"}
    assert gone.keys() == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
    assert all((item["operator"], item["tolerationSeconds"]) == ("Exists", 45) for item in gone.values())


def test_a_finalizer_keeps_the_pod_until_its_end_is_reported() -> None:
    assert made()["metadata"]["finalizers"] == [FINALIZER]


def test_autoscalers_do_not_evict_builds_unless_the_operator_allows_it() -> None:
    key = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    annotations = made()["metadata"]["annotations"]
    assert (annotations[key], annotations["karpenter.sh/do-not-disrupt"]) == ("false", "true")
    other = made(settings=with_kubernetes(annotations={key: "true", SPEC: "invalid"}))
    assert other["metadata"]["annotations"][key] == "true"
    assert read_spec(as_pod(other)) == a_spec(), "an operator cannot spoil the record"


# -- placement


def test_a_pod_runs_only_beside_a_docker_api() -> None:
    labels = {"app": "docker-api"}
    affinity = made(settings=with_kubernetes(docker_api_labels=labels))["spec"]["affinity"]
    [term] = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term == {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}


def test_a_repository_prefers_the_nodes_that_built_it_before() -> None:
    first, second = made(a_spec("one")), made(a_spec("two", resolved_ref="1" * 40))
    assert preferred_nodes(first) == preferred_nodes(second)
    names = [name for _, name in preferred_nodes(first)]
    assert names == ranked(a_spec().repo_url, NODES)[:3]
    assert [weight for weight, _ in preferred_nodes(first)] == [100, 60, 30]
    repositories = [f"https://git.example.org/{number}" for number in range(50)]
    firsts = {preferred_nodes(made(a_spec(repo_url=url)))[0][1] for url in repositories}
    assert firsts == set(NODES), "different repositories spread over all nodes"


def test_the_loss_of_a_node_moves_only_its_own_repositories() -> None:
    gone = preferred_nodes(made())[0][1]
    left = [node for node in NODES if node != gone]
    before = [name for _, name in preferred_nodes(made())]
    after = [name for _, name in preferred_nodes(made(ready_nodes=left))]
    assert after[:2] == before[1:]


def test_a_pod_prefers_no_node_if_no_docker_api_is_ready() -> None:
    assert "nodeAffinity" not in made(ready_nodes=[])["spec"]["affinity"]


def test_nodes_that_failed_the_build_are_avoided_if_another_is_left() -> None:
    pod = made(a_spec(avoid=("node-b", "node-a", "node-b")))
    assert avoided_nodes(pod) == ["node-a", "node-b"]
    assert not {name for _, name in preferred_nodes(pod)} & {"node-a", "node-b"}
    assert avoided_nodes(made(a_spec(avoid=NODES))) == [], "a retry is better than waiting forever"
    assert avoided_nodes(made(a_spec(avoid=("node-a",)), ready_nodes=["node-a"])) == []
    assert avoided_nodes(made()) == []


def test_the_pod_has_the_settings_of_the_operator() -> None:
    toleration = {"key": "builds", "operator": "Exists"}
    settings = with_kubernetes(
        node_selector={"disk": "fast"},
        tolerations=[toleration],
        priority_class="builds",
        image_pull_secrets=["pull"],
        image_pull_policy="Never",
        labels={"team": "a", manifest.COMPONENT: "invalid"},
        env={"HTTPS_PROXY": "http://proxy.example.org", "RABBIT2DOCKER_BUILD": "invalid"},
        memory_limit=None,
        termination_seconds=33,
    )
    pod = made(settings=settings)
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert toleration in spec["tolerations"]
    assert (spec["priorityClassName"], spec["imagePullSecrets"]) == ("builds", [{"name": "pull"}])
    assert spec["terminationGracePeriodSeconds"] == 33
    assert spec["containers"][0]["imagePullPolicy"] == "Never"
    assert spec["containers"][0]["resources"]["limits"] == {}
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["labels"][manifest.COMPONENT] == manifest.BUILD
    assert environment(pod)["HTTPS_PROXY"] == "http://proxy.example.org"
    assert json.loads(environment(pod)["RABBIT2DOCKER_BUILD"]) == pod_builder_spec(a_spec(), settings)


def test_builds_of_a_tenant_run_on_its_own_nodes() -> None:
    ours, theirs = {"key": "builds", "operator": "Exists"}, {"key": "tenant", "value": "ada"}
    settings = Settings.model_validate(
        {
            "kubernetes": {"node_selector": {"disk": "fast", "pool": "common"}, "tolerations": [ours]},
            "tenants": {"ada": {"node_selector": {"pool": "ada"}, "tolerations": [theirs]}, "default": {}},
        }
    )
    found = {
        tenant: made(a_spec(tenant=tenant), settings)["spec"] for tenant in ("ada", "default", "removed")
    }
    assert {tenant: spec["nodeSelector"] for tenant, spec in found.items()} == {
        "ada": {"disk": "fast", "pool": "ada"},
        "default": {"disk": "fast", "pool": "common"},
        "removed": {"disk": "fast", "pool": "common"},
    }
    tolerated = {tenant: spec["tolerations"][-2:] for tenant, spec in found.items()}
    assert tolerated["ada"] == [ours, theirs]
    assert all(theirs not in spec["tolerations"] for tenant, spec in found.items() if tenant != "ada")


def test_limits_and_rules_for_the_fetch_reach_the_builder() -> None:
    settings = Settings.model_validate(
        {
            "builder": {
                "fetch_seconds": 77,
                "fetch_depth": 0,
                "max_repository_bytes": 2**21,
                "max_repository_files": 123,
            },
            "providers": {"allow_private_addresses": True},
        }
    )
    made_spec = pod_builder_spec(a_spec().model_copy(update={"source_ref": "refs/pull/7/head"}), settings)
    expected = {
        "source_ref": "refs/pull/7/head",
        "allow_private_addresses": True,
        "fetch_seconds": 77,
        "fetch_retries": 3,
        "fetch_depth": 0,
        "max_repository_bytes": 2**21,
        "max_repository_files": 123,
    }
    assert made_spec | expected == made_spec


def test_settings_that_the_operator_left_out_are_not_in_the_pod() -> None:
    spec = made()["spec"]
    assert not {"nodeSelector", "priorityClassName", "imagePullSecrets", "nodeName"} & spec.keys()
    assert "imagePullPolicy" not in spec["containers"][0]


# -- container


def test_the_directory_of_the_socket_is_mounted_instead_of_the_socket() -> None:
    pod = made(settings=with_kubernetes(docker_socket="/run/x/docker.sock"))
    assert volumes(pod)["docker-api"]["hostPath"] == {"path": "/run/x", "type": "DirectoryOrCreate"}
    assert mounts(pod)["docker-api"] == {"name": "docker-api", "mountPath": "/run/x"}
    assert json.loads(environment(pod)["RABBIT2DOCKER_BUILD"])["docker_host"] == "unix:///run/x/docker.sock"


def test_the_builders_program_is_mounted_from_an_immutable_config_map() -> None:
    pod = made()
    built = builder_config_map(Settings(), "rabbit2docker-builder-0", "print()")
    assert (built["immutable"], built["data"]) == (True, {"builder.py": "print()"})
    assert volumes(pod)["builder"]["configMap"] == {"name": built["metadata"]["name"]}
    command = pod["spec"]["containers"][0]["command"]
    assert f"{mounts(pod)['builder']['mountPath']}/builder.py" in command
    assert pod["metadata"]["annotations"][manifest.BUILDER_MAP] == built["metadata"]["name"]


def test_the_config_map_is_named_by_the_builders_program() -> None:
    names = [
        KubernetesExecutor(Settings(), builder_text=text)._config_objects.builder_map
        for text in ("a", "b", "a")
    ]
    assert names[0] == names[2] != names[1]
    assert all(len(name) <= 63 for name in names)


def test_the_home_directory_is_writable_while_the_root_is_not() -> None:
    pod = made()
    assert environment(pod)["HOME"] == mounts(pod)["tmp"]["mountPath"]
    assert volumes(pod)["tmp"]["emptyDir"] == {}
    assert "readOnly" not in mounts(pod)["tmp"]


def test_labels_match_the_selector_and_the_limits_of_kubernetes() -> None:
    settings = Settings(instance="an-instance")
    pod = made(a_spec("b" * 63, tenant="t" * 63), settings)
    labels = pod["metadata"]["labels"]
    wanted = dict(part.split("=") for part in manifest.selector(settings, manifest.BUILD).split(","))
    assert wanted.items() <= labels.items()
    assert all(len(value) <= 63 for value in labels.values())
    other = manifest.selector(Settings(instance="other"), manifest.BUILD)
    assert dict(part.split("=") for part in other.split(",")).items() - labels.items()


# -- the record

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
words = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
moments = st.datetimes(timezones=st.just(UTC))
requests = st.builds(
    BuildRequest,
    provider=st.sampled_from(["gh", "git"]),
    spec=st.from_regex(r"[a-z/%<>&é\"\\]{1,40}", fullmatch=True),
    request_id=st.none() | words,
    force=st.booleans(),
    build_args=st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), texts, max_size=3),
    appendix=st.none() | texts.filter(bool),
    timeout_seconds=st.none() | st.integers(10, 86_400),
    not_after=st.none() | moments,
    requester=st.none() | texts,
)
specs = st.builds(
    a_spec,
    name=st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True),
    request=requests,
    repo_url=texts,
    attempt=st.integers(1, 5),
    tenant=st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True),
    queued_at=moments,
    avoid=st.lists(texts, max_size=3).map(tuple),
)
outcomes = st.builds(
    StoredOutcome,
    kind=st.sampled_from(["completed", "failed", "cancelled", "retry"]),
    data=st.dictionaries(texts, st.none() | texts | st.integers() | st.lists(texts, max_size=3), max_size=3),
)
statuses = st.builds(
    AttemptStatus,
    requests=st.dictionaries(words, texts, max_size=3),
    confirmed_line=st.integers(-1, 10**9),
    cancelled_by=st.none() | texts,
    cancel_reason=st.none() | texts,
    cancel_message=st.none() | texts,
    outcome=st.none() | outcomes,
    reported=st.booleans(),
    reported_at=st.none() | moments,
)


@given(specs, statuses)
def test_a_record_reads_back_as_it_was_written(spec: AttemptSpec, status: AttemptStatus) -> None:
    pod = as_pod(made(spec, status=status))
    assert read_spec(pod) == spec
    assert read_status(pod) == status


@given(specs)
def test_the_builders_specification_equals_the_record(spec: AttemptSpec) -> None:
    said = json.loads(environment(made(spec))["RABBIT2DOCKER_BUILD"])
    assert (said["repo_url"], said["ref"], said["image"]) == (spec.repo_url, spec.resolved_ref, spec.image)
    assert (said["build_args"], said["appendix"]) == (spec.request.build_args, spec.request.appendix)


def test_a_pod_with_the_spec_of_another_pod_is_not_a_record() -> None:
    pod = as_pod(made())
    for invalid in ({}, {SPEC: ""}, {SPEC: "{}"}, {SPEC: a_spec("build-2").model_dump_json()}):
        metadata = pod.metadata.model_copy(update={"annotations": invalid})
        assert read_spec(pod.model_copy(update={"metadata": metadata})) is None


def test_an_invalid_status_annotation_reads_as_an_empty_status() -> None:
    pod = as_pod(made())
    metadata = pod.metadata.model_copy(update={"annotations": {STATUS: "{"}})
    assert read_status(pod.model_copy(update={"metadata": metadata})) == AttemptStatus()


def test_a_status_patch_applies_only_to_the_version_that_was_read() -> None:
    pod = as_pod(made())
    steps = status_patch(pod, AttemptStatus(confirmed_line=7))
    assert [(step["op"], step["path"]) for step in steps] == [
        ("test", "/metadata/uid"),
        ("test", "/metadata/annotations/rabbit2docker.io~1status-version"),
        ("add", "/metadata/annotations/rabbit2docker.io~1status-version"),
        ("add", "/metadata/annotations/rabbit2docker.io~1status"),
    ]
    assert [step["value"] for step in steps] == [
        "u-1",
        "0",
        "1",
        encode_status(AttemptStatus(confirmed_line=7)),
    ]


@pytest.mark.parametrize("version", [None, "", "invalid", "41"])
def test_a_status_can_be_written_whatever_its_version_annotation_holds(version: str | None) -> None:
    pod = as_pod(made())
    annotations = {**pod.metadata.annotations, **({STATUS_VERSION: version} if version is not None else {})}
    if version is None:
        del annotations[STATUS_VERSION]
    document = {"metadata": {"uid": "u-1", "annotations": annotations, "name": "build-1"}}
    steps = status_patch(Pod.model_validate(document), AttemptStatus(reported=True))
    changed = Pod.model_validate(read_patch(JSON_PATCH, json.dumps(steps).encode())(document))
    assert read_status(changed) == AttemptStatus(reported=True)
    assert changed.metadata.annotations[STATUS_VERSION] == ("42" if version == "41" else "0")


def test_only_our_finalizer_is_removed_and_only_from_the_pod_that_was_read() -> None:
    pod = as_pod(made())
    others = pod.metadata.model_copy(update={"finalizers": ("other/one", FINALIZER, "other/two")})
    assert without_finalizer(pod.model_copy(update={"metadata": others})) == [
        {"op": "test", "path": "/metadata/uid", "value": "u-1"},
        {"op": "test", "path": "/metadata/finalizers/1", "value": FINALIZER},
        {"op": "remove", "path": "/metadata/finalizers/1"},
    ]
    none = pod.metadata.model_copy(update={"finalizers": ("other/one",)})
    assert without_finalizer(pod.model_copy(update={"metadata": none})) == []


# -- size


def largest_spec() -> AttemptSpec:
    """Return the spec of a request that is as large as a message may be."""
    fields: Json = {
        "provider": "git",
        "spec": "x" * 4096,
        "request_id": "r" * 128,
        "subdir": "d" * 1024,
        "appendix": "\x01" * 2000 + "RUN x\n" * 300,
        "requester": "u" * 256,
        "build_args": {},
    }
    limit = Settings().limits.message_bytes
    for number in range(50):
        fields["build_args"][f"A{number}"] = ""
        room = limit - len(json.dumps(fields, ensure_ascii=False).encode())
        fields["build_args"][f"A{number}"] = "é" * min(2048, room // 2)
    request = BuildRequest.model_validate(fields)
    return a_spec(
        "n" * 63,
        request=request,
        request_id=RequestId("r" * 128),
        build_id=build_id_of("t" * 63, "r" * 128),
        tenant="t" * 63,
        repo_url="https://" + "x" * 4096,
        image="i" * 512,
        fingerprint="f" * 64,
        avoid=("a" * 253,) * 4,
    )


def size_of(annotations: dict[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in annotations.items())


@pytest.mark.parametrize("character", ["x", "é", "\x1b"], ids=["letters", "two bytes", "control characters"])
def test_the_largest_record_fits_into_the_annotations_of_a_pod(character: str) -> None:
    failed = Failed(
        build_id="b" * 36,
        reason=FailureReason.BUILD_STEP_FAILED,
        category=CATEGORY_OF[FailureReason.BUILD_STEP_FAILED],
        message="m" * 600,
        hint=HINT_OF[FailureReason.BUILD_STEP_FAILED],
        failed_step="s" * 1000,
        tail=list(last_of([character * 80] * 1000, max_bytes=TAIL_BYTES)),
        attempt=5,
    )
    status = AttemptStatus(
        requests={f"{number:0128}": "0" * 64 for number in range(150)},
        confirmed_line=10**9,
        cancelled_by="c" * 256,
        outcome=stored(failed),
        reported=True,
        reported_at=NOW,
    )
    annotations = made(largest_spec(), status=status)["metadata"]["annotations"]
    assert size_of(annotations) < ANNOTATIONS_BYTES


def test_the_largest_request_fits_into_the_builders_environment() -> None:
    variables = environment(made(largest_spec()))
    assert all(len(f"{name}={value}".encode()) < ARGUMENT_BYTES for name, value in variables.items())


def test_a_small_record_is_small() -> None:
    assert encode_status(AttemptStatus()) == '{"version":"1.0"}'
    spec = a_spec(name=AttemptName("build-1"), request=REQUEST)
    assert size_of(made(spec)["metadata"]["annotations"]) < 2048
