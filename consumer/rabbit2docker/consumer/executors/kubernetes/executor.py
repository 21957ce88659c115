"""The kubernetes executor: the pod is the record, one watch knows them all, every write is a compare-and-swap."""

import asyncio
import re
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

import structlog
from cachetools import TTLCache

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    Change,
    Changed,
    Lines,
    Members,
    Removed,
    Synced,
)
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import (
    JSON_PATCH,
    ApiClient,
    ApiStatusError,
    as_unavailable,
)
from rabbit2docker.consumer.executors.kubernetes.config_objects import BuildConfigObjects
from rabbit2docker.consumer.executors.kubernetes.gc import GarbageCollector
from rabbit2docker.consumer.executors.kubernetes.informer import PODS, Informer
from rabbit2docker.consumer.executors.kubernetes.leases import Leases
from rabbit2docker.consumer.executors.kubernetes.logs import LogReader
from rabbit2docker.consumer.executors.kubernetes.models import Event, EventList, Pod
from rabbit2docker.consumer.executors.kubernetes.pod_status import (
    ObservationContext,
    PodObservation,
    in_order,
    observe_pod,
)
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable, NameTaken, RecordMissing
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()
T = TypeVar("T")

CONFLICTS: Final = 20
"""How often a write is tried against other writers before it is left for later."""
DEAF_SECONDS: Final = 120.0
"""A watch that has heard nothing for so long, bookmarks included, makes the replica unready."""
BUILDER_TEXT: Final = BUILDER_PATH.read_text("utf-8")
CLOSE_SECONDS: Final = 5.0
EXTRA_BUILDS: Final = 2
"""How many more builds than the idlest node one may have and still be preferred for its layers."""
REMEMBERED: Final = 10_000


@dataclass(slots=True, eq=False)
class _Record:
    """What is known of one attempt; the pod is written first, this follows."""

    spec: AttemptSpec
    pod: Pod
    status: AttemptStatus
    sight: PodObservation
    events: list[Event] | None = None
    examined: int = 0
    examining: bool = False
    timer: asyncio.TimerHandle | None = None
    removed: bool = False
    end_is_told: bool = False
    """Somebody has begun to write that its end is told: true from then on, whatever becomes of the writing."""
    is_memory: bool = False
    """The pod is gone after its end was told: what is left answers duplicates, and is forgotten like any other."""
    told: Attempt | None = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    readers: set[Callable[[], None]] = field(default_factory=set)

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    @property
    def has_log(self) -> bool:
        return self.sight.started_at is not None and not self.is_memory

    @property
    def is_over(self) -> bool:
        return self.sight.state is AttemptState.ENDED

    @property
    def counted(self) -> int | None:
        return self.sight.result.lines if self.sight.result else None

    def snapshot(self) -> Attempt:
        sight = self.sight
        return Attempt(
            spec=self.spec,
            status=self.status,
            state=sight.state,
            result=sight.result,
            external_end=sight.external_end,
            waiting_for=sight.waiting_for,
            pending_deadline=sight.pending_deadline,
            node=self.pod.spec.node_name,
            created_by=self.pod.metadata.labels.get(manifest.REPLICA),
            started_at=sight.started_at,
            ended_at=sight.ended_at,
        )


