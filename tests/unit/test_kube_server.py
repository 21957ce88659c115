"""The API server of the tests behaves like a real one, as documented by Kubernetes."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.kube import Cluster, KubeServer, Stops
from tests.support.kube.objects import ApiError, parse_selector
from tests.support.waiting import eventually

FINALIZER = "rabbit2docker.io/outcome"
BASE = "/api/v1/namespaces/builds"
PODS = f"{BASE}/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/builds/leases"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
BUILDS = "app.kubernetes.io/component=build"


def a_pod(name: str = "build-1", *, finalizers: tuple[str, ...] = (), grace: int = 20) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/component": "build"},
            "finalizers": list(finalizers),
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "containers": [{"name": "builder", "image": "repo2docker:test"}],
        },
    }


class Client:
    def __init__(self, server: KubeServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        token: str = "any",
        **query: str,
    ) -> tuple[int, Any]:
        data = json.dumps(body) if body is not None else None
        headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
        url = self.server.url + path
        async with self.session.request(method, url, data=data, headers=headers, params=query) as response:
            return response.status, await response.json()

    async def create(self, pod: dict[str, Any]) -> dict[str, Any]:
        status, made = await self.call("POST", PODS, pod)
        assert status == 201, made
        assert isinstance(made, dict)
        return made

    async def version(self) -> str:
        _, pods = await self.call("GET", PODS)
        return str(pods["metadata"]["resourceVersion"])

    def stream(self, path: str, **query: str) -> Any:
        return self.session.get(self.server.url + path, params=query)

    async def log(self, name: str = "build-1", **query: str) -> bytes:
        async with self.stream(f"{PODS}/{name}/log", **query) as response:
            assert response.status == 200, await response.text()
            data = await response.read()
        assert isinstance(data, bytes)
        return data


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client of a cluster without automatic behaviour."""
    async with (
        KubeServer(Cluster(automatic=False)) as server,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        yield Client(server, session)


async def events(response: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    return [json.loads(await response.content.readline()) for _ in range(count)]


def named(event: dict[str, Any]) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"]["name"]


# -- selectors


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("a=1", True),
        ("a==1,b=2", True),
        ("a=2", False),
        ("a!=2", True),
        ("missing!=2", True),
        ("a in (1,2)", True),
        ("a in (2, 3),b=2", False),
        ("a notin (2,3)", True),
        ("missing notin (1)", True),
        ("a", True),
        ("!a", False),
        ("!missing,b", True),
        ("", True),
    ],
)
def test_label_selectors_mean_what_kubernetes_says(selector: str, fits: bool) -> None:
    labels = {"a": "1", "b": "2"}
    assert all(requirement.matches(labels) for requirement in parse_selector(selector)) is fits


def test_an_invalid_selector_is_rejected() -> None:
    with pytest.raises(ApiError, match="unable to parse"):
        parse_selector("a in 1")


async def test_events_are_found_by_the_uid_of_their_object(client: Client) -> None:
    first = await client.create(a_pod())
    await client.create(a_pod("build-2"))
    client.server.cluster.post_event("build-1", "FailedMount", 'secret "x" not found')
    client.server.cluster.post_event("build-2", "Pulling", "Pulling image")
    _, found = await client.call(
        "GET", f"{BASE}/events", fieldSelector=f"involvedObject.uid={first['metadata']['uid']}"
    )
    assert [event["reason"] for event in found["items"]] == ["FailedMount"]
    status, refused = await client.call("GET", f"{BASE}/events", fieldSelector="message=x")
    assert (status, refused["kind"]) == (400, "Status")


# -- objects


async def test_a_name_is_taken_until_the_object_is_gone(client: Client) -> None:
    await client.create(a_pod(finalizers=(FINALIZER,)))
    status, refused = await client.call("POST", PODS, a_pod())
    assert (status, refused["reason"]) == (409, "AlreadyExists")
    assert refused["message"] == 'pods "build-1" already exists'
    assert refused["details"] == {"name": "build-1", "kind": "pods"}
    await client.call("DELETE", f"{PODS}/build-1")
    status, refused = await client.call("POST", PODS, a_pod())
    assert (status, refused["message"]) == (409, 'object is being deleted: pods "build-1" already exists')


