"""The rest of a cluster: scheduler, kubelets, and users that delete pods, driven by tests or automatic.

Pods are addressed by their names in `namespace`. Every method is synchronous: it changes the objects, and watches
report that.
"""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from tests.support.kube.logs import ContainerLog
from tests.support.kube.objects import (
    EVENTS,
    PODS,
    Json,
    Requirement,
    Resource,
    forbidden,
    stamp,
)
from tests.support.kube.pods import (
    COMPONENT,
    DOCKER_API,
    container_status,
    default_pod,
    docker_api_pod,
    note_manager,
    set_condition,
    set_container,
    wanted_nodes,
)
from tests.support.kube.store import Change, Selection, Store, Stored, now

SIGTERM_EXIT = 143
SIGKILL_EXIT = 137
UNKNOWN = "ContainerStatusUnknown"


class Stops(Enum):
    """The reaction of a builder to SIGTERM."""

    OBEYS = "obeys"
    """It exits at once with code 143 and the result `cancelled`."""
    STUBBORN = "stubborn"
    """It is ended by SIGKILL after the grace period."""
    HANGS = "hangs"
    """Its kubelet does nothing, so the pod stays terminating."""


@dataclass
class Node:
    """A node; its docker-api is a separate pod."""

    name: str
    is_alive: bool = True