class KubernetesExecutor:
    """Implements `Executor` on the pods of a namespace, which any number of replicas may share."""

    # Each is a call, and lines can be read again at any time: readers drop what they have seen.
    checkpoint_seconds = 60.0

    def __init__(self, settings: Settings, *, builder_text: str | None = None) -> None:
        """Take the settings; `builder_text` takes the place of the builder's program."""
        self._settings = settings
        self._namespace = settings.kubernetes.namespace
        self.replica = _replica_name()
        self._api = ApiClient(settings.kubernetes)
        self._core = f"/api/v1/namespaces/{self._namespace}"
        self._records: dict[AttemptName, _Record] = {}
        self._forgotten: TTLCache[str, bool] = TTLCache(REMEMBERED, 3600)
        self._unreadable: TTLCache[str, bool] = TTLCache(REMEMBERED, 3600)
        self._changes: asyncio.Queue[Change | None] | None = None
        self._tasks = TaskSet()
        self._members: Leases | None = None
        self._pods = Informer(
            self._api,
            PODS,
            f"{self._core}/pods",
            manifest.selector(settings, manifest.BUILD),
            on_change=self._on_pod,
            on_gone=self._on_pod_gone,
            role="builds",
        )
        wanted = settings.kubernetes.docker_api_labels
        self._docker_api = Informer(
            self._api,
            PODS,
            f"{self._core}/pods",
            ",".join(f"{name}={value}" for name, value in wanted.items()),
            on_change=lambda _: self._on_docker_api(),
            on_gone=lambda _: self._on_docker_api(),
            role="docker-api",
        )
        self._docker_api_pods = 0
        self._provisions = BuildConfigObjects(self._api, settings, builder_text or BUILDER_TEXT)
        self._leftovers = GarbageCollector(self._api, settings, self._provisions.builder_map)

    # -- opening and closing

    async def __aenter__(self) -> Self:
        """Find the cluster and begin to watch it. Raises ConfigurationError when nothing says where it is."""
        await self._api.open()
        self._tasks.run_in_background(self._pods.run(), "watch of builds")
        self._tasks.run_in_background(self._docker_api.run(), "watch of docker-api")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written, give back the Lease, let go of everything; builds run on."""
        # Whoever stops a replica waits for it: what an API server that is away does not take is left to the others.
        await self._tasks.close(seconds=CLOSE_SECONDS)
        for record in self._records.values():
            _stop_timer(record)
        self._records.clear()
        if self._changes is not None:
            self._changes.put_nowait(None)
        if self._members is not None:
            await self._members.leave()
        await self._api.close()

    def problems(self) -> Mapping[str, str | None]:
        """Return what is wrong with the watches and the Lease."""
        watches = {"watch of builds": self._pods, "watch of docker-api": self._docker_api}
        found = {name: _problem_of(mirror) for name, mirror in watches.items()}
        if self._members is not None:
            found["lease"] = self._members.problem()
        return found

    # -- the protocol

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Make the pod, or return the record of that name.

        Raises NameTaken when a pod that is not ours has the name, ExecutorUnavailable when the API server is away or
        does not take the pod; its words say why.
        """
        return await asyncio.shield(self._tasks.run(self._create(spec, status), f"create {spec.name}"))

    async def _create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        known = self._records.get(spec.name)
        if known is not None and not known.is_memory:
            return known.snapshot(), False
        await self._provisions.provide_builder()
        credentials = await self._provisions.provide_credentials(spec)
        body = manifest.build_pod(
            spec,
            status,
            self._settings,
            replica=self.replica,
            builder_map=self._provisions.builder_map,
            credentials=credentials,
            ready_nodes=self._idle_enough(self.ready_nodes()),
        )
        for _ in range(CONFLICTS):
            try:
                data = await self._api.call(
                    "POST", f"{self._core}/pods", urgency=CallPriority.CREATE, body=body
                )
            except ApiStatusError as error:
                if error.status != 409:
                    raise as_unavailable(error) from error
            else:
                record = self._take(Pod.model_validate_json(data))
                if record is None:
                    raise ExecutorUnavailable(f"The pod {spec.name} was removed as soon as it was made.")
                if credentials:
                    await self._provisions.hand_over(credentials, record.pod)
                return record.snapshot(), True
            found = await self._adopt(spec.name)
            if found is not None:
                return found.snapshot(), False
        raise ExecutorUnavailable(f"A pod {spec.name} comes and goes.")

    async def _adopt(self, name: AttemptName) -> _Record | None:
        """Return the record that has the name, or None when what had it is gone by now."""
        pod = await self._read_pod(name)
        if pod is None:
            return None
        found = self._take(pod)
        if found is None and pod.metadata.uid in self._forgotten:
            raise ExecutorUnavailable(f"An earlier pod {name} is still being removed.")
        if found is None:
            raise NameTaken(f"A pod {name} that is no build of this service exists already.")
        return found

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None."""
        record = await self._find(name)
        return record.snapshot() if record else None

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status as one step. Raises RecordMissing, ExecutorUnavailable."""
        # What is being written must not be cut short: nobody would know whether it was.
        return await asyncio.shield(
            self._tasks.run(self._update_status(name, change), f"update the status of {name}")
        )

    async def _update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        record = await self._existing(name)
        async with record.writing:
            for _ in range(CONFLICTS):
                status = change(record.status)
                is_last = record.is_memory and status.reported and not record.status.reported
                if record.removed or (record.is_memory and not is_last):
                    raise RecordMissing(f"The record {name} is gone.")
                if status == record.status:
                    return record.snapshot()
                record.end_is_told |= status.reported
                if is_last:
                    self._complete(record, status)
                    return record.snapshot()
                if await self._patch_status(record, status):
                    return record.snapshot()
        raise ExecutorUnavailable(f"The record {name} is being written by many at once.")

    async def _patch_status(self, record: _Record, status: AttemptStatus) -> bool:
        """Write the status if they are still what we think; False when they were not, and are read anew."""
        metadata = record.pod.metadata
        steps = manifest.status_patch(record.pod, status)
        if status.reported:
            # From here on nobody needs the record: whoever deletes the pod may have it.
            steps += manifest.without_finalizer(record.pod)
        path = f"{self._core}/pods/{metadata.name}"
        try:
            data = await self._api.call(
                "PATCH", path, urgency=CallPriority.RECORD, body=steps, content_type=JSON_PATCH
            )
        except ApiStatusError as error:
            if error.status not in (404, 409, 422):
                raise as_unavailable(error) from error
            found = await self._read_pod(record.spec.name)
            if found is None or found.metadata.uid != metadata.uid:
                self._on_pod_gone(record.pod)
                if record.is_memory:
                    return False
                raise RecordMissing(f"The record {record.spec.name} is gone.") from error
            if found.metadata.resource_version == metadata.resource_version:
                raise as_unavailable(error) from error
            self._take(found)
            return False
        self._take(Pod.model_validate_json(data))
        if record.is_memory:
            self._complete(record, status)
        return True

    def _complete(self, record: _Record, status: AttemptStatus) -> None:
        """Note what is left to note of a pod that went with its finalizer, which the watch may tell before the answer."""
        record.status = status
        self._tell(record)

    async def changes(self) -> AsyncIterator[Change]:
        """Tell every record, then Synced, then each change. A second reader ends the first."""
        if self._changes is not None:
            self._changes.put_nowait(None)
        await self._pods.synced.wait()
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        for record in self._records.values():
            queue.put_nowait(Changed(record.snapshot()))
        queue.put_nowait(Synced())
        self._changes = queue
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            if self._changes is queue:
                self._changes = None

    async def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Read the lines above number `after` as they are written. Raises RecordMissing."""
        record = await self._existing(name)
        path = f"{self._core}/pods/{name}/log"
        async for lines in LogReader(self._api, path, name, record, after=after).read():
            yield lines

    async def cancel(self, name: AttemptName) -> None:
        """Delete the pod; the finalizer keeps it as a record until its end is told."""
        record = await self._find(name)
        if record is None or record.is_over or record.pod.metadata.deletion_timestamp is not None:
            return
        await self._delete(record.pod, grace=self._settings.kubernetes.termination_seconds)

    async def delete(self, name: AttemptName) -> None:
        """Remove the pod of an attempt that has ended. Raises ExecutorUnavailable."""
        record = self._records.get(name) or await self._find(name)
        if record is None:
            return
        if not record.is_over:
            log.warning("record not deleted", name=name, reason="still running")
            return
        await asyncio.shield(self._tasks.run(self._delete_record(record), f"delete {name}"))

    async def _delete_record(self, record: _Record) -> None:
        async with record.writing:
            if record.removed:
                return
            if not record.is_memory:
                await self._let_go(record.pod)
                # A pod on a node that does not answer goes only when nobody waits for the node.
                await self._delete(record.pod, grace=0)
                self._forgotten[record.uid] = True
                self._pods.drop(record.pod)
            self._drop(record)

    async def members(self) -> AsyncIterator[Members]:
        """Tell which replicas live; from here on this one does, and others see it."""
        self._members = Leases(self._api, self._settings, self.replica)
        self._tasks.run_in_background(self._members.mirror.run(), "watch of leases")
        self._tasks.run_in_background(self._members.run(), "lease")
        async for members in self._members.follow():
            yield members

    async def sweep(self) -> None:
        """Remove Secrets, ConfigMaps, Leases and pods that belong to no record."""
        if self._pods.problem is not None:
            # What a build uses looks like a leftover to who has not heard of the build.
            raise ExecutorUnavailable(f"It is not known which builds there are: {self._pods.problem}")
        pods = list(self._pods.objects.values())
        try:
            await self._leftovers.sweep(pods, utc_now())
        except ApiStatusError as error:
            raise as_unavailable(error) from error
        if self._members is not None:
            await self._members.sweep()

    # -- pods

    def _take(self, pod: Pod) -> _Record | None:
        """Take in a pod that an answer held, ahead of the watch; None for one that is no record, or is forgotten."""
        self._pods.take(pod)
        record = self._records.get(AttemptName(pod.metadata.name))
        return record if record is not None and record.uid == pod.metadata.uid else None

    def _on_pod(self, pod: Pod) -> None:
        uid, name = pod.metadata.uid, AttemptName(pod.metadata.name)
        if uid in self._forgotten:
            return
        record = self._records.get(name)
        if record is not None and record.uid != uid:
            if _is_older(pod, record.pod):
                return
            self._drop(record)
            record = None
        if record is None:
            record = self._read_record(pod)
            if record is None:
                return
            self._records[name] = record
        record.pod = pod
        record.status = manifest.read_status(pod)
        record.end_is_told |= record.status.reported
        self._refresh(record)

    def _read_record(self, pod: Pod) -> _Record | None:
        spec = manifest.read_spec(pod)
        if spec is None:
            if pod.metadata.uid not in self._unreadable:
                self._unreadable[pod.metadata.uid] = True
                log.error("a pod with our labels is no record", name=pod.metadata.name)
            return None
        return _Record(spec, pod, manifest.read_status(pod), observe_pod(pod, self._around(None)))

    def _on_pod_gone(self, pod: Pod) -> None:
        record = self._records.get(AttemptName(pod.metadata.name))
        if record is None or record.uid != pod.metadata.uid or record.is_memory:
            return
        if record.end_is_told and record.is_over:
            self._remember(record)
            return
        log.warning("a build pod was removed from outside", name=record.spec.name)
        self._drop(record)

    def _remember(self, record: _Record) -> None:
        """Keep what answers duplicates, for as long as the pod would have been kept."""
        record.is_memory = True
        _stop_timer(record)
        told_at = record.status.reported_at or utc_now()
        left = self._settings.limits.keep_ended_seconds - (utc_now() - told_at).total_seconds()
        record.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._drop, record)

    def _drop(self, record: _Record) -> None:
        """Take back a record whose pod is gone."""
        if record.removed:
            return
        record.removed = True
        _stop_timer(record)
        if self._records.get(record.spec.name) is record:
            del self._records[record.spec.name]
        for reader in list(record.readers):
            reader()
        if self._changes is not None:
            self._changes.put_nowait(Removed(record.spec.name))

    def _around(self, record: _Record | None) -> ObservationContext:
        return ObservationContext(
            now=utc_now(),
            pending_seconds=self._settings.kubernetes.pending_seconds,
            docker_api_pods=self._docker_api_pods,
            events=record.events if record else None,
            examined=record.examined if record else 0,
        )

    def _refresh(self, record: _Record) -> None:
        """See the pod anew, tell what changed, and come back when time alone would change it."""
        _stop_timer(record)
        if record.removed or record.is_memory:
            return
        around = self._around(record)
        record.sight = sight = observe_pod(record.pod, around)
        if sight.examine_at is not None and around.now >= sight.examine_at and not record.examining:
            record.examining = True
            self._tasks.run_in_background(self._examine(record), f"events of {record.spec.name}")
        coming = [at for at in (sight.examine_at, sight.look_again_at) if at is not None and at > around.now]
        if coming:
            seconds = (min(coming) - around.now).total_seconds()
            record.timer = asyncio.get_running_loop().call_later(seconds + 0.01, self._refresh, record)
        self._tell(record)
        for reader in list(record.readers):
            reader()

    def _tell(self, record: _Record) -> None:
        snapshot = record.snapshot()
        if snapshot != record.told:
            record.told = snapshot
            if self._changes is not None:
                self._changes.put_nowait(Changed(snapshot))

    async def _examine(self, record: _Record) -> None:
        """Ask for the events of a pod that does not start: they tell what no status does."""
        try:
            data = await self._api.call(
                "GET",
                f"{self._core}/events",
                urgency=CallPriority.READ,
                query={"fieldSelector": f"involvedObject.uid={record.uid}", "limit": "100"},
            )
            record.events = in_order(EventList.model_validate_json(data).items)
            await self._provisions.mend(record.events)
        except (ExecutorUnavailable, ApiStatusError) as error:
            log.warning("cannot read the events of a build pod", name=record.spec.name, error=str(error))
        finally:
            record.examining = False
            record.examined += 1
        self._refresh(record)

    async def _read_pod(self, name: AttemptName) -> Pod | None:
        try:
            data = await self._api.call("GET", f"{self._core}/pods/{name}", urgency=CallPriority.RECORD)
        except ApiStatusError as error:
            if error.status == 404:
                return None
            raise as_unavailable(error) from error
        return Pod.model_validate_json(data)

    async def _find(self, name: AttemptName) -> _Record | None:
        """Return the record as it is in the cluster now."""
        pod = await self._read_pod(name)
        known = self._records.get(name)
        if pod is None:
            if known is not None and not known.is_memory:
                self._on_pod_gone(known.pod)
            return self._records.get(name)
        return self._take(pod)

    async def _existing(self, name: AttemptName) -> _Record:
        record = self._records.get(name) or await self._find(name)
        if record is None:
            raise RecordMissing(f"There is no record {name}.")
        return record

    async def _delete(self, pod: Pod, *, grace: int) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": grace,
            "preconditions": {"uid": pod.metadata.uid},
        }
        path = f"{self._core}/pods/{pod.metadata.name}"
        try:
            await self._api.call("DELETE", path, urgency=CallPriority.RECORD, body=body)
        except ApiStatusError as error:
            # Gone already, or another pod has the name now.
            if error.status not in (404, 409):
                raise as_unavailable(error) from error

    async def _let_go(self, pod: Pod) -> None:
        """Take our finalizer off a pod."""
        steps = manifest.without_finalizer(pod)
        if not steps:
            return
        path = f"{self._core}/pods/{pod.metadata.name}"
        try:
            await self._api.call(
                "PATCH", path, urgency=CallPriority.RECORD, body=steps, content_type=JSON_PATCH
            )
        except ApiStatusError as error:
            if error.status not in (404, 409, 422):
                raise as_unavailable(error) from error

    # -- what pods need

    def ready_nodes(self) -> list[str]:
        """Return the nodes with a docker-api that is ready."""
        found: set[str] = set()
        for pod in self._docker_api.objects.values():
            ready = pod.status.condition("Ready")
            leaving = pod.metadata.deletion_timestamp is not None
            if ready and ready.status == "True" and pod.spec.node_name and not leaving:
                found.add(pod.spec.node_name)
        return sorted(found)

    def _idle_enough(self, nodes: list[str]) -> list[str]:
        """Leave out nodes that have more to do than others: a warm cache is not worth a queue."""
        live = Counter(record.pod.spec.node_name for record in self._records.values() if not record.is_over)
        least = min((live[node] for node in nodes), default=0)
        return [node for node in nodes if live[node] <= least + EXTRA_BUILDS]

    def _on_docker_api(self) -> None:
        count = len(self._docker_api.objects)
        if count != self._docker_api_pods:
            self._docker_api_pods = count
            for record in list(self._records.values()):
                if record.sight.state is AttemptState.PENDING:
                    self._refresh(record)


def _replica_name() -> str:
    """Return a name that no other process has, or had: a DNS label and a label value."""
    host = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:40].strip("-") or "replica"
    return f"{host}-{secrets.token_hex(3)}"


def _problem_of(mirror: Informer[Pod]) -> str | None:
    age = mirror.age()
    if mirror.problem is not None:
        return mirror.problem
    if age is not None and age > DEAF_SECONDS:
        return f"nothing heard for {age:.0f} seconds"
    return None


def _version(pod: Pod) -> int:
    version = pod.metadata.resource_version
    return int(version) if version.isdigit() else 0


def _is_older(pod: Pod, than: Pod) -> bool:
    made, other = pod.metadata.creation_timestamp, than.metadata.creation_timestamp
    if made is None or other is None or made == other:
        return _version(pod) < _version(than)
    return made < other


def _stop_timer(record: _Record) -> None:
    if record.timer is not None:
        record.timer.cancel()
        record.timer = None
