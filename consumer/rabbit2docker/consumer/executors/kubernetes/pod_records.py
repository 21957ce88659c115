"""Records of build pods, cached from a watch: what the executor knows without a call."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from cachetools import TTLCache

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
)
from rabbit2docker.consumer.executors.change_feed import ChangeFeed
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.config_objects import BuildConfigObjects
from rabbit2docker.consumer.executors.kubernetes.informer import PODS, Informer
from rabbit2docker.consumer.executors.kubernetes.models import Event, EventList, Pod
from rabbit2docker.consumer.executors.kubernetes.pod_status import (
    ObservationContext,
    PodObservation,
    observe_pod,
    sort_events,
)
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.consumer.executors.record_format import NewerRecord
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.reasons import FailureReason

log = structlog.get_logger()

REMEMBERED_UIDS: Final = 10_000


@dataclass(slots=True, eq=False)
class PodRecord:
    """The record of one attempt. The pod in the cluster is the source; this follows each change of it."""

    spec: AttemptSpec
    pod: Pod
    status: AttemptStatus
    observation: PodObservation
    events: list[Event] | None = None
    event_reads: int = 0
    is_reading_events: bool = False
    timer: asyncio.TimerHandle | None = None
    """Observes the pod again."""
    removed: bool = False
    report_begun: bool = False
    """A write of `reported` has begun; stays true even if the write fails, since it may have taken effect."""
    is_pod_gone: bool = False
    """The pod is gone after its end was reported; the record still answers duplicate requests, until it is deleted."""
    write_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    log_readers: set[Callable[[], None]] = field(default_factory=set)

    @property
    def uid(self) -> str:
        """Return the uid of the pod."""
        return self.pod.metadata.uid

    @property
    def has_log(self) -> bool:
        """Return whether the container was started and the pod still exists."""
        return self.observation.started_at is not None and not self.is_pod_gone

    @property
    def has_ended(self) -> bool:
        """Return whether the attempt has ended."""
        return self.observation.state is AttemptState.ENDED

    @property
    def is_node_lost(self) -> bool:
        """Return whether the attempt counts as ended because its node stopped responding."""
        end = self.observation.external_end
        return end is not None and end.reason is FailureReason.NODE_LOST

    @property
    def line_count(self) -> int | None:
        """Return the number of lines that the builder reported at its end; None if unknown."""
        return self.observation.result.lines if self.observation.result else None

    def snapshot(self) -> Attempt:
        """Return the record as the protocol's Attempt."""
        observation = self.observation
        return Attempt(
            spec=self.spec,
            status=self.status,
            state=observation.state,
            result=observation.result,
            external_end=observation.external_end,
            waiting_for=observation.waiting_for,
            pending_deadline=observation.pending_deadline,
            node=self.pod.spec.node_name,
            created_by=self.pod.metadata.labels.get(manifest.REPLICA),
            started_at=observation.started_at,
            ended_at=observation.ended_at,
        )

    def stop_timer(self) -> None:
        """Cancel the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def notify_log_readers(self) -> None:
        """Call the callbacks of all readers of the log."""
        for on_change in list(self.log_readers):
            on_change()


class PodRecords:
    """The records of all build pods and the feed of their changes."""

    def __init__(
        self, api: ApiClient, settings: Settings, config_objects: BuildConfigObjects, tasks: TaskSet
    ) -> None:
        """Prepare the watch of the build pods; `informer.run` starts it."""
        self._api = api
        self._settings = settings
        self._config_objects = config_objects
        self._tasks = tasks
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"
        self._by_name: dict[AttemptName, PodRecord] = {}
        self._deleted: TTLCache[str, bool] = TTLCache(REMEMBERED_UIDS, 3600)
        self._unreadable: TTLCache[str, bool] = TTLCache(REMEMBERED_UIDS, 3600)
        self._docker_api_pods = 0
        self.newer: dict[str, str] = {}
        """Versions of the records that are left alone, by name, because a newer service wrote them."""
        self.informer = Informer(
            api,
            PODS,
            f"{self._core}/pods",
            manifest.selector(settings, manifest.BUILD),
            on_change=self._on_change,
            on_removed=self.handle_removed,
            name="builds",
        )
        self.feed = ChangeFeed(
            lambda: [record.snapshot() for record in self._by_name.values()],
            ready=self.informer.synced.wait,
        )

    @property
    def by_name(self) -> Mapping[AttemptName, PodRecord]:
        """Return the cached records."""
        return self._by_name

    def close(self) -> None:
        """Stop all timers, drop the records and end the feed."""
        for record in self._by_name.values():
            record.stop_timer()
        self._by_name.clear()
        self.feed.close()

    def put(self, pod: Pod) -> PodRecord | None:
        """Cache a pod from the response to a call, ahead of the watch, and return its record.

        None if the pod is no record, was deleted by us, or is older than another pod of its name.
        """
        self.informer.update(pod)
        record = self._by_name.get(AttemptName(pod.metadata.name))
        return record if record is not None and record.uid == pod.metadata.uid else None

    def publish(self, record: PodRecord) -> None:
        """Publish the record to the reader of the feed."""
        self.feed.publish(record.snapshot())

    def was_deleted(self, pod: Pod) -> bool:
        """Return whether the record of this pod was deleted recently; the pod itself may still be terminating."""
        return pod.metadata.uid in self._deleted

    def delete(self, record: PodRecord) -> None:
        """Drop a record, and ignore what the watch still reports about its pod."""
        if not record.is_pod_gone:
            self._deleted[record.uid] = True
            self.informer.discard(record.pod)
        self._drop(record)

    def set_docker_api_pods(self, count: int) -> None:
        """Set the number of docker-api pods, which decides the messages of pending attempts."""
        if count == self._docker_api_pods:
            return
        self._docker_api_pods = count
        for record in list(self._by_name.values()):
            if record.observation.state is AttemptState.PENDING:
                self._observe(record)

    def running_per_node(self) -> Counter[str | None]:
        """Return the number of attempts per node that have not ended."""
        return Counter(record.pod.spec.node_name for record in self._by_name.values() if not record.has_ended)

    def handle_removed(self, pod: Pod) -> None:
        """Keep the record of a removed pod if its end was reported, else drop it."""
        self.newer.pop(pod.metadata.name, None)
        record = self._by_name.get(AttemptName(pod.metadata.name))
        if record is None or record.uid != pod.metadata.uid or record.is_pod_gone:
            return
        if record.report_begun and record.has_ended:
            self._keep_without_pod(record)
            return
        log.warning("build pod removed by another client", name=record.spec.name)
        self._drop(record)

    def _keep_without_pod(self, record: PodRecord) -> None:
        """Keep a record that answers duplicate requests for as long as an ended build's pod is kept."""
        record.is_pod_gone = True
        record.stop_timer()
        keep = self._settings.limits.keep_ended_seconds
        record.timer = asyncio.get_running_loop().call_later(keep, self._drop, record)

    def _drop(self, record: PodRecord) -> None:
        if record.removed:
            return
        record.removed = True
        record.stop_timer()
        if self._by_name.get(record.spec.name) is record:
            del self._by_name[record.spec.name]
        record.notify_log_readers()
        self.feed.publish_removed(record.spec.name)

    def _on_change(self, pod: Pod) -> None:
        name = AttemptName(pod.metadata.name)
        if self.was_deleted(pod):
            return
        record = self._by_name.get(name)
        if record is not None and record.uid != pod.metadata.uid:
            if _is_older(pod, record.pod):
                return
            self._drop(record)
            record = None
        if record is None:
            record = self._read_record(pod)
            if record is None:
                return
            self._by_name[name] = record
        record.pod = pod
        record.status = manifest.read_status(pod)
        record.report_begun |= record.status.reported
        self._observe(record)

    def _read_record(self, pod: Pod) -> PodRecord | None:
        try:
            spec, status = manifest.read_spec(pod), manifest.read_status(pod)
        except NewerRecord as error:
            if pod.metadata.name not in self.newer:
                log.error("pod left alone: newer record", name=pod.metadata.name, error=str(error))
            self.newer[pod.metadata.name] = error.version
            return None
        self.newer.pop(pod.metadata.name, None)
        if spec is None:
            if pod.metadata.uid not in self._unreadable:
                self._unreadable[pod.metadata.uid] = True
                log.error("pod without a valid record ignored", name=pod.metadata.name)
            return None
        return PodRecord(spec, pod, status, observe_pod(pod, self._context(None)))

    def _context(self, record: PodRecord | None) -> ObservationContext:
        return ObservationContext(
            now=utc_now(),
            pending_seconds=self._settings.kubernetes.pending_seconds,
            docker_api_pods=self._docker_api_pods,
            events=record.events if record else None,
            event_reads=record.event_reads if record else 0,
        )

    def _observe(self, record: PodRecord) -> None:
        """Observe the pod, publish the result, and set a timer for when it changes by time alone."""
        record.stop_timer()
        if record.removed or record.is_pod_gone:
            return
        context = self._context(record)
        record.observation = observation = observe_pod(record.pod, context)
        read_events_at = observation.read_events_at
        if read_events_at is not None and context.now >= read_events_at and not record.is_reading_events:
            record.is_reading_events = True
            self._tasks.run_in_background(self._read_events(record), f"events of {record.spec.name}")
        due = [at for at in (read_events_at, observation.observe_again_at) if at and at > context.now]
        if due:
            seconds = (min(due) - context.now).total_seconds()
            record.timer = asyncio.get_running_loop().call_later(seconds + 0.01, self._observe, record)
        self.publish(record)
        record.notify_log_readers()

    async def _read_events(self, record: PodRecord) -> None:
        """Read the events of a pod that does not start: they show problems that no status shows."""
        try:
            data = await self._api.call(
                "GET",
                f"{self._core}/events",
                priority=CallPriority.READ,
                query={"fieldSelector": f"involvedObject.uid={record.uid}", "limit": "100"},
            )
            record.events = sort_events(EventList.model_validate_json(data).items)
            await self._config_objects.restore_builder(record.events)
        except (ExecutorUnavailable, ApiStatusError) as error:
            log.warning("reading pod events failed", name=record.spec.name, error=str(error))
        finally:
            record.is_reading_events = False
            record.event_reads += 1
        self._observe(record)


def _is_older(pod: Pod, than: Pod) -> bool:
    created, other = pod.metadata.creation_timestamp, than.metadata.creation_timestamp
    if created is None or other is None or created == other:
        return _version(pod) < _version(than)
    return created < other


def _version(pod: Pod) -> int:
    version = pod.metadata.resource_version
    return int(version) if version.isdigit() else 0
