"""Pure: what a pod's status means. One place for every way in which a build pod waits, gets stuck or ends.

Reasons, conditions and messages are Kubernetes' own (API reference of Pod v1; kubelet and scheduler 1.29 to 1.36).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import AttemptState, BuilderResult, ExternalEnd, PendingDeadline
from rabbit2docker.consumer.executors.kubernetes.models import ContainerStatus, Event, Pod, Terminated
from rabbit2docker_schemas.reasons import FailureReason as Reason

BUILDER_CONTAINER: Final = "builder"
LOST_SECONDS: Final = 30.0
"""A pod that is still there so long after the moment by which it had to end is on a node that does not answer."""
EXAMINE_SECONDS: Final = (5.0, 20.0, 45.0, 90.0, 180.0)
"""When a scheduled pod that does not run is asked about its events; counted from when its node took it."""
OUR_WORD: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class StuckRule:
    """How long a state may last before it is given up, and as what."""

    reason: Reason
    seconds: float
    says: str
    """For a person; `{}` is what Kubernetes says."""


@dataclass(frozen=True, slots=True)
class ObservationContext:
    """What has to be known beside the pod."""

    now: datetime
    pending_seconds: float
    """Limit from the creation of the pod, whatever it waits for."""
    docker_api_pods: int = 1
    """How many docker-api pods there are."""
    events: Sequence[Event] | None = None
    """The pod's events, oldest first, where they were asked for."""
    examined: int = 0
    """How often they were asked for."""


@dataclass(frozen=True, slots=True)
class PodObservation:
    """What the pod's status means now."""

    state: AttemptState
    result: BuilderResult | None = None
    external_end: ExternalEnd | None = None
    waiting_for: str | None = None
    pending_deadline: PendingDeadline | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    examine_at: datetime | None = None
    """When the pod's events should be asked for."""
    look_again_at: datetime | None = None
    """When time alone changes what this means."""


WAITING_REASONS: Final = {
    "ErrImagePull": StuckRule(Reason.BUILDER_IMAGE_UNAVAILABLE, 90, "The builder image cannot be pulled: {}"),
    "ImagePullBackOff": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 90, "The builder image cannot be pulled: {}"
    ),
    "ImageInspectError": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 90, "The builder image cannot be read: {}"
    ),
    "RegistryUnavailable": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 90, "The builder image's registry is away: {}"
    ),
    "SignatureValidationFailed": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 90, "The builder image is not trusted: {}"
    ),
    "InvalidImageName": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 0, "The builder image's name is invalid: {}"
    ),
    "ErrImageNeverPull": StuckRule(
        Reason.BUILDER_IMAGE_UNAVAILABLE, 30, "The node lacks the builder image and may not pull it: {}"
    ),
    # Not at once: a missing Secret may be on its way.
    "CreateContainerConfigError": StuckRule(
        Reason.POD_MISCONFIGURED, 20, "The build pod is misconfigured: {}"
    ),
    "CreateContainerError": StuckRule(Reason.POD_NOT_STARTED, 60, "The node cannot create the builder: {}"),
    "RunContainerError": StuckRule(Reason.POD_MISCONFIGURED, 20, "The node cannot start the builder: {}"),
    "PreCreateHookError": StuckRule(Reason.POD_NOT_STARTED, 60, "The node cannot create the builder: {}"),
    "PreStartHookError": StuckRule(Reason.POD_NOT_STARTED, 60, "The node cannot start the builder: {}"),
    "PostStartHookError": StuckRule(Reason.POD_NOT_STARTED, 60, "The node cannot start the builder: {}"),
}
"""Reasons of a waiting container."""

