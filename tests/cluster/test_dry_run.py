"""The API server of a real cluster takes all objects of the chart, with fields that it does not know refused."""

import json

import pytest
import yaml

from tests.cluster.harness.kubectl import kubectl
from tests.cluster.rendering import EVERYTHING, KUBERNETES, NEEDED, Values, helm, merged
from tests.cluster.test_chart_pods import COMPONENTS, FIELDS

OF_OPERATORS = ("keda.sh/", "monitoring.coreos.com/")
"""Kinds of operators that the cluster of the tests does not have."""
HUB: Values = {"hubService": {"enabled": True}}
AUTOSCALED: Values = {"consumer": {"autoscaling": {"enabled": True}}}
SWITCHED_ON: Values = {
    **{name: {**FIELDS, **AUTOSCALED.get(name, {})} for name in COMPONENTS},
    "replay": {"schedule": "0 3 * * *", "existingSecret": "operator"},
    "placeholders": {"enabled": True, "autoscaling": {"enabled": True}},
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
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
        },
        "ingress": {"enabled": True, "hosts": ["builds.example.org"], "tls": [{"secretName": "tls"}]},
        "podDisruptionBudget": {"minAvailable": "50%"},
    },
    "config": {"hub": {"auth": "none"}},
}


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
    command = ("template", f"--kube-version={KUBERNETES}", "r2d")
    result = helm(merged(NEEDED, *values), *command, namespace=namespace)
    assert not result.returncode, result.stderr
    objects = [
        found
        for found in yaml.safe_load_all(result.stdout)
        if found and not found["apiVersion"].startswith(OF_OPERATORS)
    ]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})

    taken = kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "--filename=-", "--output=name"),
        stdin=listed,
        namespace=namespace,
    )

    assert len(taken.split()) == len(objects)
