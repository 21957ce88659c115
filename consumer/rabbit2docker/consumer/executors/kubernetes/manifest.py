"""Pure: the objects that we make in the cluster, and what is read back from them.

The pod is the record: what never changes and what the service notes are annotations, the rest is its status.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import AttemptSpec, AttemptStatus
from rabbit2docker.consumer.executors.builder_io import builder_spec
from rabbit2docker.consumer.executors.kubernetes.models import Pod
from rabbit2docker.consumer.executors.kubernetes.pod_status import BUILDER_CONTAINER
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import Settings

Manifest = dict[str, Any]

OURS: Final = "rabbit2docker.io/"
SPEC: Final = f"{OURS}spec"
STATUS: Final = f"{OURS}status"
STATUS_VERSION: Final = f"{OURS}status-version"
"""Counts the writings of the status: what a compare-and-swap compares.

Not the status themselves, as the API server compares text as it is escaped, and escapes `<`, `>` and `&` where we do not.
"""
FINALIZER: Final = f"{OURS}outcome"
"""Keeps the record readable when somebody deletes the pod, until the build's end is told."""
REPLICA: Final = f"{OURS}replica"
BUILDER_MAP: Final = f"{OURS}builder"
"""The ConfigMap that a pod runs."""
FOR: Final = f"{OURS}for"
"""The pod that a Secret is for."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
BUILD: Final = "build"
BUILDER: Final = "builder"
CREDENTIALS: Final = "credentials"
MAX_NAME_LENGTH: Final = 253

DEADLINE_GRACE_SECONDS: Final = 120
"""The kubelet's own deadline is the last one: builder and service have theirs before it."""
NODE_GONE_SECONDS: Final = 45
"""How long a pod stays on a node that does not answer, on top of the cluster's own patience of about 40 s."""
HOME: Final = "/tmp"
BUILDER_DIR: Final = "/etc/rabbit2docker/builder"
DOCKER_CONFIG_DIR: Final = "/etc/rabbit2docker/docker"
GIT_DIR: Final = "/etc/rabbit2docker/git"
GIT_FILE: Final = "credentials"
SPEC_VARIABLE: Final = "RABBIT2DOCKER_BUILD"
PREFERRED_NODES: Final = 3
# Nodes that a hub reserves for its users may build, too (zero-to-jupyterhub's names).
USER_NODE_TAINTS: Final = ("hub.jupyter.org/dedicated", "hub.jupyter.org_dedicated")


def labels(settings: Settings, component: str) -> dict[str, str]:
    """Return the labels by which our objects are found."""
    return {
        "app.kubernetes.io/name": "rabbit2docker",
        MANAGED_BY: "rabbit2docker",
        INSTANCE: settings.instance,
        COMPONENT: component,
    }


def selector(settings: Settings, component: str) -> str:
    """Return the label selector for our objects of a component."""
    return f"{MANAGED_BY}=rabbit2docker,{INSTANCE}={settings.instance},{COMPONENT}={component}"


def builder_config_map(settings: Settings, name: str, text: str) -> Manifest:
    """Return the immutable ConfigMap with the builder's program."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels(settings, BUILDER)},
        "immutable": True,
        "data": {"builder.py": text},
    }


def credentials_name(spec: AttemptSpec) -> str:
    """Return the name of the attempt's Secret; no other build's pod of the same name had it."""
    return f"{spec.name}-{spec.build_id}"[:MAX_NAME_LENGTH]


def credentials_secret(settings: Settings, spec: AttemptSpec, git_credentials: str) -> Manifest:
    """Return the Secret with what the attempt needs to fetch its repository."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": credentials_name(spec),
            "labels": labels(settings, CREDENTIALS),
            "annotations": {FOR: spec.name},
        },
        "immutable": True,
        "type": "Opaque",
        "stringData": {
            GIT_FILE: git_credentials if git_credentials.endswith("\n") else git_credentials + "\n"
        },
    }


def build_pod(
    spec: AttemptSpec,
    status: AttemptStatus,
    settings: Settings,
    *,
    replica: str,
    builder_map: str,
    credentials: str | None,
    ready_nodes: Sequence[str],
) -> Manifest:
    """Return the pod of an attempt; `credentials` names its Secret, `ready_nodes` those with a ready docker-api."""
    kubernetes = settings.kubernetes
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "labels": {
                **kubernetes.labels,
                **labels(settings, BUILD),
                f"{OURS}build-id": spec.build_id,
                f"{OURS}tenant": spec.tenant,
                f"{OURS}attempt": str(spec.attempt),
                REPLICA: replica,
            },
            "annotations": {
                # Whoever tidies up nodes would otherwise end builds to pack pods closer.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
                **kubernetes.annotations,
                f"{OURS}request-id": spec.request_id,
                f"{OURS}repo-url": spec.repo_url,
                f"{OURS}ref": spec.resolved_ref,
                f"{OURS}image": spec.image,
                BUILDER_MAP: builder_map,
                SPEC: spec.model_dump_json(exclude_defaults=True),
                STATUS: encode_status(status),
                STATUS_VERSION: "0",
            },
            "finalizers": [FINALIZER],
        },
        "spec": _pod_spec(spec, settings, builder_map, credentials, ready_nodes),
    }


