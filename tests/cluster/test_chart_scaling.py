"""Scaling: consumers and placeholders by KEDA, the hub's service by a HorizontalPodAutoscaler."""

import re
from typing import Any

import pytest
import yaml

from rabbit2docker.amqp.topology import make_topology, waiting_queues
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import BULK_QUEUE, REQUESTS_QUEUE
from tests.cluster.rendering import NAME, Objects, Values, docker_api, refusal, render

MANAGEMENT: Values = {"amqp": {"managementUrlKey": "management"}}
CONSUMER: Values = {"consumer": {"autoscaling": {"enabled": True, "maxReplicas": 5}}}
PLACEHOLDERS: Values = {"placeholders": {"enabled": True}}
SCALED: Values = {"placeholders": {"enabled": True, "autoscaling": {"enabled": True, "buildsPerNode": 3}}}
HUB: Values = {
    "hubService": {
        "enabled": True,
        "database": {"existingSecret": "database"},
        "autoscaling": {"enabled": True, "memoryPercent": 70},
    }
}
PLACEHOLDER = f"{NAME}-placeholder"


def triggers(objects: Objects, name: str) -> dict[str, Any]:
    return {found["name"]: found for found in objects["ScaledObject", name]["spec"]["triggers"]}


def test_nothing_is_scaled_unless_it_is_wanted() -> None:
    kinds = {kind for kind, _ in render(MANAGEMENT)}

    assert not kinds & {"ScaledObject", "TriggerAuthentication", "HorizontalPodAutoscaler", "PriorityClass"}


def test_consumers_are_scaled_by_all_requests_that_wait() -> None:
    objects = render(MANAGEMENT, CONSUMER)

    scaled = objects["ScaledObject", NAME]["spec"]
    assert "replicas" not in objects["Deployment", NAME]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 5)
    assert "fallback" not in scaled, "it would take consumers away, and hide the reason"
    waiting = triggers(objects, NAME)["waiting"]
    counted = re.compile(waiting["metadata"]["queueName"])
    tenants = ["hub-a", "log"]
    found = {queue.name for queue in make_topology(tenants).queues if counted.search(queue.name)}
    assert found == {REQUESTS_QUEUE, BULK_QUEUE, *waiting_queues(tenants)}
    assert not counted.search("hub.builds.requests")
    [secret] = objects["TriggerAuthentication", waiting["authenticationRef"]["name"]]["spec"][
        "secretTargetRef"
    ]
    assert secret == {"parameter": "host", "name": "rabbitmq", "key": "management"}


def test_keda_may_have_a_secret_of_its_own() -> None:
    own = {"keda": {"existingSecret": "monitoring", "managementUrlKey": "url", "virtualHost": "builds"}}
    objects = render(own, CONSUMER)

    [secret] = objects["TriggerAuthentication", NAME]["spec"]["secretTargetRef"]
    assert (secret["name"], secret["key"]) == ("monitoring", "url")
    assert triggers(objects, NAME)["waiting"]["metadata"]["vhostName"] == "builds"


def test_an_uninstall_keeps_keda_from_starting_consumers_again() -> None:
    objects = render(MANAGEMENT, CONSUMER)

    [stop] = objects["Job", f"{NAME}-end-builds"]["spec"]["template"]["spec"]["initContainers"]
    assert {"name": "SCALED", "value": "true"} in stop["env"]
    rule = {
        "apiGroups": ["keda.sh"],
        "resources": ["scaledobjects"],
        "resourceNames": [NAME],
        "verbs": ["delete"],
    }
    assert rule in objects["Role", f"{NAME}-removal"]["rules"]
    assert "keda.sh" not in str(render()["Role", f"{NAME}-removal"])