async def test_invalid_objects_are_rejected(client: Client) -> None:
    pod = a_pod()
    pod["metadata"]["labels"]["too-long"] = "x" * 64
    status, refused = await client.call("POST", PODS, pod)
    assert (status, refused["kind"], refused["status"]) == (422, "Status", "Failure")
    assert (refused["reason"], refused["code"]) == ("Invalid", 422)
    status, _ = await client.call("POST", PODS, a_pod("Not_a_name"))
    assert status == 422
    status, missing = await client.call("GET", f"{PODS}/none")
    assert (status, missing["message"]) == (404, 'pods "none" not found')


async def test_versions_grow_over_all_kinds(client: Client) -> None:
    pod = await client.create(a_pod())
    _, secret = await client.call(
        "POST", f"{BASE}/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}}
    )
    assert int(secret["metadata"]["resourceVersion"]) > int(pod["metadata"]["resourceVersion"])
    assert secret["data"] == {"a": "Yg=="}
    assert "stringData" not in secret
    assert pod["status"]["phase"] == "Pending"
    assert pod["metadata"]["managedFields"]


async def test_a_list_in_pages_is_the_list_at_its_beginning(client: Client) -> None:
    for number in range(5):
        await client.create(a_pod(f"build-{number}"))
    _, page = await client.call("GET", PODS, limit="2", labelSelector=BUILDS)
    names = [item["metadata"]["name"] for item in page["items"]]
    await client.create(a_pod("build-9"))
    client.server.cluster.vanish("build-4")
    while token := page["metadata"].get("continue"):
        _, page = await client.call("GET", PODS, **{"limit": "2", "labelSelector": BUILDS, "continue": token})
        names += [item["metadata"]["name"] for item in page["items"]]
    assert names == [f"build-{number}" for number in range(5)]
    assert "kind" not in page["items"][0]
    _, page = await client.call("GET", PODS, limit="1")
    client.server.cluster.store.compact()
    status, gone = await client.call("GET", PODS, **{"limit": "1", "continue": page["metadata"]["continue"]})
    assert (status, gone["reason"]) == (410, "Expired")


async def test_a_json_patch_whose_test_fails_is_invalid_and_changes_nothing(client: Client) -> None:
    pod = await client.create(a_pod())
    patch = [
        {"op": "add", "path": "/metadata/labels/new", "value": "1"},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
    ]
    status, refused = await client.call("PATCH", f"{PODS}/build-1", patch, kind=JSON_PATCH)
    assert (status, refused["reason"]) == (422, "Invalid")
    assert refused["message"] == "the server rejected our request due to an error in our request"
    patch[1]["value"] = pod["metadata"]["resourceVersion"]
    status, changed = await client.call("PATCH", f"{PODS}/build-1", patch, kind=JSON_PATCH)
    assert (status, changed["metadata"]["labels"]["new"]) == (200, "1")
    no_such = [{"op": "remove", "path": "/metadata/labels/none"}]
    status, _ = await client.call("PATCH", f"{PODS}/build-1", no_such, kind=JSON_PATCH)
    assert status == 422


@pytest.mark.parametrize(
    ("text", "written", "fits"),
    [
        ("plain", '"plain"', True),
        ("plain", '"other"', False),
        ('{"a": 1}', '"{\\"a\\": 1}"', True),
        ("a<b", '"a<b"', False),
        ("a<b", '"a\\u003cb"', True),
        ("é", '"é"', True),
        ("é", '"\\u00e9"', False),
    ],
)
async def test_a_json_patch_compares_text_as_it_is_written(
    client: Client, text: str, written: str, fits: bool
) -> None:
    pod = a_pod()
    pod["metadata"]["annotations"] = {"text": text}
    await client.create(pod)
    patch = f'[{{"op":"test","path":"/metadata/annotations/text","value":{written}}}]'
    url = f"{client.server.url}{PODS}/build-1"
    async with client.session.patch(url, data=patch, headers={"Content-Type": JSON_PATCH}) as response:
        assert response.status == (200 if fits else 422)


async def test_a_merge_patch_with_another_version_conflicts(client: Client) -> None:
    pod = await client.create(a_pod())
    patch = {"metadata": {"resourceVersion": "1", "annotations": {"a": "b"}}}
    status, refused = await client.call("PATCH", f"{PODS}/build-1", patch, kind=MERGE)
    assert (status, refused["reason"]) == (409, "Conflict")
    patch["metadata"]["resourceVersion"] = pod["metadata"]["resourceVersion"]
    status, changed = await client.call("PATCH", f"{PODS}/build-1", patch, kind=MERGE)
    assert (status, changed["metadata"]["annotations"]) == (200, {"a": "b"})
    status, refused = await client.call(
        "PATCH", f"{PODS}/build-1", {"metadata": {"uid": "other"}}, kind=MERGE
    )
    assert (status, refused["reason"]) == (409, "Conflict")
    status, _ = await client.call("PATCH", f"{PODS}/build-1", {}, kind="text/plain")
    assert status == 415


