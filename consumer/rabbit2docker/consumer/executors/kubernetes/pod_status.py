"""Mapping of a pod's status and events to the state of an attempt. No I/O."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import AttemptState, BuilderResult, ExternalEnd, PendingDeadline
from rabbit2docker.consumer.executors.kubernetes.models import ContainerStatus, Event, Pod, Terminated
from rabbit2docker.consumer.executors.kubernetes.pod_reasons import (
    CONTAINER_REASONS,
    DISRUPTIONS,
    EVENT_REASONS,
    NODE_REJECTED,
    STATUS_REASONS,
    WAITING_REASONS,
    StuckRule,
)
from rabbit2docker_schemas.reasons import FailureReason as Reason

BUILDER_CONTAINER: Final = "builder"
LOST_SECONDS: Final = 30.0
"""A pod that exists for longer than this after its deletion deadline is on a node that does not respond."""
EVENT_READ_SECONDS: Final = (5.0, 20.0, 45.0, 90.0, 180.0)
"""Ages at which the events of a scheduled pod that does not run yet are read, from when its node accepted it."""
SIGTERM_REASON: Final = "cancelled"
"""Reason in the result of a builder that received SIGTERM; it does not say where the signal came from."""
NO_DETAILS: Final = "Kubernetes gives no details"


@dataclass(frozen=True, slots=True)
class ObservationContext:
    """Facts besides the pod's status that an observation depends on."""

    now: datetime
    pending_seconds: float
    """Limit for the whole pending state, from the creation of the pod."""
    docker_api_pods: int = 1
    """Number of docker-api pods in the cluster."""
    events: Sequence[Event] | None = None
    """The pod's events, oldest first; None before the first read."""
    event_reads: int = 0
    """Number of times the pod's events were read."""


@dataclass(frozen=True, slots=True)
class PodObservation:
    """State of an attempt as its pod shows it, and when to look again."""

    state: AttemptState
    result: BuilderResult | None = None
    external_end: ExternalEnd | None = None
    waiting_for: str | None = None
    pending_deadline: PendingDeadline | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    read_events_at: datetime | None = None
    """When to read the pod's events."""
    observe_again_at: datetime | None = None
    """When the observation changes without any change of the pod."""


def observe_pod(pod: Pod, context: ObservationContext) -> PodObservation:
    """Map a pod's status and events to an attempt state, and to a failure reason if it is stuck or has ended."""
    builder = _builder_status(pod)
    state = builder.state if builder else None
    started_at = None
    if state is not None and state.running is not None:
        started_at = state.running.started_at
    if (state is not None and state.terminated is not None) or pod.status.phase in ("Succeeded", "Failed"):
        return _observe_ended(pod, state.terminated if state else None, context, started_at)
    if pod.metadata.deletion_timestamp is not None:
        return _observe_deleting(pod, pod.metadata.deletion_timestamp, context, started_at)
    if state is not None and state.running is not None:
        return PodObservation(AttemptState.RUNNING, started_at=started_at)
    return _observe_pending(pod, context)


def _builder_status(pod: Pod) -> ContainerStatus | None:
    return next((item for item in pod.status.container_statuses if item.name == BUILDER_CONTAINER), None)


# -- ended


def _observe_ended(
    pod: Pod, terminated: Terminated | None, context: ObservationContext, started_at: datetime | None
) -> PodObservation:
    result = read_result(terminated.message) if terminated else None
    ended_at = (terminated.finished_at if terminated else None) or pod.metadata.deletion_timestamp
    return PodObservation(
        AttemptState.ENDED,
        result=result,
        external_end=_external_end(pod, terminated, result),
        # On a node that is gone the container is still reported as running.
        started_at=_unless_epoch(terminated.started_at) if terminated else started_at,
        ended_at=_unless_epoch(ended_at)
        or pod.status.start_time
        or pod.metadata.creation_timestamp
        or context.now,
    )