def test_placeholders_stand_where_docker_api_does_one_on_each_node_and_give_way() -> None:
    where: Values = {
        "dockerApi": {
            "nodeSelector": {"pool": "builds"},
            "tolerations": [{"key": "builds", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
            },
        }
    }
    objects = render(PLACEHOLDERS, where)

    deployment = objects["Deployment", PLACEHOLDER]["spec"]
    pod, engine = deployment["template"]["spec"], docker_api(objects)["spec"]
    assert deployment["replicas"] == 1
    assert (pod["nodeSelector"], pod["tolerations"]) == (engine["nodeSelector"], engine["tolerations"])
    assert pod["affinity"]["nodeAffinity"] == engine["affinity"]["nodeAffinity"]
    [apart] = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["template"]["metadata"]["labels"]
    assert apart["labelSelector"]["matchLabels"].items() <= labels.items()
    priority = objects["PriorityClass", pod["priorityClassName"]]
    assert -10 <= priority["value"] < 0
    assert ("ScaledObject", PLACEHOLDER) not in objects


def test_placeholders_follow_the_builds_that_run_and_wait() -> None:
    objects = render(SCALED, MANAGEMENT)

    scaled = objects["ScaledObject", PLACEHOLDER]["spec"]
    assert "replicas" not in objects["Deployment", PLACEHOLDER]["spec"]
    assert scaled["minReplicaCount"] == 0
    assert "advanced" not in scaled, "each trigger counts also where the other one fails"
    found = triggers(objects, PLACEHOLDER)
    assert {name: each["metadata"]["value"] for name, each in found.items()} == {
        "builds": "3",
        "waiting": "3",
    }


def test_replicas_come_and_go_as_fast_as_the_values_say() -> None:
    slowly = {"scaleDown": {"stabilizationWindowSeconds": 900}}
    behavior: Values = {"autoscaling": {"behavior": slowly}}
    objects = render(SCALED, MANAGEMENT, CONSUMER, {"consumer": behavior, "placeholders": behavior})

    for name in (NAME, PLACEHOLDER):
        advanced = objects["ScaledObject", name]["spec"]["advanced"]
        assert advanced == {"horizontalPodAutoscalerConfig": {"behavior": slowly}}


def test_placeholders_count_the_pods_that_consumers_make(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render(SCALED, {"config": {"instance": "other"}})
    settings = Settings(**yaml.safe_load(objects["ConfigMap", f"{NAME}-settings"]["data"]["settings.yaml"]))

    [selector] = [each["metadata"]["podSelector"] for each in triggers(objects, PLACEHOLDER).values()]
    wanted = dict(pair.split("=") for pair in selector.split(","))
    assert wanted.items() <= manifest.labels(settings, manifest.BUILD).items()
    assert ("TriggerAuthentication", NAME) not in objects, "the queues' length is not known"


def test_an_existing_priority_class_is_used() -> None:
    own = {"placeholders": {"priorityClass": {"create": False}, "priorityClassName": "low"}}
    objects = render(PLACEHOLDERS, own)

    assert objects["Deployment", PLACEHOLDER]["spec"]["template"]["spec"]["priorityClassName"] == "low"
    assert not [name for kind, name in objects if kind == "PriorityClass"]


def test_the_hubs_service_is_scaled_by_its_load() -> None:
    objects = render(HUB)

    scaled = objects["HorizontalPodAutoscaler", f"{NAME}-hub"]["spec"]
    assert "replicas" not in objects["Deployment", f"{NAME}-hub"]["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (2, 6)
    targets = {each["resource"]["name"]: each["resource"]["target"] for each in scaled["metrics"]}
    assert {name: each["averageUtilization"] for name, each in targets.items()} == {"cpu": 80, "memory": 70}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (CONSUMER, "keda.managementUrlKey is not set"),
        ({"hubService": {"enabled": True, "autoscaling": {"enabled": True}}}, "SQLite allows one instance"),
        (
            {"placeholders": {"autoscaling": {"maxReplicas": 0}}},
            "don't meet the specifications of the schema",
        ),
        ({"consumer": {"autoscaling": {"minReplicas": 0}}}, "don't meet the specifications of the schema"),
    ],
    ids=["no queues", "sqlite", "no node", "no consumer"],
)
def test_what_cannot_be_scaled_is_refused(values: Values, reason: str) -> None:
    assert reason in refusal(values)