EVENT_REASONS: Final = (
    (
        "FailedMount",
        re.compile(r'(?:secret|configmap) "[^"]*" not found|references non-existent (?:secret|config) key'),
        StuckRule(Reason.POD_MISCONFIGURED, 120, "Something that the build pod mounts is missing: {}"),
    ),
    (
        "FailedMount",
        re.compile(r"hostPath type check failed"),
        StuckRule(Reason.POD_NOT_STARTED, 90, "docker-api is not up on the node yet: {}"),
    ),
    (
        "FailedMount",
        re.compile(""),
        StuckRule(Reason.POD_NOT_STARTED, 120, "The node cannot mount a volume of the build pod: {}"),
    ),
    (
        "FailedAttachVolume",
        re.compile(""),
        StuckRule(Reason.POD_NOT_STARTED, 120, "The node cannot attach a volume of the build pod: {}"),
    ),
    (
        "FailedCreatePodSandBox",
        re.compile(""),
        StuckRule(Reason.POD_NOT_STARTED, 120, "The node cannot set up the build pod: {}"),
    ),
    (
        "NetworkNotReady",
        re.compile(""),
        StuckRule(Reason.POD_NOT_STARTED, 120, "The node's network is not ready: {}"),
    ),
)
"""Reasons of events that no status shows, first match wins."""

DISRUPTIONS: Final = {
    "PreemptionByScheduler": (Reason.EVICTED, "The build gave way to a pod of higher priority."),
    "EvictionByEvictionAPI": (Reason.EVICTED, "The build's node is being emptied."),
    "DeletionByTaintManager": (Reason.NODE_LOST, "The build's node stopped responding."),
    "DeletionByPodGC": (Reason.NODE_LOST, "The build's node is gone."),
    "TerminationByKubelet": (Reason.EVICTED, "The build's node ended it: {}"),
}
"""Reasons of the condition DisruptionTarget."""

STATUS_REASONS: Final = {
    "Evicted": (Reason.EVICTED, "The build's node ran short: {}"),
    "NodeShutdown": (Reason.EVICTED, "The build's node was shut down."),
    "Shutdown": (Reason.EVICTED, "The build's node was shut down."),
    "Terminated": (Reason.EVICTED, "The build's node was shut down."),
    "NodeLost": (Reason.NODE_LOST, "The build's node stopped responding."),
    "DeadlineExceeded": (Reason.TIMEOUT, "The build took longer than it may and was ended."),
    "Preempting": (Reason.NODE_REFUSED, "The node gave the build's place to another pod: {}"),
    "NodeAffinity": (Reason.NODE_REFUSED, "The node refused the build pod: {}"),
    "NodeName": (Reason.NODE_REFUSED, "The node refused the build pod: {}"),
    "NodePorts": (Reason.NODE_REFUSED, "The node refused the build pod: {}"),
    "UnexpectedAdmissionError": (Reason.NODE_REFUSED, "The node refused the build pod: {}"),
}
"""Reasons of a failed pod; those that begin with OutOf are the node's lack of something."""

CONTAINER_REASONS: Final = {
    "OOMKilled": (
        Reason.BUILDER_OUT_OF_MEMORY,
        "Fetching the repository took more memory than the build pod may use.",
    ),
    "StartError": (Reason.POD_MISCONFIGURED, "The builder cannot be started: {}"),
    "ContainerCannotRun": (Reason.POD_MISCONFIGURED, "The builder cannot be started: {}"),
    "ContainerStatusUnknown": (Reason.NODE_LOST, "The build's node lost track of it."),
}
"""Reasons of a terminated container."""


def observe_pod(pod: Pod, around: ObservationContext) -> PodObservation:
    """Tell what the pod's status means."""
    builder = _builder(pod)
    state = builder.state if builder else None
    started_at = None
    if state is not None and state.running is not None:
        started_at = state.running.started_at
    if (state is not None and state.terminated is not None) or pod.status.phase in ("Succeeded", "Failed"):
        return _ended(pod, state.terminated if state else None, around, started_at)
    if (leaving := _leaving(pod, around, started_at)) is not None:
        return leaving
    if state is not None and state.running is not None:
        return PodObservation(AttemptState.RUNNING, started_at=started_at)
    return _pending(pod, builder, around)


def _builder(pod: Pod) -> ContainerStatus | None:
    return next((item for item in pod.status.container_statuses if item.name == BUILDER_CONTAINER), None)


# -- the end