def _unless_epoch(moment: datetime | None) -> datetime | None:
    """Return the time, or None for the epoch, which the kubelet reports for a container that never existed."""
    return moment if moment is not None and moment.year > 1970 else None


def read_result(message: str | None) -> BuilderResult | None:
    """Return the builder's result in a termination message; None if the builder could not write it."""
    try:
        return BuilderResult.model_validate_json(message or "")
    except ValidationError:
        return None


def _external_end(
    pod: Pod, terminated: Terminated | None, result: BuilderResult | None
) -> ExternalEnd | None:
    """Return what ended the builder from outside.

    The builder's own result takes precedence, unless it only says that the builder received SIGTERM.
    """
    if result is not None and result.reason != SIGTERM_REASON:
        return None
    if (disruption := _disruption(pod)) is not None:
        return disruption
    status = pod.status
    if status.reason in STATUS_REASONS:
        return _end(*STATUS_REASONS[status.reason], status.message)
    if status.reason and status.reason.startswith("OutOf"):
        return _end(*NODE_REJECTED, status.message)
    if (
        terminated is not None
        and terminated.reason in CONTAINER_REASONS
        and not _never_existed(pod, terminated)
    ):
        return _end(*CONTAINER_REASONS[terminated.reason], _last_output(terminated.message))
    if pod.metadata.deletion_timestamp is not None:
        return _end(Reason.POD_DELETED, "The build pod was deleted from the cluster.")
    if terminated is None:
        message = "The build pod failed before the builder started: {}"
        return _end(Reason.POD_NOT_STARTED, message, status.message)
    if output := _last_output(terminated.message):
        message = f"The builder exited with code {terminated.exit_code} and reported no result: {{}}"
        return _end(Reason.BUILDER_LOST, message, output)
    return None


def _never_existed(pod: Pod, terminated: Terminated) -> bool:
    """Return whether the node only lost track of the container because the pod was deleted before it was created."""
    return terminated.reason == "ContainerStatusUnknown" and pod.metadata.deletion_timestamp is not None


def _disruption(pod: Pod) -> ExternalEnd | None:
    condition = pod.status.condition("DisruptionTarget")
    if condition is None or condition.status != "True":
        return None
    default = (Reason.EVICTED, "The cluster ended the build: {}")
    reason, message = DISRUPTIONS.get(condition.reason or "", default)
    return _end(reason, message, pod.status.message or condition.message)


def _end(reason: Reason, message: str, details: str | None = None) -> ExternalEnd:
    return ExternalEnd(reason=reason, message=message.replace("{}", _truncate(details or NO_DETAILS)))


def _truncate(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:499] + "…"