def _pod_spec(
    spec: AttemptSpec,
    settings: Settings,
    builder_map: str,
    credentials: str | None,
    ready_nodes: Sequence[str],
) -> Manifest:
    kubernetes = settings.kubernetes
    mounts, volumes = _volumes(spec, settings, builder_map, credentials)
    pod: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": spec.timeout_seconds + DEADLINE_GRACE_SECONDS,
        "terminationGracePeriodSeconds": kubernetes.termination_seconds,
        # Users' code must find neither a token nor the addresses of the cluster's services.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": _affinity(spec, settings, ready_nodes),
        "tolerations": _tolerations(settings),
        "securityContext": _pod_security(settings),
        "containers": [_container(spec, settings, credentials, mounts)],
        "volumes": volumes,
    }
    if kubernetes.node_selector:
        pod["nodeSelector"] = kubernetes.node_selector
    if kubernetes.priority_class:
        pod["priorityClassName"] = kubernetes.priority_class
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    return pod


def _container(
    spec: AttemptSpec, settings: Settings, credentials: str | None, mounts: list[Manifest]
) -> Manifest:
    kubernetes = settings.kubernetes
    limits = {"memory": kubernetes.memory_limit} if kubernetes.memory_limit else {}
    container: Manifest = {
        "name": BUILDER_CONTAINER,
        "image": settings.builder.image,
        # -I: nothing that lies in the working directory may pass for a module.
        "command": ["python3", "-I", f"{BUILDER_DIR}/builder.py", "--spec-env", SPEC_VARIABLE],
        "env": [
            {"name": name, "value": value}
            for name, value in _environment(spec, settings, with_git=credentials is not None).items()
        ],
        "resources": {
            "requests": {"cpu": kubernetes.cpu_request, "memory": kubernetes.memory_request},
            "limits": limits,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # Where the builder cannot even start, the end of its output says why.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if kubernetes.image_pull_policy:
        container["imagePullPolicy"] = kubernetes.image_pull_policy
    return container


def _environment(spec: AttemptSpec, settings: Settings, *, with_git: bool) -> dict[str, str]:
    environment = {
        "HOME": HOME,
        "USER": "builder",
        "LANG": "C.UTF-8",
        # Beside the config, as usual, it could not be written.
        "BUILDX_CONFIG": f"{HOME}/.buildx",
        **settings.kubernetes.env,
        SPEC_VARIABLE: json.dumps(pod_builder_spec(spec, settings), ensure_ascii=False),
    }
    if push_secret(spec, settings):
        environment["DOCKER_CONFIG"] = DOCKER_CONFIG_DIR
    if with_git:
        environment |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": f"store --file={GIT_DIR}/{GIT_FILE}",
        }
    return environment


def pod_builder_spec(spec: AttemptSpec, settings: Settings) -> Manifest:
    """Return what the builder is told; no credentials are among it."""
    return {
        **builder_spec(spec, settings.builder),
        "docker_host": f"unix://{settings.kubernetes.docker_socket}",
    }


def push_secret(spec: AttemptSpec, settings: Settings) -> str | None:
    """Return the Secret with the registry credentials for the attempt."""
    tenant = settings.kubernetes.tenants.get(spec.tenant)
    return (tenant.push_secret if tenant else None) or settings.kubernetes.push_secret


def git_credentials(spec: AttemptSpec, settings: Settings) -> str | None:
    """Return the tenant's credentials for private repositories."""
    tenant = settings.kubernetes.tenants.get(spec.tenant)
    return tenant.git_credentials.get_secret_value() if tenant and tenant.git_credentials else None


def _volumes(
    spec: AttemptSpec, settings: Settings, builder_map: str, credentials: str | None
) -> tuple[list[Manifest], list[Manifest]]:
    directory = settings.kubernetes.docker_socket.rpartition("/")[0]
    mounts: list[Manifest] = [
        {"name": "builder", "mountPath": BUILDER_DIR, "readOnly": True},
        {"name": "docker-api", "mountPath": directory},
        {"name": "tmp", "mountPath": HOME},
    ]
    volumes: list[Manifest] = [
        {"name": "builder", "configMap": {"name": builder_map}},
        # The directory, not the socket: an engine that restarts makes a new one, and one that is late is waited for.
        {"name": "docker-api", "hostPath": {"path": directory, "type": "DirectoryOrCreate"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if secret := push_secret(spec, settings):
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        mounts.append({"name": "docker-config", "mountPath": DOCKER_CONFIG_DIR, "readOnly": True})
        volumes.append({"name": "docker-config", "secret": {"secretName": secret, "items": items}})
    if credentials:
        mounts.append({"name": "git", "mountPath": GIT_DIR, "readOnly": True})
        volumes.append({"name": "git", "secret": {"secretName": credentials}})
    return mounts, volumes


def _affinity(spec: AttemptSpec, settings: Settings, ready_nodes: Sequence[str]) -> Manifest:
    good = [node for node in ready_nodes if node not in spec.avoid]
    # By the repository: its next version finds the layers of this one.
    preferred = ranked(spec.repo_url, good)[:PREFERRED_NODES]
    weights = (100, 60, 30)
    node: Manifest = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": weight, "preference": _on("In", [name])}
            for weight, name in zip(weights, preferred, strict=False)
        ]
    }
    if spec.avoid and good:
        # Only where there is another node: on the last one it is better to try again than to wait for ever.
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [_on("NotIn", sorted(set(spec.avoid)))]
        }
    beside = {
        "labelSelector": {"matchLabels": settings.kubernetes.docker_api_labels},
        "topologyKey": "kubernetes.io/hostname",
    }
    # No anti-affinity between builds: the scheduler would weigh it more than the preferred nodes.
    affinity: Manifest = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}}
    if preferred:
        affinity["nodeAffinity"] = node
    return affinity


