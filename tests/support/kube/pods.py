"""Pods as the components of a cluster fill them in."""

from datetime import datetime
from typing import Any

from tests.support.kube.objects import Json, stamp

BUILDER = "builder"
DOCKER_API = "docker-api"
COMPONENT = "app.kubernetes.io/component"


def default_pod(data: Json) -> None:
    """Fill in the defaults of the API server."""
    spec = data.setdefault("spec", {})
    defaults = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }
    for key, value in defaults.items():
        spec.setdefault(key, value)
    for container in spec.get("containers", ()):
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("imagePullPolicy", "IfNotPresent")
    data["status"] = {"phase": "Pending", "qosClass": "Burstable"}


def note_manager(data: Json, manager: str, at: datetime) -> None:
    """Add the managed fields, which make up a third of a real pod."""
    fields = {key: _fields(data[key]) for key in ("metadata", "spec", "data") if key in data}
    entry = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": data.get("apiVersion", "v1"),
        "time": stamp(at),
        "fieldsType": "FieldsV1",
        "fieldsV1": {f"f:{key}": value for key, value in fields.items()},
    }
    data["metadata"].setdefault("managedFields", []).append(entry)


def _fields(value: Any) -> Json:
    if isinstance(value, dict):
        return {f"f:{key}": _fields(item) for key, item in value.items()}
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and "name" in item]
        return {f'k:{{"name":"{item["name"]}"}}': {".": {}, **_fields(item)} for item in named}
    return {}


def builder_of(data: Json) -> str:
    """Return the name of the pod's first container."""
    name: str = data["spec"]["containers"][0]["name"]
    return name


def container_status(data: Json) -> Json | None:
    """Return the status of the pod's first container, if a kubelet has written one."""
    statuses = data["status"].get("containerStatuses") or ()
    return statuses[0] if statuses else None


def set_container(data: Json, state: Json) -> None:
    """Write the state of the first container, and the parts of the pod that depend on it."""
    container = data["spec"]["containers"][0]
    running = "running" in state
    known = container_status(data) or {}
    status: Json = {
        "name": container["name"],
        "state": state,
        "lastState": {},
        "ready": running,
        "restartCount": 0,
        "image": container["image"],
        "imageID": known.get("imageID", ""),
        "started": running,
    }
    if known.get("containerID"):
        status["containerID"] = known["containerID"]
    if running:
        status["imageID"] = f"{container['image'].partition(':')[0]}@sha256:{'5e' * 32}"
        status["containerID"] = f"containerd://{data['metadata']['uid'].replace('-', '') * 2}"
    data["status"]["containerStatuses"] = [status]


def set_condition(
    data: Json, kind: str, value: str, at: datetime, *, reason: str | None = None, message: str | None = None
) -> None:
    """Write a condition, replacing the one of its type."""
    others = [item for item in data["status"].get("conditions") or () if item["type"] != kind]
    condition: Json = {
        "type": kind,
        "status": value,
        "lastProbeTime": None,
        "lastTransitionTime": stamp(at),
    }
    condition |= {key: text for key, text in (("reason", reason), ("message", message)) if text is not None}
    data["status"]["conditions"] = [*others, condition]


def docker_api_pod(node: str) -> Json:
    """Return a docker-api pod of a DaemonSet."""
    return {
        "metadata": {
            "name": f"{DOCKER_API}-{node}",
            "labels": {
                "app.kubernetes.io/name": "rabbit2docker",
                COMPONENT: DOCKER_API,
                "pod-template-generation": "1",
            },
        },
        "spec": {"nodeName": node, "containers": [{"name": DOCKER_API, "image": "docker-api:test"}]},
    }


def wanted_nodes(data: Json, nodes: list[str]) -> list[str]:
    """Return the nodes that a pod may run on, the preferred ones first; only names of nodes are supported."""
    affinity = (data["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required:
        nodes = [node for node in nodes if any(_fits(node, term) for term in required["nodeSelectorTerms"])]
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()

    def weight(node: str) -> int:
        return sum(item["weight"] for item in preferred if _fits(node, item["preference"]))

    return sorted(nodes, key=weight, reverse=True)


def _fits(node: str, term: Json) -> bool:
    names = [*term.get("matchFields", ()), *term.get("matchExpressions", ())]
    return all((node in item["values"]) is (item["operator"] == "In") for item in names)
