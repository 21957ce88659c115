"""The kubernetes executor: a pod per attempt that is also its record, a watch that knows them all, atomic writes."""

import asyncio
import hashlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import structlog

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.executors.attempt_names import state_name
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptStatus,
    Change,
    Lines,
    Members,
)
from rabbit2docker.consumer.executors.kubernetes.client import ApiClient, ApiStatusError, as_unavailable
from rabbit2docker.consumer.executors.kubernetes.config_objects import BuildConfigObjects
from rabbit2docker.consumer.executors.kubernetes.gc import GarbageCollector
from rabbit2docker.consumer.executors.kubernetes.informer import PODS, Informer
from rabbit2docker.consumer.executors.kubernetes.leases import Leases
from rabbit2docker.consumer.executors.kubernetes.logs import LogReader
from rabbit2docker.consumer.executors.kubernetes.models import Owned, Pod
from rabbit2docker.consumer.executors.kubernetes.nodes import Nodes
from rabbit2docker.consumer.executors.kubernetes.personal_secrets import PersonalSecrets
from rabbit2docker.consumer.executors.kubernetes.placement import least_loaded, ready_nodes
from rabbit2docker.consumer.executors.kubernetes.pod_records import PodRecords
from rabbit2docker.consumer.executors.kubernetes.pods import BuildPods
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.consumer.executors.record_format import newer_text
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import TaskSet

log = structlog.get_logger()

MAX_WATCH_AGE_SECONDS: Final = 120.0
"""A watch without data for longer than this, bookmarks included, makes the replica unready."""
BUILDER_TEXT: Final = BUILDER_PATH.read_text("utf-8")
CLOSE_SECONDS: Final = 5.0
SYNC_SECONDS: Final = 5.0
"""Time that the first list of docker-api pods may take before the engines count as unknown."""