def _on(operator: str, nodes: Sequence[str]) -> Manifest:
    # By the node's name, not its hostname label: that is what a pod's nodeName says.
    return {
        "matchFields": [{"key": "metadata.name", "operator": operator, "values": [node]} for node in nodes]
    }


def _tolerations(settings: Settings) -> list[Manifest]:
    gone = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return [
        *(
            {"key": key, "operator": "Equal", "value": "user", "effect": "NoSchedule"}
            for key in USER_NODE_TAINTS
        ),
        *(
            {
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": NODE_GONE_SECONDS,
            }
            for key in gone
        ),
        *settings.kubernetes.tolerations,
    ]


def _pod_security(settings: Settings) -> Manifest:
    user, group = settings.kubernetes.run_as_user, settings.kubernetes.docker_group
    security: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user is not None:
        security |= {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": user != 0, "fsGroup": user}
    if group is not None:
        security["supplementalGroups"] = [group]
    return security


# -- reading back


def encode_status(status: AttemptStatus) -> str:
    """Return the status as they are written."""
    return status.model_dump_json(exclude_defaults=True)


def read_spec(pod: Pod) -> AttemptSpec | None:
    """Return what the attempt is about; None for a pod that is no record of ours."""
    try:
        spec = AttemptSpec.model_validate_json(pod.metadata.annotations.get(SPEC, ""))
    except ValidationError:
        return None
    return spec if spec.name == pod.metadata.name else None


def read_status(pod: Pod) -> AttemptStatus:
    """Return the status; empty ones when somebody spoilt them."""
    try:
        return AttemptStatus.model_validate_json(pod.metadata.annotations.get(STATUS, "{}"))
    except ValidationError:
        return AttemptStatus()


def status_patch(pod: Pod, status: AttemptStatus) -> list[Manifest]:
    """Return the JSON patch that writes the status, if nobody has written them since `pod` was read."""
    version = pod.metadata.annotations.get(STATUS_VERSION, "")
    steps: list[Manifest] = [{"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid}]
    if version:
        steps.append({"op": "test", "path": _annotation(STATUS_VERSION), "value": version})
    following = str(int(version) + 1) if version.isdigit() else "0"
    return [
        *steps,
        {"op": "add", "path": _annotation(STATUS_VERSION), "value": following},
        {"op": "add", "path": _annotation(STATUS), "value": encode_status(status)},
    ]


def _annotation(name: str) -> str:
    return "/metadata/annotations/" + name.replace("~", "~0").replace("/", "~1")


def without_finalizer(pod: Pod) -> list[Manifest]:
    """Return the JSON patch that takes our finalizer off the pod; empty when it has none."""
    if FINALIZER not in pod.metadata.finalizers:
        return []
    path = f"/metadata/finalizers/{pod.metadata.finalizers.index(FINALIZER)}"
    return [
        {"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid},
        {"op": "test", "path": path, "value": FINALIZER},
        {"op": "remove", "path": path},
    ]