async def test_a_patch_that_changes_nothing_makes_no_version(client: Client) -> None:
    pod = await client.create(a_pod())
    labels = {"metadata": {"labels": pod["metadata"]["labels"]}}
    _, same = await client.call("PATCH", f"{PODS}/build-1", labels, kind=MERGE)
    assert same == pod


async def test_what_a_pod_runs_and_how_it_is_cannot_be_patched(client: Client) -> None:
    pod = await client.create(a_pod())
    status, _ = await client.call("PATCH", f"{PODS}/build-1", {"spec": {"hostname": "x"}}, kind=MERGE)
    assert status == 422
    _, same = await client.call("PATCH", f"{PODS}/build-1", {"status": {"phase": "Failed"}}, kind=MERGE)
    assert same == pod


async def test_an_immutable_config_map_keeps_its_data(client: Client) -> None:
    path = f"{BASE}/configmaps"
    await client.call("POST", path, {"metadata": {"name": "c"}, "immutable": True, "data": {"a": "1"}})
    status, refused = await client.call("PATCH", f"{path}/c", {"data": {"a": "2"}}, kind=MERGE)
    assert status == 422
    assert "field is immutable when `immutable` is set" in refused["message"]
    status, _ = await client.call("PATCH", f"{path}/c", {"metadata": {"labels": {"a": "1"}}}, kind=MERGE)
    assert status == 200


async def test_a_lease_is_replaced_only_at_its_version_and_made_by_replacing(client: Client) -> None:
    lease: dict[str, Any] = {"metadata": {"name": "replica"}, "spec": {"holderIdentity": "a"}}
    status, made = await client.call("PUT", f"{LEASES}/replica", lease)
    assert status == 201
    status, refused = await client.call("PUT", f"{LEASES}/replica", lease)
    assert (status, refused["reason"]) == (422, "Invalid")
    made["spec"]["holderIdentity"] = "b"
    status, changed = await client.call("PUT", f"{LEASES}/replica", made)
    assert (status, changed["spec"]["holderIdentity"]) == (200, "b")
    status, refused = await client.call("PUT", f"{LEASES}/replica", made)
    assert (status, refused["reason"]) == (409, "Conflict")
    assert 'leases.coordination.k8s.io "replica"' in refused["message"]


async def test_a_quota_counts_pods_that_have_not_ended(client: Client) -> None:
    client.server.cluster.pod_limit = 1
    await client.create(a_pod())
    status, refused = await client.call("POST", PODS, a_pod("build-2"))
    assert status == 403
    assert "exceeded quota" in refused["message"]
    client.server.cluster.run("build-1")
    client.server.cluster.terminate("build-1", 0)
    await client.create(a_pod("build-2"))


# -- deletion


async def test_a_finalizer_keeps_the_object_until_it_is_removed(client: Client) -> None:
    await client.create(a_pod(finalizers=(FINALIZER, "other.io/one")))
    async with client.stream(PODS, watch="1", resourceVersion=await client.version()) as watch:
        status, leaving = await client.call("DELETE", f"{PODS}/build-1")
        assert status == 200
        assert leaving["metadata"]["deletionTimestamp"]
        assert leaving["metadata"]["deletionGracePeriodSeconds"] == 0  # no node has it
        added = {"metadata": {"finalizers": [FINALIZER, "other.io/one", "new.io/one"]}}
        status, _ = await client.call("PATCH", f"{PODS}/build-1", added, kind=MERGE)
        assert status == 422
        for left in ([FINALIZER], []):
            patch = {"metadata": {"finalizers": left}}
            assert (await client.call("PATCH", f"{PODS}/build-1", patch, kind=MERGE))[0] == 200
        received = [named(event) for event in await events(watch, 3)]
    assert received == [("MODIFIED", "build-1"), ("MODIFIED", "build-1"), ("DELETED", "build-1")]
    assert (await client.call("GET", f"{PODS}/build-1"))[0] == 404


async def test_empty_lists_are_left_out_of_objects(client: Client) -> None:
    made = await client.create(a_pod())
    assert "finalizers" not in made["metadata"]