def _last_output(message: str | None) -> str:
    """Return the text of the last line of a termination message, which may be the end of the log."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1])["text"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]


def _observe_deleting(
    pod: Pod, deadline: datetime, context: ObservationContext, started_at: datetime | None
) -> PodObservation:
    """Return the observation of a pod that is being deleted, by `deadline`, and has not ended."""
    if pod.spec.node_name is None:
        # No kubelet will report the end of a pod that no node has.
        return PodObservation(
            AttemptState.ENDED, external_end=_external_end(pod, None, None), ended_at=deadline
        )
    lost_at = deadline + timedelta(seconds=LOST_SECONDS)
    if context.now >= lost_at:
        lost = _end(Reason.NODE_LOST, "The node {} stopped responding.", pod.spec.node_name)
        return PodObservation(
            AttemptState.ENDED,
            external_end=_disruption(pod) or lost,
            started_at=started_at,
            ended_at=lost_at,
        )
    return PodObservation(
        AttemptState.RUNNING if started_at else AttemptState.PENDING,
        waiting_for=None if started_at else "The build pod is being deleted.",
        started_at=started_at,
        observe_again_at=lost_at,
    )


# -- pending


def _observe_pending(pod: Pod, context: ObservationContext) -> PodObservation:
    created_at = pod.metadata.creation_timestamp or context.now
    deadline = created_at + timedelta(seconds=context.pending_seconds)
    if pod.spec.node_name is None:
        return _observe_unscheduled(pod, context, deadline)
    scheduled_at = pod.status.start_time or created_at
    containers = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    for waiting in (item.state.waiting for item in containers):
        if waiting is not None and (rule := WAITING_REASONS.get(waiting.reason or "")):
            return _stuck(rule, waiting.message or waiting.reason or "", scheduled_at, deadline)
    if (match := _match_events(context.events or ())) is not None:
        observation = _stuck(*match, scheduled_at, deadline)
    else:
        observation = _observe_starting(pod.spec.node_name, context, deadline)
    return replace(observation, read_events_at=_next_event_read(scheduled_at, context))


def _observe_starting(node: str, context: ObservationContext, deadline: datetime) -> PodObservation:
    is_pulling = context.events and context.events[-1].reason == "Pulling"
    message = f"The build pod did not start on node {node} within {context.pending_seconds:.0f} seconds."
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=f"Pulling the builder image on node {node}" if is_pulling else f"Starting on node {node}",
        pending_deadline=PendingDeadline(reason=Reason.POD_NOT_STARTED, message=message, at=deadline),
    )


def _observe_unscheduled(pod: Pod, context: ObservationContext, deadline: datetime) -> PodObservation:
    condition = pod.status.condition("PodScheduled")
    details = _truncate(condition.message or "") if condition and condition.status == "False" else ""
    if condition is not None and condition.reason == "SchedulingGated":
        waiting_for = "A scheduling gate of the cluster holds the build pod back"
    elif context.docker_api_pods == 0:
        waiting_for = "Waiting for a node with docker-api: the cluster has no docker-api pod"
    elif details:
        waiting_for = f"Waiting for a node with docker-api and free resources: {details}"
    else:
        waiting_for = "Waiting for a node"
    no_docker_api = "The cluster has no docker-api pod, so no node can run the build."
    cause = no_docker_api if context.docker_api_pods == 0 else details
    message = f"No node accepted the build pod within {context.pending_seconds:.0f} seconds. {cause}".strip()
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=waiting_for,
        pending_deadline=PendingDeadline(
            # A lost engine comes back by itself, a node that is too small does not.
            reason=Reason.NO_NODE if context.docker_api_pods else Reason.DOCKER_UNAVAILABLE,
            message=message,
            at=deadline,
        ),
    )


def _stuck(rule: StuckRule, details: str, scheduled_at: datetime, deadline: datetime) -> PodObservation:
    end = _end(rule.reason, rule.message, details)
    at = min(scheduled_at + timedelta(seconds=rule.seconds), deadline)
    return PodObservation(
        AttemptState.PENDING,
        waiting_for=end.message,
        pending_deadline=PendingDeadline(reason=end.reason, message=end.message, at=at),
    )


def _next_event_read(scheduled_at: datetime, context: ObservationContext) -> datetime | None:
    """Return when to read the events next, a few times in all: they show problems that no status shows."""
    if context.event_reads >= len(EVENT_READ_SECONDS):
        return None
    return scheduled_at + timedelta(seconds=EVENT_READ_SECONDS[context.event_reads])


def _match_events(events: Sequence[Event]) -> tuple[StuckRule, str] | None:
    """Return the rule and the message of the last problem among the events, unless progress followed it."""
    for event in reversed(events):
        if event.reason in ("Pulling", "Pulled", "Created", "Started"):
            return None
        for reason, pattern, rule in EVENT_REASONS:
            if event.reason == reason and pattern.search(event.message or ""):
                return rule, event.message or reason
    return None


def sort_events(events: Sequence[Event]) -> list[Event]:
    """Return the events oldest first; those without a time come first."""
    earliest = datetime.min.replace(tzinfo=UTC)
    return sorted(events, key=lambda event: event.last_timestamp or event.event_time or earliest)