class Cluster:
    """The life of pods. With `automatic`, they run at once on a node with a ready docker-api, and end when deleted."""

    def __init__(
        self,
        namespace: str = "builds",
        *,
        automatic: bool = True,
        nodes: tuple[str, ...] = ("node-1",),
        clock: Callable[[], datetime] = now,
        history: int = 5000,
    ) -> None:
        self.namespace = namespace
        self.automatic = automatic
        self.posts_events = True
        """True if the start of a pod creates the usual events."""
        self.store = Store(clock, history=history)
        self.nodes: dict[str, Node] = {}
        self.logs: dict[str, ContainerLog] = {}
        """By the pod's uid."""
        self.starts: Counter[str] = Counter()
        """Number of starts of the builder, by the name of the pod."""
        self.stops = Stops.OBEYS
        self.stops_of: dict[str, Stops] = {}
        """Exceptions, by the pod's name."""
        self.pod_limit: int | None = None
        """Quota of pods that have not ended."""
        self._placed: Counter[str] = Counter()
        self._timers: set[asyncio.TimerHandle] = set()
        self.store.admission += [self._admit, self._count]
        self.store.hooks.append(self._react)
        for node in nodes:
            self.add_node(node)

    def close(self) -> None:
        """Cancel everything that is scheduled."""
        for timer in self._timers:
            timer.cancel()

    # -- inspection

    def pod(self, name: str) -> Json:
        """Return a copy of the pod."""
        return self.store.get(PODS, self.namespace, name).data()

    def exists(self, name: str) -> bool:
        return self.store.find(PODS, self.namespace, name) is not None

    def pods(self, component: str = "build") -> list[str]:
        """Return the names of the pods with that label."""
        wanted = (Requirement(COMPONENT, frozenset((component,))),)
        return [stored.name for stored in self.store.select(PODS, Selection(self.namespace, wanted))]

    def log(self, name: str) -> ContainerLog:
        uid = self.store.get(PODS, self.namespace, name).uid
        return self.logs.setdefault(uid, ContainerLog())

    # -- nodes and docker-api

    def add_node(self, name: str, *, ready: bool = True) -> None:
        """Add a node with docker-api."""
        self.nodes[name] = Node(name)
        self.store.create(PODS, self.namespace, docker_api_pod(name))
        self.edit(f"{DOCKER_API}-{name}", self._running)
        if not ready:
            self.set_docker_api(name, ready=False)

    def set_docker_api(self, node: str, *, ready: bool) -> None:
        """Have docker-api on the node pass its readiness probe, or fail it."""
        at, value = self.store.clock(), str(ready)

        def change(data: Json) -> None:
            for kind in ("Ready", "ContainersReady"):
                set_condition(data, kind, value, at)
            data["status"]["containerStatuses"][0]["ready"] = ready

        self.edit(f"{DOCKER_API}-{node}", change)

    def remove_docker_api(self, node: str) -> None:
        """Delete docker-api of the node; the node stays."""
        self.vanish(f"{DOCKER_API}-{node}")

    def lose_node(self, node: str) -> None:
        """Disconnect the node: its kubelet does nothing, its docker-api is not ready, its logs cannot be read."""
        self.nodes[node].is_alive = False
        if self.exists(f"{DOCKER_API}-{node}"):
            self.set_docker_api(node, ready=False)

    def taint_node(self, node: str) -> None:
        """Have the cluster delete a lost node's build pods; they stay terminating, as its kubelet is unreachable."""
        message = "Taint manager: deleting due to NoExecute taint"
        for name in self._on(node):
            self.condition(name, "DisruptionTarget", reason="DeletionByTaintManager", message=message)
            self.delete(name)

    def remove_node(self, node: str) -> None:
        """Remove the node; the cluster garbage-collects its pods."""
        self.nodes.pop(node)
        for name in self._on(node):
            message = "PodGC: node no longer exists"
            self.condition(name, "DisruptionTarget", reason="DeletionByPodGC", message=message)
            self.edit(name, lambda data: data["status"].update(phase="Failed"))
            self.delete(name, grace=0)
        if self.exists(f"{DOCKER_API}-{node}"):
            self.remove_docker_api(node)

    def _on(self, node: str) -> list[str]:
        return [name for name in self.pods() if self.pod(name)["spec"].get("nodeName") == node]

    def _ready_nodes(self) -> list[str]:
        """Return the nodes that can run builds, the least loaded first."""
        wanted = Selection(self.namespace, (Requirement(COMPONENT, frozenset((DOCKER_API,))),))
        found = []
        for stored in self.store.select(PODS, wanted):
            data = stored.data()
            ready = any(
                item["type"] == "Ready" and item["status"] == "True" for item in data["status"]["conditions"]
            )
            if ready and "deletionTimestamp" not in data["metadata"]:
                found.append(data["spec"]["nodeName"])
        return sorted(found, key=lambda node: self._placed[node])

    # -- status of a pod

    def edit(self, name: str, change: Callable[[Json], object]) -> None:
        """Change any part of a pod without validation."""
        self.store.edit(PODS, self.namespace, name, change)

    def unschedulable(self, name: str, message: str = "", *, reason: str = "Unschedulable") -> None:
        """Have the scheduler report that no node fits the pod."""
        message = (
            message or f"0/{len(self.nodes)} nodes are available: node(s) didn't match pod affinity rules."
        )
        self.condition(name, "PodScheduled", "False", reason=reason, message=message)

    def schedule(self, name: str, node: str | None = None) -> None:
        """Bind the pod to a node, whose kubelet accepts it."""
        node = node or next(iter(self.nodes))
        at = self.store.clock()
        self._placed[node] += 1

        def change(data: Json) -> None:
            data["spec"]["nodeName"] = node
            data["status"] |= {"hostIP": "10.0.0.1", "startTime": stamp(at)}
            for kind in ("PodScheduled", "Initialized"):
                set_condition(data, kind, "True", at)
            for kind in ("PodReadyToStartContainers", "Ready", "ContainersReady"):
                set_condition(data, kind, "False", at)
            set_container(data, {"waiting": {"reason": "ContainerCreating"}})

        self.edit(name, change)

    def waiting(self, name: str, reason: str = "ContainerCreating", message: str | None = None) -> None:
        """Have the container of a scheduled pod wait for a reason."""
        waiting = {"reason": reason, **({"message": message} if message is not None else {})}
        self.edit(name, lambda data: set_container(data, {"waiting": waiting}))

    def run(self, name: str) -> None:
        """Start the container; a pod that has no node gets one."""
        if not self.pod(name)["spec"].get("nodeName"):
            self.schedule(name)
        self.starts[name] += 1
        self.log(name)
        self.edit(name, self._running)

    def _running(self, data: Json) -> None:
        at = self.store.clock()
        note_manager(data, "kubelet", at)
        data["status"] |= {"phase": "Running", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}]}
        data["status"].setdefault("startTime", stamp(at))
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"):
            set_condition(data, kind, "True", at)
        set_container(data, {"running": {"startedAt": stamp(at)}})

    def write(self, name: str, *lines: str | bytes, at: datetime | None = None) -> None:
        """Have the container write lines with the current time, or `at`, as their time stamp."""
        raw = [line.encode() if isinstance(line, str) else line for line in lines]
        moment = time.time_ns() if at is None else round(at.timestamp() * 1_000_000) * 1000
        self.log(name).write([part for line in raw for part in line.split(b"\n")], moment)

    def rotate(self, name: str, keep: int) -> None:
        """Have the kubelet rotate the log: only the last `keep` lines can still be read."""
        self.log(name).rotate(keep)

    def lose_log(self, name: str) -> None:
        """Have the container runtime remove the ended container with its log."""
        self.log(name).is_lost = True

    def terminate(self, name: str, exit_code: int, reason: str | None = None, *, message: str = "") -> None:
        """End the container; `message` is its termination message."""
        reason = reason or ("Completed" if exit_code == 0 else "Error")
        self.edit(name, lambda data: self._terminated(data, exit_code, reason, message))
        self.log(name).end()
        self._finish_deletion(name)

    def kill(self, name: str, reason: str = "Error") -> None:
        """Send SIGKILL: exit code 137 without a termination message."""
        self.terminate(name, SIGKILL_EXIT, reason)

    def _terminated(self, data: Json, exit_code: int, reason: str, message: str = "") -> None:
        at, status = self.store.clock(), container_status(data) or {"state": {}}
        began = status["state"].get("running", {}).get("startedAt")
        terminated: Json = {"exitCode": exit_code, "reason": reason}
        if message:
            terminated["message"] = message
        # The end of a container that cannot be found is unknown.
        finished = None if reason == UNKNOWN else stamp(at)
        terminated |= {"startedAt": began, "finishedAt": finished}
        if status.get("containerID"):
            terminated["containerID"] = status["containerID"]
        set_container(data, {"terminated": terminated})
        data["status"]["phase"] = "Succeeded" if exit_code == 0 else "Failed"
        why = "PodCompleted" if exit_code == 0 else "PodFailed"
        for kind in ("Ready", "ContainersReady"):
            set_condition(data, kind, "False", at, reason=why)
        set_condition(data, "PodReadyToStartContainers", "False", at)

    def fail(self, name: str, reason: str, message: str = "") -> None:
        """Have the kubelet fail the pod: Evicted, DeadlineExceeded, OutOfcpu, NodeShutdown …

        A container that ran is killed, one that did not has no status.
        """
        was_running = "running" in (container_status(self.pod(name)) or {"state": {}})["state"]

        def change(data: Json) -> None:
            if was_running:
                self._terminated(data, SIGKILL_EXIT, "Error")
            else:
                data["status"].pop("containerStatuses", None)
            data["status"] |= {"phase": "Failed", "reason": reason, "message": message}

        self.edit(name, change)
        self.log(name).end()
        self._finish_deletion(name)

    def condition(
        self,
        name: str,
        kind: str,
        value: str = "True",
        *,
        reason: str | None = None,
        message: str | None = None,
    ) -> None:
        """Write a condition, such as DisruptionTarget."""
        at = self.store.clock()
        self.edit(name, lambda data: set_condition(data, kind, value, at, reason=reason, message=message))

    def evict(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """Evict the pod, as a drain of its node does: a condition, then a graceful deletion."""
        self.condition(name, "DisruptionTarget", reason=reason, message="Eviction API: evicting")
        self.delete(name)

    def post_event(self, name: str, reason: str, message: str, *, kind: str = "Warning") -> None:
        """Have a component of the cluster create an event about the pod."""
        pod = self.store.get(PODS, self.namespace, name)
        at = stamp(self.store.clock())
        event = {
            "metadata": {"name": f"{name}.{secrets.token_hex(8)}"},
            "involvedObject": {
                "kind": "Pod",
                "namespace": self.namespace,
                "name": name,
                "uid": pod.uid,
                "apiVersion": "v1",
                "resourceVersion": str(pod.version),
            },
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet"},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "type": kind,
            "eventTime": None,
            "reportingComponent": "kubelet",
            "reportingInstance": "",
        }
        self.store.create(EVENTS, self.namespace, event)

    # -- deletion

    def delete(self, name: str, *, grace: int | None = None) -> None:
        """Delete the pod as kubectl does."""
        self.store.delete(PODS, self.namespace, name, grace=grace)

    def vanish(self, name: str) -> None:
        """Remove the pod by force, whatever its finalizers."""
        self.edit(name, lambda data: data["metadata"].pop("finalizers", None))
        if self.exists(name):
            self.delete(name, grace=0)

    def _finish_deletion(self, name: str) -> None:
        """Finish the deletion of a pod, as kubelets do once all its containers have ended."""
        if self.exists(name) and "deletionTimestamp" in self.pod(name)["metadata"]:
            self.delete(name, grace=0)

    def _stop(self, uid: str, name: str) -> None:
        """React to a deletion as the kubelet does."""
        if (pod := self._current(uid, name)) is None:
            return
        metadata, node = pod["metadata"], self.nodes.get(pod["spec"].get("nodeName", ""))
        stops = self.stops_of.get(name, self.stops)
        if node is None or not node.is_alive or stops is Stops.HANGS:
            return
        state = (container_status(pod) or {"state": {}})["state"]
        grace = metadata.get("deletionGracePeriodSeconds") or 0
        if "running" not in state:
            message = "The container could not be located when the pod was terminated"
            self.terminate(name, SIGKILL_EXIT, UNKNOWN, message=message)
        elif grace == 0:
            self.kill(name)
        elif stops is Stops.OBEYS:
            result = {"reason": "cancelled", "exit_code": SIGTERM_EXIT, "lines": self.log(name).count}
            self.terminate(name, SIGTERM_EXIT, message=json.dumps(result))
        else:
            self._later(grace, lambda: self._grace_is_over(uid, name))

    def _grace_is_over(self, uid: str, name: str) -> None:
        if self._current(uid, name) is not None:
            self.kill(name)

    def _current(self, uid: str, name: str) -> Json | None:
        """Return the pod if it is still the same one and has not ended."""
        stored = self.store.find(PODS, self.namespace, name)
        if stored is None or stored.uid != uid or stored.fields["status.phase"] in ("Succeeded", "Failed"):
            return None
        return stored.data()

    # -- automatic behaviour

    def _admit(self, resource: Resource, data: Json) -> None:
        if resource is PODS:
            default_pod(data)
        if data["metadata"].get("labels", {}).get(COMPONENT) != DOCKER_API and resource is not EVENTS:
            note_manager(data, "rabbit2docker", self.store.clock())

    def _count(self, resource: Resource, data: Json) -> None:
        if resource is not PODS or self.pod_limit is None:
            return
        everything = self.store.select(PODS, Selection(self.namespace))
        used = sum(
            stored.fields["status.phase"] not in ("Succeeded", "Failed")
            and stored.labels.get(COMPONENT) != DOCKER_API
            for stored in everything
        )
        if used >= self.pod_limit:
            why = f"exceeded quota: builds, requested: pods=1, used: pods={used}, limited: pods={self.pod_limit}"
            raise forbidden(PODS, data["metadata"]["name"], why)

    def _react(self, change: Change) -> None:
        """Act as scheduler and kubelet, after the response to the call that made the change."""
        stored = change.new or change.old
        assert stored is not None
        if stored.resource is not PODS:
            return
        if stored.labels.get(COMPONENT) == DOCKER_API:
            if self.automatic and change.new is not None and change.old is not None:
                self._soon(self._start_waiting)
        elif change.new is None:
            if (log := self.logs.pop(stored.uid, None)) is not None:
                log.end()
        elif change.old is None:
            if self.automatic:
                self._soon(lambda: self._start(stored.uid, stored.name))
        elif _deletion(change.old) != _deletion(change.new):
            self._soon(lambda: self._stop(stored.uid, stored.name))

    def _start_waiting(self) -> None:
        for name in self.pods():
            stored = self.store.get(PODS, self.namespace, name)
            if not stored.fields["spec.nodeName"]:
                self._start(stored.uid, name)

    def _start(self, uid: str, name: str) -> None:
        pod = self._current(uid, name)
        if pod is None or pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        nodes = wanted_nodes(pod, self._ready_nodes())
        if not nodes:
            self.unschedulable(name)
            return
        self.schedule(name, nodes[0])
        if self.posts_events:
            self._post_start_events(name, nodes[0], pod["spec"]["containers"][0]["image"])
        self.run(name)

    def _post_start_events(self, name: str, node: str, image: str) -> None:
        whole = f"{self.namespace}/{name}"
        self.post_event(name, "Scheduled", f"Successfully assigned {whole} to {node}", kind="Normal")
        self.post_event(name, "Pulled", f'Container image "{image}" already present', kind="Normal")
        self.post_event(name, "Started", "Container started", kind="Normal")

    def _soon(self, call: Callable[[], None]) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            call()
        else:
            loop.call_soon(call)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers.add(timer)

    def age(self, name: str, seconds: float) -> None:
        """Make the pod older: move its creation and its start on the node back in time."""

        def change(data: Json) -> None:
            for part, key in ((data["metadata"], "creationTimestamp"), (data["status"], "startTime")):
                if key in part:
                    part[key] = stamp(datetime.fromisoformat(part[key]) - timedelta(seconds=seconds))

        self.edit(name, change)


def _deletion(stored: Stored) -> object:
    """Return the deletion as a kubelet sees it."""
    if b'"deletionTimestamp"' not in stored.body:
        return None
    metadata = stored.data()["metadata"]
    return metadata.get("deletionTimestamp"), metadata.get("deletionGracePeriodSeconds")