def _ended(
    pod: Pod, terminated: Terminated | None, around: ObservationContext, started_at: datetime | None
) -> PodObservation:
    result = read_result(terminated.message) if terminated else None
    ended_at = (terminated.finished_at if terminated else None) or pod.metadata.deletion_timestamp
    return PodObservation(
        AttemptState.ENDED,
        result=result,
        external_end=_ending(pod, terminated, result),
        # A node that is gone never tells that the container has ended.
        started_at=_real(terminated.started_at) if terminated else started_at,
        ended_at=_real(ended_at) or pod.status.start_time or pod.metadata.creation_timestamp or around.now,
    )


def _real(moment: datetime | None) -> datetime | None:
    """Return the moment, but None for the epoch, which stands for a container that never was."""
    return moment if moment is not None and moment.year > 1970 else None


def read_result(message: str | None) -> BuilderResult | None:
    """Return the result in a termination message; None where the builder could not write one."""
    try:
        return BuilderResult.model_validate_json(message or "")
    except ValidationError:
        return None


def _ending(pod: Pod, terminated: Terminated | None, result: BuilderResult | None) -> ExternalEnd | None:
    """Tell what ended the builder from outside. What it says itself counts more, unless it only says that it was told to."""
    if result is not None and result.reason != OUR_WORD:
        return None
    if (ending := _disruption(pod)) is not None:
        return ending
    status = pod.status
    said = status.message or "no message"
    if status.reason in STATUS_REASONS:
        return _ending_of(*STATUS_REASONS[status.reason], said)
    if status.reason and status.reason.startswith("OutOf"):
        return _ending_of(Reason.NODE_REFUSED, "The node refused the build pod: {}", said)
    if terminated is not None and terminated.reason in CONTAINER_REASONS and not _never_was(pod, terminated):
        words = _last_words(terminated.message) or "no message"
        return _ending_of(*CONTAINER_REASONS[terminated.reason], words)
    if pod.metadata.deletion_timestamp is not None:
        return _ending_of(Reason.POD_DELETED, "The build pod was deleted from the cluster.", "")
    if terminated is None:
        return _ending_of(Reason.POD_NOT_STARTED, "The build pod failed before it started: {}", said)
    if words := _last_words(terminated.message):
        says = f"The builder ended with exit code {terminated.exit_code} and no result: {{}}"
        return _ending_of(Reason.BUILDER_LOST, says, words)
    return None


def _never_was(pod: Pod, terminated: Terminated) -> bool:
    """Tell whether the node lost track of a container only because the pod was deleted before there was one."""
    return terminated.reason == "ContainerStatusUnknown" and pod.metadata.deletion_timestamp is not None


def _disruption(pod: Pod) -> ExternalEnd | None:
    condition = pod.status.condition("DisruptionTarget")
    if condition is None or condition.status != "True":
        return None
    default = (Reason.EVICTED, "The cluster ended the build: {}")
    reason, says = DISRUPTIONS.get(condition.reason or "", default)
    return _ending_of(reason, says, pod.status.message or condition.message or "no message")


def _ending_of(reason: Reason, says: str, said: str) -> ExternalEnd:
    return ExternalEnd(reason=reason, message=says.replace("{}", _shortened(said)))


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:499] + "…"


