"""Models of the Kubernetes objects that the executor reads, with only the fields it uses.

Field names are the API's (Pod v1, Event v1, Lease coordination.k8s.io/v1) in snake_case.
"""

from datetime import datetime
from typing import Any

from pydantic import AliasGenerator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

Manifest = dict[str, Any]
"""An object, or a part of one, as it is sent to the API server."""


class KubeObject(BaseModel):
    """Base of all models: reads camelCase names and drops unknown fields while parsing."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel),
        validate_by_name=True,
        extra="ignore",
        frozen=True,
    )


class OwnerReference(KubeObject):
    """An object whose deletion deletes the one that refers to it."""

    uid: str


class Metadata(KubeObject):
    """The metadata common to all objects."""

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
    """State of a container that does not run yet."""

    reason: str | None = None
    message: str | None = None


class Running(KubeObject):
    """State of a container that runs."""

    started_at: datetime | None = None


class Terminated(KubeObject):
    """State of a container that has ended."""

    exit_code: int = 0
    reason: str | None = None
    message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ContainerState(KubeObject):
    """State of a container: one of the three fields is set, or none."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(KubeObject):
    """Status of one container."""

    name: str
    state: ContainerState = ContainerState()
    ready: bool = False


class PodSpec(KubeObject):
    """The part of a pod's specification that the scheduler fills in."""

    node_name: str | None = None


class PodStatus(KubeObject):
    """Status of a pod."""

    phase: str = ""
    reason: str | None = None
    message: str | None = None
    start_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()

    def condition(self, condition_type: str) -> Condition | None:
        """Return the condition of that type, or None."""
        return next((item for item in self.conditions if item.type == condition_type), None)


class Pod(KubeObject):
    """A build pod or a docker-api pod."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(KubeObject):
    """A mark of a node that keeps pods away which do not tolerate it."""

    key: str
    value: str = ""
    effect: str


class NodeSpec(KubeObject):
    """The part of a node that closes it to pods."""

    taints: tuple[Taint, ...] = ()


class Node(KubeObject):
    """A node."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()


class LeaseSpec(KubeObject):
    """Holder, duration and last renewal of a Lease."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    renew_time: str | None = None


class Lease(KubeObject):
    """The heartbeat of a replica."""

    metadata: Metadata
    spec: LeaseSpec = LeaseSpec()


class Owned(KubeObject):
    """An object of any type, of which only the metadata are read."""

    metadata: Metadata


class Event(KubeObject):
    """An event of a pod, reported by a component of the cluster."""

    reason: str | None = None
    message: str | None = None
    type: str | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None


class ListMetadata(KubeObject):
    """Version of a list, and the token for its next page."""

    resource_version: str = ""
    continue_: str | None = None

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: to_camel(name.rstrip("_"))),
        validate_by_name=True,
        extra="ignore",
        frozen=True,
    )


class PodList(KubeObject):
    """One page of a list of pods."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Pod, ...] = ()


class NodeList(KubeObject):
    """One page of a list of nodes."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Node, ...] = ()


class LeaseList(KubeObject):
    """One page of a list of Leases."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Lease, ...] = ()


class OwnedList(KubeObject):
    """One page of a list of objects of any type."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Owned, ...] = ()


class AnyList(KubeObject):
    """One page of a list of objects that are parsed one by one."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[dict[str, Any], ...] = ()


class EventList(KubeObject):
    """One page of a list of events."""

    items: tuple[Event, ...] = ()


class WatchStatus(KubeObject):
    """The object of an ERROR event of a watch."""

    code: int = 0
    reason: str | None = None
    message: str | None = None


class ErrorEvent(KubeObject):
    """An ERROR event of a watch."""

    object: WatchStatus = WatchStatus()


class BookmarkObject(KubeObject):
    """The object of a BOOKMARK event: the version that the watch has reached."""

    metadata: ListMetadata = ListMetadata()


class BookmarkEvent(KubeObject):
    """A BOOKMARK event of a watch."""

    object: BookmarkObject = BookmarkObject()


class PodEvent(KubeObject):
    """An ADDED, MODIFIED or DELETED event of a watch on pods."""

    object: Pod


class LeaseEvent(KubeObject):
    """An ADDED, MODIFIED or DELETED event of a watch on Leases."""

    object: Lease