async def test_a_running_pod_has_its_grace_even_without_finalizers(client: Client) -> None:
    cluster = client.server.cluster
    cluster.stops = Stops.HANGS
    await client.create(a_pod(finalizers=(FINALIZER,)))
    cluster.run("build-1")
    _, leaving = await client.call("DELETE", f"{PODS}/build-1")
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 20
    await client.call("PATCH", f"{PODS}/build-1", {"metadata": {"finalizers": None}}, kind=MERGE)
    _, longer = await client.call("DELETE", f"{PODS}/build-1", {"gracePeriodSeconds": 60})
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 20
    await client.call("DELETE", f"{PODS}/build-1", {"gracePeriodSeconds": 0})
    assert (await client.call("GET", f"{PODS}/build-1"))[0] == 404


async def test_a_deletion_with_the_uid_of_another_object_conflicts(client: Client) -> None:
    pod = await client.create(a_pod())
    for preconditions in ({"uid": "other"}, {"resourceVersion": "1"}):
        status, refused = await client.call("DELETE", f"{PODS}/build-1", {"preconditions": preconditions})
        assert (status, refused["reason"]) == (409, "Conflict")
    uid = pod["metadata"]["uid"]
    status, _ = await client.call("DELETE", f"{PODS}/build-1", {"preconditions": {"uid": uid}})
    assert status == 200
    assert (await client.call("DELETE", f"{PODS}/build-1"))[0] == 404


async def test_objects_owned_by_a_pod_are_deleted_with_it(client: Client) -> None:
    pod = await client.create(a_pod())
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "build-1", "uid": pod["metadata"]["uid"]}
    secret = {"metadata": {"name": "s", "ownerReferences": [owner]}}
    await client.call("POST", f"{BASE}/secrets", secret)
    await client.call("DELETE", f"{PODS}/build-1")
    assert (await client.call("GET", f"{BASE}/secrets/s"))[0] == 404


async def test_a_builder_ends_at_sigterm_or_at_the_end_of_the_grace(client: Client) -> None:
    cluster = client.server.cluster
    for name, stops in (("obeys", Stops.OBEYS), ("stubborn", Stops.STUBBORN)):
        cluster.stops_of[name] = stops
        await client.create(a_pod(name, finalizers=(FINALIZER,), grace=1))
        cluster.run(name)
        await client.call("DELETE", f"{PODS}/{name}")

    def ended() -> dict[str, int]:
        pods = {name: cluster.pod(name) for name in ("obeys", "stubborn")}
        return {
            name: pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
            for name, pod in pods.items()
            if pod["status"]["phase"] == "Failed" and pod["metadata"]["deletionGracePeriodSeconds"] == 0
        }

    await eventually(lambda: len(ended()) == 2)
    assert ended() == {"obeys": 143, "stubborn": 137}


async def test_a_lost_node_leaves_its_pods_terminating(client: Client) -> None:
    cluster = client.server.cluster
    await client.create(a_pod())
    cluster.run("build-1")
    cluster.lose_node("node-1")
    cluster.taint_node("node-1")
    pod = cluster.pod("build-1")
    assert (pod["status"]["phase"], pod["metadata"]["deletionGracePeriodSeconds"]) == ("Running", 20)
    async with client.stream(f"{PODS}/build-1/log") as response:
        assert response.status == 500
    cluster.remove_node("node-1")
    assert cluster.pods() == []


# -- watches


async def test_a_watch_sends_the_changes_after_its_version(client: Client) -> None:
    await client.create(a_pod())
    version = await client.version()
    await client.create(a_pod("build-2"))
    client.server.cluster.vanish("build-1")
    async with client.stream(PODS, watch="true", resourceVersion=version, labelSelector=BUILDS) as watch:
        received = await events(watch, 2)
        assert [named(event) for event in received] == [("ADDED", "build-2"), ("DELETED", "build-1")]
        relabelled = {"metadata": {"labels": {"app.kubernetes.io/component": None}}}
        await client.call("PATCH", f"{PODS}/build-2", relabelled, kind=MERGE)
        assert [named(event) for event in await events(watch, 1)] == [("DELETED", "build-2")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in received]
    assert int(version) < versions[0] < versions[1]


async def test_a_watch_without_a_version_begins_with_what_is_there(client: Client) -> None:
    await client.create(a_pod())
    async with client.stream(PODS, watch="1", labelSelector=BUILDS) as watch:
        assert [named(event) for event in await events(watch, 1)] == [("ADDED", "build-1")]


