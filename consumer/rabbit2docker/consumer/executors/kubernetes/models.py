"""What we read of Kubernetes objects: a handful of fields, straight from JSON, the rest is never kept."""

from datetime import datetime
from typing import Any

from pydantic import AliasGenerator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class KubeObject(BaseModel):
    """Names as in the API (camelCase); unknown fields are dropped while parsing."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel),
        validate_by_name=True,
        extra="ignore",
        frozen=True,
    )


class OwnerReference(KubeObject):
    """Whose end is the object's end."""

    uid: str


class Metadata(KubeObject):
    """What all objects have."""

    name: str
    uid: str
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()


class Condition(KubeObject):
    """One condition of a pod."""

    type: str
    status: str
    reason: str | None = None
    message: str | None = None


class Waiting(KubeObject):
    """A container that does not run yet."""

    reason: str | None = None
    message: str | None = None


class Running(KubeObject):
    """A container that runs."""

    started_at: datetime | None = None


class Terminated(KubeObject):
    """A container that has ended."""

    exit_code: int = 0
    reason: str | None = None
    message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ContainerState(KubeObject):
    """One of the three, or none."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(KubeObject):
    """How one container is."""

    name: str
    state: ContainerState = ContainerState()
    ready: bool = False


class PodSpec(KubeObject):
    """Where a pod runs."""

    node_name: str | None = None


class PodStatus(KubeObject):
    """How a pod is."""

    phase: str = ""
    reason: str | None = None
    message: str | None = None
    start_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class Pod(KubeObject):
    """A build pod, or one of docker-api."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class LeaseSpec(KubeObject):
    """Who holds a lease, and for how long without another word."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    renew_time: str | None = None


class Lease(KubeObject):
    """A replica's sign of life."""

    metadata: Metadata
    spec: LeaseSpec = LeaseSpec()


class Owned(KubeObject):
    """Any object, where only its metadata count."""

    metadata: Metadata


class Event(KubeObject):
    """What happened to a pod, as components of the cluster told it."""

    reason: str | None = None
    message: str | None = None
    type: str | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None


class ListMetadata(KubeObject):
    """Where a list stands."""

    resource_version: str = ""
    continue_: str | None = None

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: to_camel(name.rstrip("_"))),
        validate_by_name=True,
        extra="ignore",
        frozen=True,
    )


class PodList(KubeObject):
    """A page of pods."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Pod, ...] = ()


class LeaseList(KubeObject):
    """A page of leases."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Lease, ...] = ()


class OwnedList(KubeObject):
    """A page of any objects."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Owned, ...] = ()


class AnyList(KubeObject):
    """A page of objects that are looked at one by one."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[dict[str, Any], ...] = ()


class EventList(KubeObject):
    """A page of events."""

    items: tuple[Event, ...] = ()


class WatchStatus(KubeObject):
    """The object of an ERROR on a watch."""

    code: int = 0
    reason: str | None = None
    message: str | None = None


class WatchedError(KubeObject):
    """An ERROR on a watch."""

    object: WatchStatus = WatchStatus()


class BookmarkObject(KubeObject):
    """Where the watch stands."""

    metadata: ListMetadata = ListMetadata()


class Bookmark(KubeObject):
    """A BOOKMARK on a watch."""

    object: BookmarkObject = BookmarkObject()


class PodWatched(KubeObject):
    """An ADDED, MODIFIED or DELETED pod."""

    object: Pod


class LeaseWatched(KubeObject):
    """An ADDED, MODIFIED or DELETED lease."""

    object: Lease
