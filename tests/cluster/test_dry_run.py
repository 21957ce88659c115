"""The API server of a real cluster takes all objects of the chart, with fields that it does not know refused."""

import json
from typing import Any

import pytest
import yaml

from tests.cluster.harness.kubectl import kubectl
from tests.cluster.rendering import EVERYTHING, KUBERNETES, NEEDED, Values, helm, merged
from tests.cluster.test_chart_pods import COMPONENTS, FIELDS

OF_OPERATORS = ("keda.sh/", "monitoring.coreos.com/")
"""Kinds of operators that the cluster of the tests does not have."""
HUB: Values = {"hubService": {"enabled": True}}
SLOWLY = {"scaleDown": {"stabilizationWindowSeconds": 600}}
AUTOSCALED: Values = {"consumer": {"autoscaling": {"enabled": True, "behavior": SLOWLY}}}
SWITCHED_ON: Values = {
    **{name: {**FIELDS, **AUTOSCALED.get(name, {})} for name in COMPONENTS},
    "replay": {"schedule": "0 3 * * *", "existingSecret": "operator"},
    "placeholders": {"enabled": True, "autoscaling": {"enabled": True, "behavior": SLOWLY}},
    "topologyJob": {"enabled": True, "existingSecret": "operator"},
    "networkPolicy": {
        "builds": {"egress": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 5000}]}]},
        "consumer": {"egressTo": "all", "ingressFrom": [{"namespaceSelector": {}}]},
        "hubService": {"egressTo": "public", "closedAddresses": ["203.0.113.0/24", "2001:db8::/32"]},
    },
}
POSTGRESQL: Values = {
    "hubService": {
        "replicas": 3,
        "database": {"existingSecret": "database"},
        "autoscaling": {
            "enabled": True,
            "memoryPercent": 70,
            "behavior": SLOWLY,
        },
        "ingress": {"enabled": True, "hosts": ["builds.example.org"], "tls": [{"secretName": "tls"}]},
        "podDisruptionBudget": {"minAvailable": "50%"},
    },
    "config": {"hub": {"auth": "none"}},
}


def rendered(namespace: str, *values: Values) -> list[dict[str, Any]]:
    command = ("template", f"--kube-version={KUBERNETES}", "r2d")
    result = helm(merged(NEEDED, *values), *command, namespace=namespace)
    assert not result.returncode, result.stderr
    return [found for found in yaml.safe_load_all(result.stdout) if found]


def taken(namespace: str, objects: list[dict[str, Any]]) -> list[str]:
    """Return the names of the objects that the API server takes; none if it refuses a field."""
    return kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "--filename=-", "--output=name"),
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        namespace=namespace,
    ).split()


@pytest.mark.parametrize(
    "values",
    [
        (),
        (HUB, EVERYTHING, SWITCHED_ON),
        (HUB, POSTGRESQL, {"networkPolicy": {"builds": {"egressTo": "none"}}}),
        (HUB, {"consumer": {"enabled": False}, "dockerApi": {"enabled": False}}),
    ],
    ids=["needed", "everything", "postgresql", "hub"],
)
def test_the_api_server_takes_all_objects(namespace: str, values: tuple[Values, ...]) -> None:
    objects = [
        found for found in rendered(namespace, *values) if not found["apiVersion"].startswith(OF_OPERATORS)
    ]

    assert len(taken(namespace, objects)) == len(objects)