class KubernetesExecutor:
    """Implements `Executor` with pods in a namespace that any number of replicas may share."""

    # Each checkpoint is a call, and lines can be read again at any time, as readers skip those they have seen.
    checkpoint_seconds = 60.0
    engine_check_seconds = 2.0

    def __init__(
        self,
        settings: Settings,
        *,
        builder_text: str | None = None,
        credentials: GitCredentials | None = None,
    ) -> None:
        """Prepare an executor; entering it connects. `builder_text` replaces the builder's program in tests."""
        self.replica = _replica_name()
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"
        self._settings = settings
        self._api = ApiClient(settings.kubernetes)
        self._tasks = TaskSet()
        credentials = GitCredentials(settings.tenants) if credentials is None else credentials
        self._personal: PersonalSecrets | None = None
        if namespace := settings.kubernetes.personal_namespace:
            self._personal = PersonalSecrets(self._api, namespace)
            credentials.use_personal(self._personal)
        self._config_objects = BuildConfigObjects(
            self._api, settings, builder_text or BUILDER_TEXT, credentials
        )
        self._records = PodRecords(self._api, settings, self._config_objects, self._tasks)
        self._pods = BuildPods(
            self._api,
            settings,
            self._records,
            self._config_objects,
            replica=self.replica,
            preferred_nodes=self._preferred_nodes,
        )
        self._nodes = Nodes(self._api, settings)
        self._garbage = GarbageCollector(self._api, settings, self._config_objects.builder_map)
        self._leases: Leases | None = None
        labels = settings.kubernetes.docker_api_labels
        self._docker_api = Informer(
            self._api,
            PODS,
            f"{self._core}/pods",
            ",".join(f"{name}={value}" for name, value in labels.items()),
            on_change=self._on_docker_api,
            on_removed=self._on_docker_api,
            name="docker-api",
        )

    async def __aenter__(self) -> Self:
        """Connect to the cluster and start the watches. Raises ConfigurationError if no cluster is configured."""
        await self._api.open()
        self._tasks.run_in_background(self._records.informer.run(), "watch of builds")
        self._tasks.run_in_background(self._docker_api.run(), "watch of docker-api")
        if self._nodes.is_needed:
            self._tasks.run_in_background(self._nodes.run(), "nodes")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish pending writes, release the Lease and disconnect; builds run on."""
        # Limited, because a stopping replica must not hang on an API server that is away; other replicas continue.
        await self._tasks.close(seconds=CLOSE_SECONDS)
        self._records.close()
        if self._leases is not None:
            await self._leases.release()
        await self._api.close()

    async def state_id(self) -> str:
        """Return a name that follows from cluster, namespace and instance."""
        namespace, instance = self._settings.kubernetes.namespace, self._settings.instance
        uid = await self._namespace_uid(namespace)
        identity = hashlib.sha256(f"{uid}/{namespace}/{instance}".encode()).hexdigest()
        return state_name(identity, f"{namespace}/{instance}")

    async def _namespace_uid(self, namespace: str) -> str:
        """Return the uid of the namespace, which is unique among clusters; empty if it is not readable."""
        try:
            data = await self._api.call(
                "GET", f"/api/v1/namespaces/{namespace}", priority=CallPriority.RECORD
            )
        except ApiStatusError as error:
            if error.status not in (403, 404):
                raise as_unavailable(error) from error
            log.warning(
                "namespace not readable: a consumer in another cluster would not be noticed", error=str(error)
            )
            return ""
        return Owned.model_validate_json(data).metadata.uid

    def problems(self) -> Mapping[str, str | None]:
        """Return the errors of the watches and the Lease."""
        found = {
            "watch of builds": _problem_of(self._records.informer),
            "watch of docker-api": _problem_of(self._docker_api),
            "records": newer_text(self._records.newer),
        }
        if self._leases is not None:
            found["lease"] = self._leases.problem()
        return found

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        """Create the pod, or return the record of that name. Raises NameTaken, ExecutorUnavailable."""
        return await asyncio.shield(self._tasks.run(self._create(spec, status), f"create {spec.name}"))

    async def _create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[Attempt, bool]:
        known = self._records.by_name.get(spec.name)
        if known is not None and not known.is_pod_gone:
            return known.snapshot(), False
        record, is_new = await self._pods.create(spec, status)
        return record.snapshot(), is_new

    async def get(self, name: AttemptName) -> Attempt | None:
        """Return a fresh snapshot, or None."""
        record = await self._pods.find(name)
        return record.snapshot() if record else None

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status atomically. Raises RecordMissing, ExecutorUnavailable."""
        # Shielded: a write that is cut short leaves open whether it took effect.
        return await asyncio.shield(
            self._tasks.run(self._pods.update_status(name, change), f"update the status of {name}")
        )

    def changes(self) -> AsyncIterator[Change]:
        """Yield every record, then Synced, then each change. A second reader ends the first."""
        return self._records.feed.read()

    async def lines(self, name: AttemptName, *, after: int) -> AsyncIterator[Lines]:
        """Yield the lines above number `after` as they are written. Raises RecordMissing."""
        record = await self._pods.get(name)
        reader = LogReader(self._api, f"{self._core}/pods/{name}/log", name, record, after=after)
        async for lines in reader.read():
            yield lines

    async def cancel(self, name: AttemptName) -> None:
        """Delete the pod; the finalizer keeps it as a record until its end is reported."""
        record = await self._pods.find(name)
        if record is None or record.has_ended or record.pod.metadata.deletion_timestamp is not None:
            return
        await self._pods.cancel(record)

    async def delete(self, name: AttemptName) -> None:
        """Delete the pod and the record of an attempt that has ended. Raises ExecutorUnavailable."""
        record = self._records.by_name.get(name) or await self._pods.find(name)
        if record is None:
            return
        if not record.has_ended:
            log.warning("record not deleted", name=name, reason="still running")
            return
        await asyncio.shield(self._tasks.run(self._pods.delete(record), f"delete {name}"))

    async def members(self) -> AsyncIterator[Members]:
        """Join the replicas, then yield those that live, whenever they change."""
        self._leases = Leases(self._api, self._settings, self.replica)
        self._tasks.run_in_background(self._leases.informer.run(), "watch of leases")
        self._tasks.run_in_background(self._leases.run(), "lease")
        async for members in self._leases.members():
            yield members

    async def sweep(self) -> None:
        """Remove Secrets, ConfigMaps, Leases and pods that belong to no record."""
        informer = self._records.informer
        if informer.problem is not None:
            # The objects of a build that is not known yet would look unused.
            raise ExecutorUnavailable(f"The list of builds is out of date: {informer.problem}")
        try:
            await self._garbage.sweep(list(informer.objects.values()), utc_now())
            if self._personal:
                await self._personal.sweep(utc_now())
        except ApiStatusError as error:
            raise as_unavailable(error) from error
        if self._leases is not None:
            await self._leases.sweep()

    async def engine_problem(self) -> str | None:
        """Return a problem if no node has a ready docker-api; None if that is unknown."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SYNC_SECONDS):
                await self._docker_api.synced.wait()
        is_known = self._docker_api.synced.is_set() and self._docker_api.problem is None
        if not is_known or self.ready_nodes():
            return None
        return "No node of the cluster has a ready docker-api."

    def ready_nodes(self) -> list[str]:
        """Return the nodes with a ready docker-api."""
        return ready_nodes(self._docker_api.objects.values())

    def _preferred_nodes(self, tenant: str) -> list[str]:
        # Nodes that are closed to the tenant are no choice, nor is a queue on its own nodes a reason to leave these.
        nodes = self._nodes.where(tenant, self.ready_nodes())
        return least_loaded(nodes, self._records.running_per_node())

    def _on_docker_api(self, _: Pod) -> None:
        self._records.set_docker_api_pods(len(self._docker_api.objects))


def _replica_name() -> str:
    """Return a name that is unique among all processes, and valid as a DNS label and as a label value."""
    host = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:40].strip("-") or "replica"
    return f"{host}-{secrets.token_hex(3)}"


def _problem_of(informer: Informer[Pod]) -> str | None:
    age = informer.age()
    if informer.problem is not None:
        return informer.problem
    if age is not None and age > MAX_WATCH_AGE_SECONDS:
        return f"no data received for {age:.0f} seconds"
    return None