async def test_a_watch_from_before_a_compaction_says_gone_in_the_stream(client: Client) -> None:
    version = await client.version()
    client.server.cluster.store.compact()
    async with client.stream(PODS, watch="1", resourceVersion=version) as watch:
        assert watch.status == 200
        (gone,) = [json.loads(line) for line in (await watch.read()).splitlines()]
    assert (gone["type"], gone["object"]["code"], gone["object"]["reason"]) == ("ERROR", 410, "Expired")
    client.server.faults.answer(410, verb="watch")
    async with client.stream(PODS, watch="1", resourceVersion=await client.version()) as watch:
        assert watch.status == 410


async def test_a_full_history_drops_versions_like_a_compaction() -> None:
    cluster = Cluster(automatic=False, history=3)
    async with KubeServer(cluster) as server, aiohttp.ClientSession() as session:
        client = Client(server, session)
        version = await client.version()
        for number in range(4):
            await client.create(a_pod(f"build-{number}"))
        async with client.stream(PODS, watch="1", resourceVersion=version) as watch:
            assert (await events(watch, 1))[0]["type"] == "ERROR"


async def test_bookmarks_are_sent_on_request_and_a_watch_ends_at_its_timeout(client: Client) -> None:
    client.server.bookmark_seconds = 0.05
    version = await client.version()
    query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
    async with client.stream(PODS, **query) as watch:
        (bookmark,) = await events(watch, 1)
    assert (bookmark["type"], bookmark["object"]["kind"]) == ("BOOKMARK", "Pod")
    assert bookmark["object"]["metadata"]["resourceVersion"] == version
    async with client.stream(PODS, watch="1", resourceVersion=version, timeoutSeconds="1") as watch:
        assert await watch.read() == b""


async def test_a_test_can_cut_silence_and_end_a_watch(client: Client) -> None:
    server = client.server
    query = {"watch": "1", "resourceVersion": await client.version()}
    async with client.stream(PODS, **query) as watch:
        (stream,) = await eventually(lambda: server.streams("watch"))
        stream.cuts_next = True
        await client.create(a_pod())
        with pytest.raises(aiohttp.ClientPayloadError):
            await watch.read()
    await eventually(lambda: not server.streams("watch"))
    async with client.stream(PODS, **query) as watch:
        assert named((await events(watch, 1))[0]) == ("ADDED", "build-1")
        (stream,) = server.streams("watch")
        stream.silence()
        server.cluster.vanish("build-1")
        server.watch_error()
        stream.resume()
        assert [event["type"] for event in await events(watch, 2)] == ["DELETED", "ERROR"]
        assert await watch.read() == b""


async def test_the_server_notices_a_closed_connection(client: Client) -> None:
    async with client.stream(PODS, watch="1") as watch:
        await eventually(lambda: client.server.streams("watch"))
        watch.close()
        await eventually(lambda: not client.server.streams("watch"))


# -- logs


async def test_since_time_means_whole_seconds_and_each_line_for_itself(client: Client) -> None:
    cluster = client.server.cluster
    await client.create(a_pod())
    cluster.run("build-1")
    for second, microsecond, text in ((1, 0, "early"), (2, 100, "late"), (1, 900, "back"), (2, 0, "exact")):
        cluster.write("build-1", text, at=datetime(2026, 1, 1, 0, 0, second, microsecond, tzinfo=UTC))
    cluster.terminate("build-1", 0)
    whole = await client.log(timestamps="true")
    assert whole.splitlines()[1] == b"2026-01-01T00:00:02.000100000Z late"
    assert await client.log(sinceTime="2026-01-01T00:00:02.999Z") == b"late\nexact\n"
    assert await client.log(tailLines="2") == b"back\nexact\n"
    assert await client.log(limitBytes="8") == b"early\nla"
    cluster.rotate("build-1", keep=1)
    assert await client.log() == b"exact\n"


async def test_a_followed_log_ends_with_its_container(client: Client) -> None:
    cluster = client.server.cluster
    await client.create(a_pod())
    cluster.run("build-1")
    cluster.write("build-1", "one", b"\xff\xfe")
    async with client.stream(f"{PODS}/build-1/log", follow="true", container="builder") as log:
        assert await log.content.readline() == b"one\n"
        cluster.write("build-1", "two")
        cluster.terminate("build-1", 1)
        assert await log.read() == b"\xff\xfe\ntwo\n"