def _last_words(message: str | None) -> str:
    """Return the last line of a termination message, which may be the end of the log."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1])["text"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]


def _leaving(pod: Pod, around: ObservationContext, started_at: datetime | None) -> PodObservation | None:
    """Tell of a pod that is being deleted and has not ended."""
    until = pod.metadata.deletion_timestamp
    if until is None:
        return None
    lost_at = until + timedelta(seconds=LOST_SECONDS)
    if pod.spec.node_name is None:
        # Nobody will end it, as no node has it.
        return PodObservation(AttemptState.ENDED, external_end=_ending(pod, None, None), ended_at=until)
    if around.now >= lost_at:
        ending = _disruption(pod) or _ending_of(
            Reason.NODE_LOST, "The node {} stopped responding.", pod.spec.node_name
        )
        return PodObservation(
            AttemptState.ENDED, external_end=ending, started_at=started_at, ended_at=lost_at
        )
    state = AttemptState.RUNNING if started_at else AttemptState.PENDING
    waiting = None if started_at else "The build pod is being ended."
    return PodObservation(state, waiting_for=waiting, started_at=started_at, look_again_at=lost_at)


# -- the beginning


def _pending(pod: Pod, builder: ContainerStatus | None, around: ObservationContext) -> PodObservation:
    created = pod.metadata.creation_timestamp or around.now
    latest = created + timedelta(seconds=around.pending_seconds)
    if pod.spec.node_name is None:
        return _unscheduled(pod, around, latest)
    since = pod.status.start_time or created
    waits = [item for item in (*pod.status.init_container_statuses, builder) if item is not None]
    for waiting in (item.state.waiting for item in waits):
        if waiting is not None and (grace := WAITING_REASONS.get(waiting.reason or "")):
            return _given_up_later(grace, waiting.message or waiting.reason or "", since, latest)
    examine_at = _next_examination(since, around)
    if (found := _in_events(around.events or ())) is not None:
        grace, said = found
        sight = _given_up_later(grace, said, since, latest)
        return PodObservation(
            sight.state,
            waiting_for=sight.waiting_for,
            pending_deadline=sight.pending_deadline,
            examine_at=examine_at,
        )
    node = pod.spec.node_name
    last = around.events[-1].reason if around.events else None
    words = f"Pulling the builder image on node {node}" if last == "Pulling" else f"Starting on node {node}"
    late = _ending_of(
        Reason.POD_NOT_STARTED, "The build pod did not start on node {} within the time it has.", node
    )
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=words,
        pending_deadline=PendingDeadline(reason=late.reason, message=late.message, at=latest),
        examine_at=examine_at,
    )


def _unscheduled(pod: Pod, around: ObservationContext, latest: datetime) -> PodObservation:
    condition = pod.status.condition("PodScheduled")
    said = _shortened(condition.message or "") if condition and condition.status == "False" else ""
    if condition is not None and condition.reason == "SchedulingGated":
        words = "The cluster holds the build pod back with a scheduling gate"
    elif around.docker_api_pods == 0:
        words = "Waiting for a node with docker-api: no docker-api pod exists"
    elif said:
        words = f"Waiting for a node with docker-api and room: {said}"
    else:
        words = "Waiting for a node"
    limit = f"{around.pending_seconds:.0f} seconds"
    none = "No docker-api pod exists, so no node can take the build" if around.docker_api_pods == 0 else said
    message = f"No node took the build pod within {limit}. {none}".strip()
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=words,
        pending_deadline=PendingDeadline(reason=Reason.NO_NODE, message=message, at=latest),
    )


def _given_up_later(grace: StuckRule, said: str, since: datetime, latest: datetime) -> PodObservation:
    ending = _ending_of(grace.reason, grace.says, said)
    at = min(since + timedelta(seconds=grace.seconds), latest)
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=ending.message,
        pending_deadline=PendingDeadline(reason=ending.reason, message=ending.message, at=at),
    )


def _next_examination(since: datetime, around: ObservationContext) -> datetime | None:
    """Return when events are due: now and then, as they tell what no status does."""
    if around.examined >= len(EXAMINE_SECONDS):
        return None
    return since + timedelta(seconds=EXAMINE_SECONDS[around.examined])


def _in_events(events: Sequence[Event]) -> tuple[StuckRule, str] | None:
    """Return what the last trouble among the events means, unless something went well after it."""
    for event in reversed(events):
        if event.reason in ("Pulling", "Pulled", "Created", "Started"):
            return None
        for reason, pattern, grace in EVENT_REASONS:
            if event.reason == reason and pattern.search(event.message or ""):
                return grace, event.message or reason
    return None


def in_order(events: Sequence[Event]) -> list[Event]:
    """Return events oldest first."""
    beginning = datetime.min.replace(tzinfo=UTC)
    return sorted(events, key=lambda event: event.last_timestamp or event.event_time or beginning)
