"""Network policies and disruption budgets of the chart: what they close and what they leave open."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from rabbit2docker.consumer.executors.kubernetes.manifest import BUILD, labels
from rabbit2docker.settings import Settings
from tests.cluster.rendering import NAME, Objects, Values, consumer, docker_api, refusal, render

HUB: Values = {"hubService": {"enabled": True}}
BUILDS = (f"{NAME}-builds", f"{NAME}-docker-api")
SERVICES = (NAME, f"{NAME}-hub")

METADATA = {
    "AWS, Azure, Google": "169.254.169.254",
    "AWS, tasks": "169.254.170.2",
    "AWS by IPv6": "fd00:ec2::254",
    "Google by IPv6": "fd20:ce::254",
    "Azure's wire server": "168.63.129.16",
    "Alibaba": "100.100.100.200",
    "link-local IPv6": "fe80::1",
}
INSIDE = {
    "Service of the API server": "10.96.0.1",
    "node": "192.168.7.3",
    "pod": "172.20.4.5",
    "pod with IPv6": "fd42::17",
    "carrier-grade NAT": "100.64.0.1",
    "private address behind NAT64": "64:ff9b::a60:1",
}
PUBLIC = {"IPv4": "93.184.215.14", "IPv6": "2606:2800:21f::1"}


def policy(objects: Objects, name: str) -> Any:
    return objects["NetworkPolicy", name]["spec"]


def blocks(rule: Any) -> Iterator[Any]:
    for peer in rule.get("to", ()):
        if "ipBlock" in peer:
            yield peer["ipBlock"]


def allows(spec: Any, address: str, port: int = 443) -> bool:
    """Return whether a policy lets its pods connect to an address, as NetworkPolicies are defined."""
    if "Egress" not in spec["policyTypes"]:
        return True
    target = ip_address(address)
    for rule in spec["egress"]:
        if "ports" in rule and port not in [item["port"] for item in rule["ports"]]:
            continue
        if "to" not in rule:
            return True
        for block in blocks(rule):
            inside = target in ip_network(block["cidr"])
            if inside and not any(target in ip_network(part) for part in block.get("except", ())):
                return True
    return False


@pytest.fixture(scope="module")
def objects() -> Objects:
    return render(HUB)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("address", [*METADATA.values(), *INSIDE.values()], ids=[*METADATA, *INSIDE])
def test_builds_reach_neither_metadata_nor_anything_inside(objects: Objects, name: str, address: str) -> None:
    assert not allows(policy(objects, name), address)


@pytest.mark.parametrize("name", BUILDS)
def test_builds_reach_public_addresses_and_dns(objects: Objects, name: str) -> None:
    spec = policy(objects, name)

    assert all(allows(spec, address) for address in PUBLIC.values())
    assert allows(spec, "10.96.0.10", 53)
    assert allows(spec, "169.254.20.10", 53), "the DNS cache of a node"
    assert spec["ingress"] == []
    assert "Ingress" in spec["policyTypes"]


def test_the_policies_choose_the_pods_that_builds_are_made_of(objects: Objects) -> None:
    settings = Settings.model_validate({"instance": "r2d"})
    builds, engines = (policy(objects, name)["podSelector"]["matchLabels"] for name in BUILDS)

    assert builds.items() <= labels(settings, BUILD).items()
    assert engines.items() <= docker_api(objects)["metadata"]["labels"].items()
    assert (
        policy(objects, NAME)["podSelector"]["matchLabels"].items()
        <= consumer(objects)["metadata"]["labels"].items()
    )


def test_the_services_take_http_alone_and_connect_to_everything(objects: Objects) -> None:
    for name in SERVICES:
        spec = policy(objects, name)
        assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
        assert all(allows(spec, address) for address in INSIDE.values())


def test_values_open_a_registry_and_close_more() -> None:
    registry = {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 5000}]}
    values = {
        "networkPolicy": {
            "builds": {"egress": [registry], "closedAddresses": ["93.184.215.0/24", "2606::/16"]}
        }
    }
    for name in BUILDS:
        spec = policy(render(values), name)
        assert allows(spec, "10.1.2.3", 5000)
        assert not allows(spec, "10.1.2.3", 443)
        assert not any(allows(spec, address) for address in PUBLIC.values())


@pytest.mark.parametrize(("access", "inside", "public"), [("all", True, True), ("none", False, False)])
def test_builds_may_reach_all_but_metadata_or_nothing(access: str, inside: bool, public: bool) -> None:
    spec = policy(render({"networkPolicy": {"builds": {"egressTo": access}}}), BUILDS[1])

    private = [address for name, address in INSIDE.items() if "NAT" not in name]
    assert {allows(spec, address) for address in private} == {inside}
    assert {allows(spec, address) for address in PUBLIC.values()} == {public}
    assert not any(allows(spec, address) for address in METADATA.values())
    assert any({"namespaceSelector": {}} in rule.get("to", ()) for rule in spec["egress"]) == inside


def test_what_reads_the_services_can_be_limited() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    values = {"networkPolicy": {"consumer": {"ingressFrom": [prometheus], "egressTo": "all"}}}
    spec = policy(render(values), NAME)

    assert [rule["from"] for rule in spec["ingress"]] == [[prometheus]]
    assert not allows(spec, "169.254.169.254")
    assert allows(spec, "10.96.0.1")


def test_exceptions_lie_in_the_networks_that_they_are_taken_from(objects: Objects) -> None:
    """The API server refuses others."""
    found = [block for name in BUILDS for rule in policy(objects, name)["egress"] for block in blocks(rule)]
    for block in found:
        cidr: Any = ip_network(block["cidr"])
        assert all(ip_network(part).subnet_of(cidr) for part in block["except"])
    assert len(found) == 4


def test_the_policies_can_be_left_to_the_operator() -> None:
    assert "NetworkPolicy" not in {kind for kind, _ in render({"networkPolicy": {"enabled": False}})}


def test_replicas_leave_their_nodes_one_after_the_other(objects: Objects) -> None:
    for name in SERVICES:
        budget = objects["PodDisruptionBudget", name]["spec"]
        deployment = objects["Deployment", name]["spec"]
        assert budget["selector"] == deployment["selector"]
        assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_a_budget_can_be_changed_or_left_out() -> None:
    half = {"consumer": {"podDisruptionBudget": {"minAvailable": "50%"}}}
    budget = render(half)["PodDisruptionBudget", NAME]["spec"]
    assert budget["minAvailable"] == "50%"
    assert "maxUnavailable" not in budget
    none = render({"consumer": {"podDisruptionBudget": {"enabled": False}}})
    assert "PodDisruptionBudget" not in {kind for kind, _ in none}


@pytest.mark.parametrize(
    "values",
    [
        {"networkPolicy": {"builds": {"egressTo": "everything"}}},
        {"networkPolicy": {"metadataAddresses": ["169.254.169.254"]}},
        {"networkPolicy": {"builds": {"closedAddresses": ["the nodes"]}}},
        {"networkPolicy": {"builds": {"ingressFrom": []}}},
        {"networkPolicy": {"dockerApi": {}}},
        {"consumer": {"podDisruptionBudget": {"maxUnavailable": "half"}}},
    ],
    ids=str,
)
def test_unknown_and_impossible_values_are_refused(values: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(values)
