"""`python -m tests.cluster.record_pods [NAME…]`: has a real cluster produce what build pods go through, and writes it down.

Each pod of `SCENARIOS` is made in a namespace of its own and kept by a finalizer; once it is as wanted, it and its
events become a file in tests/unit/pods. What a healthy cluster does not produce is written by hand there.
"""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rabbit2docker.consumer.executors.kubernetes.client import JSON_PATCH, ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.manifest import FINALIZER
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import KubernetesSettings

Json = dict[str, Any]
Condition = Callable[[Json, list[Json]], bool]

FIXTURES: Final = Path(__file__).parents[1] / "unit" / "pods"
PATIENCE: Final = 240.0
IMAGES: Final = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_IMAGES", "rabbit2docker.test/")
REGISTRY: Final = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_REGISTRY", "127.0.0.1:5000")
ANY_REGISTRY: Final = "registry.example.org:5000"
"""Takes the registry's place in what is written down."""
PRIORITIES: Final = {"rabbit2docker-recording-low": -20, "rabbit2docker-recording-high": -10}
"""Below everything else, so that only our own pod gives way."""
RUNTIME: Final = "rabbit2docker-recording-none"
DOCKER_API: Final = {"app.kubernetes.io/component": "docker-api"}

LISTENS: Final = "trap 'echo {} >/dev/termination-log; exit 143' TERM; sleep 1000 & wait"
"""A builder that ends on request, and says so."""


def _says(**result: Any) -> str:
    return json.dumps(result)


def _script(text: str) -> Json:
    return {"command": ["/bin/sh", "-c", text]}


CANCELLED: Final = _script(LISTENS.replace("{}", f"'\\''{_says(reason='cancelled', exit_code=143)}'\\''"))


# -- how a pod is


def _state(pod: Json) -> Json:
    statuses = pod["status"].get("containerStatuses") or [{}]
    return statuses[0].get("state") or {}


def waits_for(*reasons: str) -> Condition:
    return lambda pod, events: _state(pod).get("waiting", {}).get("reason") in reasons


def runs(pod: Json, events: list[Json]) -> bool:
    return "running" in _state(pod)


def has_ended(pod: Json, events: list[Json]) -> bool:
    return pod["status"].get("phase") in ("Failed", "Succeeded")


def is_unscheduled(pod: Json, events: list[Json]) -> bool:
    conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions") or ()}
    return conditions.get("PodScheduled") == "False"