async def test_a_missing_log_is_reported_as_kubelets_do(client: Client) -> None:
    cluster = client.server.cluster
    await client.create(a_pod())
    assert await client.log(follow="true") == b""  # no node has it
    cluster.schedule("build-1")
    status, waiting = await client.call("GET", f"{PODS}/build-1/log")
    assert (status, waiting["reason"]) == (400, "BadRequest")
    assert waiting["message"] == 'container "builder" in pod "build-1" is waiting to start: ContainerCreating'
    cluster.run("build-1")
    cluster.terminate("build-1", 0)
    cluster.lose_log("build-1")
    assert (await client.log()).startswith(b"unable to retrieve container logs for containerd://")


async def test_a_test_can_cut_or_corrupt_a_log(client: Client) -> None:
    cluster, faults = client.server.cluster, client.server.faults
    await client.create(a_pod())
    cluster.run("build-1")
    cluster.write("build-1", "first", "second")
    cluster.terminate("build-1", 0)
    faults.cut(8, verb="log")
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.log()
    faults.cut(8, verb="log", clean=True)
    assert await client.log() == b"first\nse"
    faults.say(b"failed to create fsnotify watcher: too many open files", after=6)
    assert await client.log() == b"first\nfailed to create fsnotify watcher: too many open files"
    faults.empty(verb="log")
    assert await client.log() == b""
    assert await client.log() == b"first\nsecond\n"


# -- automatic behaviour


async def test_pods_run_beside_a_ready_docker_api_or_wait_for_one() -> None:
    cluster = Cluster(nodes=("node-1", "node-2"))
    async with KubeServer(cluster) as server, aiohttp.ClientSession() as session:
        client = Client(server, session)
        pod = a_pod()
        term = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        pod["spec"]["affinity"] = {"nodeAffinity": required}
        made = await client.create(pod)
        assert made["status"]["phase"] == "Pending"
        await eventually(lambda: cluster.starts["build-1"])
        running = cluster.pod("build-1")
        assert (running["spec"]["nodeName"], running["status"]["phase"]) == ("node-2", "Running")
        for node in cluster.nodes:
            cluster.set_docker_api(node, ready=False)
        await client.create(a_pod("build-2"))
        await eventually(lambda: "Unschedulable" in json.dumps(cluster.pod("build-2")))
        cluster.set_docker_api("node-1", ready=True)
        await eventually(lambda: cluster.starts["build-2"])


async def test_an_evicted_pod_says_why(client: Client) -> None:
    cluster = client.server.cluster
    await client.create(a_pod(finalizers=(FINALIZER,)))
    cluster.run("build-1")
    cluster.fail("build-1", "Evicted", "The node was low on resource: memory.")
    status = cluster.pod("build-1")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "Evicted")
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


# -- faults


async def test_a_request_is_refused_or_lost_before_or_after_it_is_done(client: Client) -> None:
    faults = client.server.faults
    faults.answer(429, verb="create", resource="pods", retry_after=1)
    headers = {"Content-Type": "application/json"}
    async with client.session.post(client.server.url + PODS, json=a_pod(), headers=headers) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
    faults.drop_before(verb="create")
    with pytest.raises(aiohttp.ClientError):
        await client.create(a_pod())
    assert not client.server.cluster.exists("build-1")
    faults.drop_after(verb="create")
    with pytest.raises(aiohttp.ClientError):
        await client.create(a_pod())
    assert client.server.cluster.exists("build-1")
    assert len(client.server.calls(verb="create", resource="pods")) == 3


async def test_a_request_hangs_until_released(client: Client) -> None:
    fault = client.server.faults.hang(verb="create")
    creating = asyncio.create_task(client.create(a_pod()))
    await eventually(lambda: fault.hits)
    assert not client.server.cluster.exists("build-1")
    fault.release()
    await creating


async def test_a_token_can_be_changed(client: Client, tmp_path: Path) -> None:
    client.server.token = "new"
    status, refused = await client.call("GET", PODS, token="old")
    assert (status, refused["reason"]) == (401, "Unauthorized")
    assert (await client.call("GET", PODS, token="new"))[0] == 200
    config = yaml.safe_load(client.server.kubeconfig(tmp_path / "config").read_text())
    assert config["users"][0]["user"] == {"token": "new"}
    assert config["clusters"][0]["cluster"]["server"] == client.server.url


async def test_a_restarted_server_keeps_its_objects(client: Client) -> None:
    server = client.server
    await client.create(a_pod())
    async with client.stream(PODS, watch="1", resourceVersion=await client.version()) as watch:
        await server.stop()
        with pytest.raises(aiohttp.ClientError):
            await watch.read()
    with pytest.raises(aiohttp.ClientError):
        await client.version()
    await server.start()
    assert (await client.call("GET", f"{PODS}/build-1"))[0] == 200
