"""The nodes that a tenant's builds may run on, read from the API server."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from rabbit2docker.consumer.executors.kubernetes.client import ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.models import Manifest, Node
from rabbit2docker.consumer.executors.kubernetes.nodes import READ_SECONDS, Nodes, admits
from rabbit2docker.settings import ExecutorKind, Settings

Json = dict[str, Any]
POOL: Json = {"key": "builds", "value": "alpha", "effect": "NoSchedule"}
TENANTS: Json = {
    "alpha": {"node_selector": {"builds": "alpha"}, "tolerations": [{**POOL, "operator": "Equal"}]},
    "beta": {},
}
NAMES = ("node-a", "node-b", "pool-a", "pool-b")


def a_node(name: str, labels: Mapping[str, str] = {}, *taints: Json) -> Json:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": dict(labels)},
        "spec": {"taints": list(taints)},
        "status": {"images": [{"names": ["x"]}]},
    }


CLUSTER = [
    a_node("node-a"),
    a_node("node-b", {"builds": "other"}),
    a_node("pool-a", {"builds": "alpha"}, POOL),
    a_node("pool-b", {"builds": "alpha"}, POOL),
]


class FakeApi(ApiClient):
    """Answers with pages of two nodes."""

    def __init__(self, nodes: list[Json]) -> None:
        self.nodes = nodes
        self.status = 200
        self.paths: list[str] = []

    async def call(self, method: str, path: str, **options: Any) -> bytes:
        self.paths.append(path)
        if self.status != 200:
            raise ApiStatusError(self.status, "Forbidden", 'nodes is forbidden: cannot list resource "nodes"')
        start = int(options["query"].get("continue", 0))
        more = {"continue": str(start + 2)} if start + 2 < len(self.nodes) else {}
        return json.dumps({"metadata": more, "items": self.nodes[start : start + 2]}).encode()


def nodes_of(api: ApiClient, tenants: Any = TENANTS) -> Nodes:
    return Nodes(api, Settings(executor=ExecutorKind.KUBERNETES, tenants=tenants))


async def read(nodes: Nodes, seconds: float = 1) -> None:
    task = asyncio.create_task(nodes.run())
    await asyncio.sleep(seconds)
    task.cancel()


@pytest.mark.looptime
async def test_only_nodes_that_a_tenants_builds_may_run_on_are_candidates() -> None:
    nodes = nodes_of(FakeApi(CLUSTER))
    assert nodes.where("alpha", NAMES) == list(NAMES), "all of them until they are known"
    await read(nodes)
    assert nodes.where("alpha", NAMES) == ["pool-a", "pool-b"]
    assert nodes.where("beta", NAMES) == ["node-a", "node-b"], "nor do others prefer the nodes of the tenant"
    assert nodes.where("alpha", ["pool-b", "unknown"]) == ["pool-b"]


@pytest.mark.looptime
async def test_a_changed_label_counts_after_a_minute() -> None:
    api = FakeApi(list(CLUSTER))
    nodes = nodes_of(api)
    task = asyncio.create_task(nodes.run())
    await asyncio.sleep(1)
    api.nodes[0] = a_node("node-a", {"builds": "alpha"})
    await asyncio.sleep(READ_SECONDS)
    task.cancel()
    assert nodes.where("alpha", NAMES) == ["node-a", "pool-a", "pool-b"]


@pytest.mark.looptime
async def test_without_the_permission_all_nodes_count_and_one_warning_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = FakeApi(CLUSTER)
    api.status = 403
    nodes = nodes_of(api)
    await read(nodes, 5 * READ_SECONDS)
    assert len(api.paths) >= 5
    assert nodes.where("alpha", NAMES) == list(NAMES)
    assert capsys.readouterr().out.count("nodes not read") == 1


@pytest.mark.looptime
async def test_nodes_known_before_count_while_the_api_server_is_away() -> None:
    api = FakeApi(CLUSTER)
    nodes = nodes_of(api)
    task = asyncio.create_task(nodes.run())
    await asyncio.sleep(1)
    api.status = 503
    await asyncio.sleep(2 * READ_SECONDS)
    task.cancel()
    assert nodes.where("alpha", NAMES) == ["pool-a", "pool-b"]


@pytest.mark.parametrize(
    ("tenants", "expected"),
    [
        (TENANTS, True),
        ({"alpha": {"tolerations": [{"operator": "Exists"}]}}, True),
        ({"alpha": {}, "beta": {}}, False),
    ],
    ids=["selector", "toleration", "none"],
)
def test_nodes_are_read_only_where_a_tenant_has_its_own(tenants: Json, expected: bool) -> None:
    assert nodes_of(FakeApi(CLUSTER), tenants).is_needed is expected


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "builds", "operator": "Exists"}, True),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "builds", "value": "alpha"}, True),
        ({"key": "builds", "operator": "Equal", "value": "beta"}, False),
        ({"key": "builds", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": "builds", "operator": "Exists", "effect": "NoExecute"}, False),
    ],
    ids=str,
)
def test_a_taint_is_tolerated_by_the_rules_of_the_api(toleration: Manifest, expected: bool) -> None:
    tainted = Node.model_validate(a_node("n", {}, POOL))
    assert admits(tainted, {}, [toleration]) is expected


def test_a_taint_that_only_discourages_closes_no_node() -> None:
    assert admits(Node.model_validate(a_node("n", {}, {**POOL, "effect": "PreferNoSchedule"})), {}, [])