def is_leaving(pod: Json, events: list[Json]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def has_event(reason: str, text: str = "") -> Condition:
    return lambda pod, events: any(
        event.get("reason") == reason and text in (event.get("message") or "") for event in events
    )


@dataclass(frozen=True)
class Scenario:
    """A pod, what happens to it, and how it has to be then."""

    container: Json = field(default_factory=lambda: _script("sleep 1000"))
    spec: Json = field(default_factory=dict)
    until: Condition = has_ended
    first: Condition | None = None
    """The state it must be in before `deed`."""
    deed: str | None = None
    """delete or evict."""
    then: str | None = None
    """The scenario whose pod this one waits with."""


SCENARIOS: Final = {
    "unschedulable": Scenario(
        spec={
            "affinity": {
                "podAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "labelSelector": {"matchLabels": DOCKER_API},
                            "topologyKey": "kubernetes.io/hostname",
                        }
                    ]
                }
            }
        },
        until=is_unscheduled,
    ),
    "scheduling-gated": Scenario(
        spec={"schedulingGates": [{"name": "example.org/hold"}]}, until=is_unscheduled
    ),
    "deleted-before-a-node": Scenario(
        spec={"nodeSelector": {"example.org/no": "node"}},
        first=is_unscheduled,
        deed="delete",
        until=is_leaving,
    ),
    "err-image-pull": Scenario({"image": f"{REGISTRY}/nowhere:1"}, until=waits_for("ErrImagePull")),
    "image-pull-back-off": Scenario({"image": f"{REGISTRY}/nowhere:1"}, until=waits_for("ImagePullBackOff")),
    "invalid-image-name": Scenario({"image": "Not/An/Image:1"}, until=waits_for("InvalidImageName")),
    "err-image-never-pull": Scenario(
        {"image": f"{REGISTRY}/nowhere:1", "imagePullPolicy": "Never"}, until=waits_for("ErrImageNeverPull")
    ),
    "config-error": Scenario(
        {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x"}}}]},
        until=waits_for("CreateContainerConfigError"),
    ),
    "missing-secret": Scenario(
        spec={"volumes": [{"name": "config", "secret": {"secretName": "absent"}}]},
        until=has_event("FailedMount", "absent"),
    ),
    "missing-key": Scenario(
        spec={
            "volumes": [
                {
                    "name": "config",
                    "configMap": {"name": "kube-root-ca.crt", "items": [{"key": "no", "path": "x"}]},
                }
            ]
        },
        until=has_event("FailedMount"),
    ),
    "missing-socket": Scenario(
        spec={
            "volumes": [{"name": "socket", "hostPath": {"path": "/var/run/absent.sock", "type": "Socket"}}]
        },
        until=has_event("FailedMount", "type check failed"),
    ),
    "failed-sandbox": Scenario(spec={"runtimeClassName": RUNTIME}, until=has_event("FailedCreatePodSandBox")),
    "start-error": Scenario({"command": ["/no/such/program"]}),
    "out-of-memory": Scenario(
        {**_script("exec tail /dev/zero"), "resources": {"limits": {"memory": "16Mi"}}}
    ),
    "failed-with-a-result": Scenario(
        _script(
            f"echo '{_says(reason='build_step_failed', exit_code=70, message='The step `RUN x` ended.', lines=9)}'"
            " >/dev/termination-log; exit 70"
        )
    ),
    "failed-with-last-words": Scenario(
        _script("echo first; echo 'Traceback: the builder broke' >&2; exit 1")
    ),
    "failed-in-silence": Scenario(_script("exit 3")),
    "succeeded": Scenario(
        _script(
            f"echo '{_says(reason='ok', exit_code=0, digest='sha256:' + '1' * 64, lines=9)}'"
            " >/dev/termination-log"
        )
    ),
    "running": Scenario(until=runs),
    "evicted-by-api": Scenario(CANCELLED, first=runs, deed="evict"),
    "evicted-by-kubelet": Scenario(
        _script("dd if=/dev/zero of=/scratch/x bs=1M count=8; sleep 1000"),
        spec={"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]},
    ),
    "deleted": Scenario(CANCELLED, first=runs, deed="delete"),
    "deleted-and-killed": Scenario(
        _script("trap '' TERM; while :; do sleep 1; done"), first=runs, deed="delete"
    ),
    "being-deleted": Scenario(
        _script("trap '' TERM; while :; do sleep 1; done"),
        spec={"terminationGracePeriodSeconds": 30},
        first=runs,
        deed="delete",
        until=is_leaving,
    ),
    "deleted-while-starting": Scenario(
        {"image": f"{REGISTRY}/nowhere:1"},
        first=waits_for("ErrImagePull", "ImagePullBackOff"),
        deed="delete",
    ),
    "evicted-while-starting": Scenario(
        {"image": f"{REGISTRY}/nowhere:1"},
        first=waits_for("ErrImagePull", "ImagePullBackOff"),
        deed="evict",
    ),
    "deadline-exceeded": Scenario(CANCELLED, spec={"activeDeadlineSeconds": 5}),
    "deadline-exceeded-while-starting": Scenario(
        {"image": f"{REGISTRY}/nowhere:1"}, spec={"activeDeadlineSeconds": 5}
    ),
    "out-of-cpu": Scenario({"resources": {"requests": {"cpu": "1000"}}}, spec={"nodeName": "?"}),
    "node-affinity": Scenario(spec={"nodeName": "?", "nodeSelector": {"example.org/no": "node"}}),
    "preempted": Scenario(
        {**CANCELLED, "ports": [{"containerPort": 80, "hostPort": 39980}]},
        spec={
            "priorityClassName": "rabbit2docker-recording-low",
            "nodeSelector": {"kubernetes.io/hostname": "?"},
        },
        first=runs,
        deed="preempt",
    ),
}


class Recorder:
    """Makes the pods and what they need, and takes all of it away again."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        """Work in `namespace`."""
        self._api = api
        self._namespace = namespace
        self._core = f"/api/v1/namespaces/{namespace}"
        self.node = ""
        self.version = ""

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Json:
        """Make a call, again while the API server is away, and return what it answers."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ExecutorUnavailable):
                    data = await self._api.call(
                        method, path, priority=CallPriority.RECORD, body=body, **options
                    )
                    answer: Json = json.loads(data)
                    return answer
                await asyncio.sleep(1)

    async def prepare(self) -> None:
        """Make the namespace and the few things that are the whole cluster's."""
        self.version = (await self.ask("GET", "/version"))["gitVersion"]
        self.node = (await self.ask("GET", "/api/v1/nodes"))["items"][-1]["metadata"]["name"]
        await self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": self._namespace}})
        for name, value in PRIORITIES.items():
            body = {"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}
            with suppress(ApiStatusError):
                await self.ask("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", body)
        with suppress(ApiStatusError):
            body = {"metadata": {"name": RUNTIME}, "handler": "none-such"}
            await self.ask("POST", "/apis/node.k8s.io/v1/runtimeclasses", body)
        # Pods are refused until the controller has made it.
        await self._until(lambda: self.ask("GET", f"{self._core}/serviceaccounts/default"))
        await self._until(lambda: self.ask("GET", f"{self._core}/configmaps/kube-root-ca.crt"))

    async def clean(self) -> None:
        """Remove everything."""
        for pod in (await self.ask("GET", f"{self._core}/pods"))["items"]:
            await self._remove(pod["metadata"]["name"])
        await self.ask("DELETE", f"/api/v1/namespaces/{self._namespace}")
        for name in PRIORITIES:
            with suppress(ApiStatusError):
                await self.ask("DELETE", f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")
        with suppress(ApiStatusError):
            await self.ask("DELETE", f"/apis/node.k8s.io/v1/runtimeclasses/{RUNTIME}")

    async def _remove(self, name: str) -> None:
        path = f"{self._core}/pods/{name}"
        steps = [{"op": "remove", "path": "/metadata/finalizers"}]
        with suppress(ApiStatusError):
            await self.ask("DELETE", path, {"gracePeriodSeconds": 0})
        with suppress(ApiStatusError):
            await self.ask("PATCH", path, steps, content_type=JSON_PATCH)

    async def record(self, name: str, scenario: Scenario) -> None:
        """Play one scenario and write down how its pod is at the end."""
        # A call that was made before the API server went away is refused when it is made again.
        with suppress(ApiStatusError):
            await self.ask("POST", f"{self._core}/pods", self._pod(name, scenario))
        if scenario.first is not None:
            await self._wait(name, scenario.first)
        await self._do(name, scenario)
        pod, events = await self._wait(name, scenario.until)
        written = {
            "source": f"recorded from Kubernetes {self.version} by tests/cluster/record_pods.py",
            "pod": _trimmed(pod),
            "events": [_trimmed_event(event) for event in events],
        }
        text = json.dumps(written, indent=2, ensure_ascii=False).replace(REGISTRY, ANY_REGISTRY)
        (FIXTURES / f"{name}.json").write_text(text + "\n", "utf-8")
        await self._remove(name)

    async def _do(self, name: str, scenario: Scenario) -> None:
        path = f"{self._core}/pods/{name}"
        if scenario.deed == "delete":
            await self.ask("DELETE", path)
        elif scenario.deed == "evict":
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            await self.ask("POST", f"{path}/eviction", body)
        elif scenario.deed == "preempt":
            winner = self._pod(f"{name}-by", scenario)
            winner["spec"]["priorityClassName"] = "rabbit2docker-recording-high"
            await self.ask("POST", f"{self._core}/pods", winner)

    def _pod(self, name: str, scenario: Scenario) -> Json:
        volumes = scenario.spec.get("volumes", [])
        mounts = [{"name": item["name"], "mountPath": f"/{item['name']}"} for item in volumes]
        container = {
            "name": "builder",
            "image": f"{IMAGES}busybox:1",
            "imagePullPolicy": "IfNotPresent",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts,
            **scenario.container,
        }
        spec = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 3,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
            **scenario.spec,
        }
        text = json.dumps(spec).replace('"?"', json.dumps(self.node))
        return {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": json.loads(text)}

    async def _wait(self, name: str, condition: Condition) -> tuple[Json, list[Json]]:
        async with asyncio.timeout(PATIENCE):
            while True:
                pod = await self.ask("GET", f"{self._core}/pods/{name}")
                query = {"fieldSelector": f"involvedObject.uid={pod['metadata']['uid']}"}
                events = (await self.ask("GET", f"{self._core}/events", query=query))["items"]
                if condition(pod, events):
                    return pod, events
                await asyncio.sleep(0.3)

    async def _until(self, call: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ApiStatusError):
                    await call()
                    return
                await asyncio.sleep(0.3)


def _trimmed(pod: Json) -> Json:
    metadata = {key: value for key, value in pod["metadata"].items() if key != "managedFields"}
    return {**pod, "metadata": metadata}


def _trimmed_event(event: Json) -> Json:
    kept = ("type", "reason", "message", "count", "firstTimestamp", "lastTimestamp", "eventTime")
    return {key: event.get(key) for key in kept}


async def record(names: list[str]) -> int:
    """Record those scenarios, or all; return how many could not be."""
    chosen = {name: scenario for name, scenario in SCENARIOS.items() if not names or name in names}
    namespace = f"recording-{secrets.token_hex(3)}"
    api = ApiClient(KubernetesSettings(namespace=namespace, requests_per_second=20, burst=20))
    await api.open()
    recorder = Recorder(api, namespace)
    try:
        await recorder.prepare()
        try:
            playing = [recorder.record(name, scenario) for name, scenario in chosen.items()]
            ends = await asyncio.gather(*playing, return_exceptions=True)
        finally:
            await recorder.clean()
    finally:
        await api.close()
    for name, end in zip(chosen, ends, strict=True):
        sys.stdout.write(f"{name}: {'recorded' if end is None else repr(end)}\n")
    return sum(end is not None for end in ends)


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(record(sys.argv[1:]))))
