"""Manifests of the objects that the executor creates, and the records read back from them. No I/O.

The pod is the record of an attempt: its annotations hold the AttemptSpec and the AttemptStatus, its status the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptSpec, AttemptStatus
from rabbit2docker.consumer.executors.fetch_access import FetchAccess
from rabbit2docker.consumer.executors.kubernetes.containers import PASSWD, containers, passwd, volumes
from rabbit2docker.consumer.executors.kubernetes.models import Manifest, Pod
from rabbit2docker.consumer.executors.kubernetes.placement import affinity, node_labels, tolerations
from rabbit2docker.consumer.executors.kubernetes.pod_status import BUILDER_CONTAINER
from rabbit2docker.consumer.executors.record_format import decode, encode
from rabbit2docker.settings import Settings
from rabbit2docker.settings.tenants import TenantSettings

PREFIX: Final = "rabbit2docker.io/"
SPEC: Final = f"{PREFIX}spec"
STATUS: Final = f"{PREFIX}status"
STATUS_VERSION: Final = f"{PREFIX}status-version"
"""Counts the updates of the status, for compare-and-swap.

The status itself cannot be compared: the API server compares JSON text, and escapes `<`, `>` and `&` where we do not.
"""
FINALIZER: Final = f"{PREFIX}outcome"
"""Keeps the record of a deleted pod readable until the build's end is reported."""
REPLICA: Final = f"{PREFIX}replica"
BUILDER_MAP: Final = f"{PREFIX}builder"
"""Name of the ConfigMap with the builder's program that a pod runs."""
FOR: Final = f"{PREFIX}for"
"""Name of the pod that a Secret was created for."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
BUILD: Final = "build"
BUILDER: Final = "builder"
CREDENTIALS: Final = "credentials"
MAX_NAME_LENGTH: Final = 253

DEADLINE_MARGIN_SECONDS: Final = 120
"""Added to the build's time limit for the kubelet's deadline, so that builder and service enforce theirs first."""


def labels(settings: Settings, component: str) -> dict[str, str]:
    """Return the labels that identify this installation's objects of a component."""
    return {
        "app.kubernetes.io/name": "rabbit2docker",
        MANAGED_BY: "rabbit2docker",
        INSTANCE: settings.instance,
        COMPONENT: component,
    }


def selector(settings: Settings, component: str) -> str:
    """Return the label selector for this installation's objects of a component."""
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
    """Return the name of the attempt's Secret, unique even among builds whose pods share a name."""
    return f"{spec.name}-{spec.build_id}"[:MAX_NAME_LENGTH]


def credentials_secret(settings: Settings, spec: AttemptSpec, files: Mapping[str, str]) -> Manifest:
    """Return the Secret with the git credentials that the attempt fetches its repository with."""
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
        "stringData": {**files, PASSWD: passwd(settings)},
    }


def build_pod(
    spec: AttemptSpec,
    status: AttemptStatus,
    settings: Settings,
    *,
    replica: str,
    builder_map: str,
    access: FetchAccess | None,
    ready_nodes: Sequence[str],
) -> Manifest:
    """Return the pod of an attempt.

    `access` is the content of its Secret, if it has one; `ready_nodes` are the nodes with a ready docker-api.
    """
    kubernetes = settings.kubernetes
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "labels": {
                **kubernetes.labels,
                **labels(settings, BUILD),
                f"{PREFIX}build-id": spec.build_id,
                f"{PREFIX}tenant": spec.tenant,
                f"{PREFIX}attempt": str(spec.attempt),
                REPLICA: replica,
            },
            "annotations": {
                # Otherwise autoscalers evict builds to consolidate nodes.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
                "kubectl.kubernetes.io/default-container": BUILDER_CONTAINER,
                **kubernetes.annotations,
                f"{PREFIX}request-id": spec.request_id,
                f"{PREFIX}repo-url": spec.repo_url,
                f"{PREFIX}ref": spec.resolved_ref,
                f"{PREFIX}image": spec.image,
                BUILDER_MAP: builder_map,
                SPEC: encode(spec, exclude_defaults=True),
                STATUS: encode_status(status),
                STATUS_VERSION: "0",
            },
            "finalizers": [FINALIZER],
        },
        "spec": _pod_spec(spec, settings, builder_map, access, ready_nodes),
    }


