"""Placement of build pods: the nodes with a ready docker-api, and affinity and tolerations for the scheduler. No I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.executors.kubernetes.models import Manifest, Pod
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import KubernetesSettings
from rabbit2docker.settings.tenants import TenantSettings

MAX_EXTRA_BUILDS: Final = 2
"""A node is preferred for its layer cache only up to this many builds more than the least loaded node has."""
PREFERENCE_WEIGHTS: Final = (100, 60, 30)
"""Scheduler weights of the first nodes in rendezvous order."""
NODE_GONE_SECONDS: Final = 45
"""Eviction delay on an unreachable node, in addition to the about 40 s that the cluster takes to notice."""
# zero-to-jupyterhub's taints: nodes reserved for a hub's users may run builds, too.
USER_NODE_TAINTS: Final = ("hub.jupyter.org/dedicated", "hub.jupyter.org_dedicated")


def ready_nodes(docker_api_pods: Iterable[Pod]) -> list[str]:
    """Return the nodes with a ready docker-api, sorted."""
    found: set[str] = set()
    for pod in docker_api_pods:
        ready = pod.status.condition("Ready")
        is_leaving = pod.metadata.deletion_timestamp is not None
        if ready and ready.status == "True" and pod.spec.node_name and not is_leaving:
            found.add(pod.spec.node_name)
    return sorted(found)


def least_loaded(nodes: Sequence[str], running: Counter[str | None]) -> list[str]:
    """Return the nodes without those that run many more builds than others: a warm cache is not worth a queue."""
    least = min((running[node] for node in nodes), default=0)
    return [node for node in nodes if running[node] <= least + MAX_EXTRA_BUILDS]


def affinity(spec: AttemptSpec, settings: KubernetesSettings, nodes: Sequence[str]) -> Manifest:
    """Return the affinity of an attempt's pod: beside docker-api, preferably where its repository was built before.

    `nodes` are those to prefer. Nodes on which earlier attempts failed are the last choice, as long as another one is
    left: excluded, they would be missed if they are well again and the others cannot take the pod.
    """
    beside_docker_api = {
        "labelSelector": {"matchLabels": settings.docker_api_labels},
        "topologyKey": "kubernetes.io/hostname",
    }
    # Without anti-affinity between builds: the scheduler would weigh it more than the preferred nodes.
    result: Manifest = {
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside_docker_api]}
    }
    candidates = [node for node in nodes if node not in spec.avoid]
    if candidates:
        result["nodeAffinity"] = _node_affinity(spec, candidates)
    return result


def _node_affinity(spec: AttemptSpec, candidates: Sequence[str]) -> Manifest:
    # Ranked by repository, so that the next build of a repository finds the layers of the one before.
    preferred = ranked(spec.repo_url, candidates)
    result: Manifest = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": weight, "preference": _node_selector_term("In", [name])}
            for weight, name in zip(PREFERENCE_WEIGHTS, preferred, strict=False)
        ]
    }
    if spec.avoid:
        avoided = _node_selector_term("NotIn", sorted(set(spec.avoid)))
        result["preferredDuringSchedulingIgnoredDuringExecution"].append(
            {"weight": PREFERENCE_WEIGHTS[0], "preference": avoided}
        )
    return result


def _node_selector_term(operator: str, nodes: Sequence[str]) -> Manifest:
    # By the node's name, not its hostname label, as a pod's nodeName is the name.
    return {
        "matchFields": [{"key": "metadata.name", "operator": operator, "values": [node]} for node in nodes]
    }


def node_labels(settings: KubernetesSettings, tenant: TenantSettings) -> dict[str, str]:
    """Return the labels that the node of a build pod must have; those of the tenant take precedence."""
    return {**settings.node_selector, **tenant.node_selector}


def tolerations(settings: KubernetesSettings, tenant: TenantSettings) -> list[Manifest]:
    """Return the tolerations of a build pod: nodes for users, lost nodes for a limited time, the operator's, the tenant's."""
    user_nodes: list[Manifest] = [
        {"key": key, "operator": "Equal", "value": "user", "effect": "NoSchedule"} for key in USER_NODE_TAINTS
    ]
    lost_nodes: list[Manifest] = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_GONE_SECONDS}
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    ]
    return [*user_nodes, *lost_nodes, *settings.tolerations, *tenant.tolerations]