def _pod_spec(
    spec: AttemptSpec,
    settings: Settings,
    builder_map: str,
    access: FetchAccess | None,
    ready_nodes: Sequence[str],
) -> Manifest:
    kubernetes = settings.kubernetes
    # One whose requests still wait may have been removed from the settings.
    tenant = settings.tenants.get(spec.tenant, TenantSettings())
    parts = containers(spec, settings, access)
    credentials = credentials_name(spec) if access else None
    pod: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": spec.timeout_seconds + DEADLINE_MARGIN_SECONDS,
        "terminationGracePeriodSeconds": kubernetes.termination_seconds,
        # The code of repositories must find neither an API token nor the addresses of the cluster's services.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": affinity(spec, kubernetes, ready_nodes),
        "tolerations": tolerations(kubernetes, tenant),
        "securityContext": _pod_security_context(settings),
        "containers": parts,
        "volumes": volumes(spec, settings, parts, builder_map=builder_map, credentials=credentials),
    }
    if selected := node_labels(kubernetes, tenant):
        pod["nodeSelector"] = selected
    if kubernetes.service_account:
        pod["serviceAccountName"] = kubernetes.service_account
    if kubernetes.priority_class:
        pod["priorityClassName"] = kubernetes.priority_class
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    return pod


def _pod_security_context(settings: Settings) -> Manifest:
    user, group = settings.kubernetes.run_as_user, settings.kubernetes.docker_group
    security: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user is not None:
        security |= {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": user != 0, "fsGroup": user}
    if group is not None:
        security["supplementalGroups"] = [group]
    return security


# -- records


def encode_status(status: AttemptStatus) -> str:
    """Return the status as its annotation holds it."""
    return encode(status, exclude_defaults=True)


def read_spec(pod: Pod) -> AttemptSpec | None:
    """Return the AttemptSpec that the pod holds; None if the pod is not a record of this service. Raises NewerRecord."""
    try:
        spec = decode(AttemptSpec, pod.metadata.annotations.get(SPEC, ""))
    except ValueError:
        return None
    return spec if spec.name == pod.metadata.name else None


def read_status(pod: Pod) -> AttemptStatus:
    """Return the AttemptStatus that the pod holds; an empty one if the annotation is invalid. Raises NewerRecord."""
    try:
        return decode(AttemptStatus, pod.metadata.annotations.get(STATUS, "{}"))
    except ValueError:
        return AttemptStatus()


def status_patch(pod: Pod, status: AttemptStatus) -> list[Manifest]:
    """Return the JSON patch that writes the status; it fails if the status changed since `pod` was read."""
    version = pod.metadata.annotations.get(STATUS_VERSION, "")
    steps: list[Manifest] = [{"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid}]
    if version:
        steps.append({"op": "test", "path": _annotation(STATUS_VERSION), "value": version})
    next_version = str(int(version) + 1) if version.isdigit() else "0"
    return [
        *steps,
        {"op": "add", "path": _annotation(STATUS_VERSION), "value": next_version},
        {"op": "add", "path": _annotation(STATUS), "value": encode_status(status)},
    ]


def _annotation(name: str) -> str:
    return "/metadata/annotations/" + name.replace("~", "~0").replace("/", "~1")


def without_finalizer(pod: Pod) -> list[Manifest]:
    """Return the JSON patch that removes our finalizer from the pod; empty if it has none."""
    if FINALIZER not in pod.metadata.finalizers:
        return []
    path = f"/metadata/finalizers/{pod.metadata.finalizers.index(FINALIZER)}"
    return [
        {"op": "test", "path": "/metadata/uid", "value": pod.metadata.uid},
        {"op": "test", "path": path, "value": FINALIZER},
        {"op": "remove", "path": path},
    ]
