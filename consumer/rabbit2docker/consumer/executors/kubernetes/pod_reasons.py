"""Every way in which Kubernetes reports that a build pod is stuck or was ended: failure reason and message for users.

Keys are the reasons of Kubernetes (API reference of Pod v1; kubelet and scheduler 1.29 to 1.36). In a message, `{}`
stands for what Kubernetes reports in addition.
"""

import re
from dataclasses import dataclass
from typing import Final

from rabbit2docker_schemas.reasons import FailureReason as Reason


@dataclass(frozen=True, slots=True)
class StuckRule:
    """A state of a pending pod, how many seconds it may last, and the failure it is then reported as."""

    reason: Reason
    seconds: float
    message: str
    """For users."""


def _image_rule(seconds: float, message: str) -> StuckRule:
    return StuckRule(Reason.BUILDER_IMAGE_UNAVAILABLE, seconds, message)


_CANNOT_PULL: Final = _image_rule(90, "The builder image cannot be pulled: {}")
_CANNOT_CREATE: Final = StuckRule(
    Reason.POD_NOT_STARTED, 60, "The node cannot create the builder container: {}"
)
_CANNOT_START: Final = StuckRule(
    Reason.POD_NOT_STARTED, 60, "The node cannot start the builder container: {}"
)

WAITING_REASONS: Final = {
    "ErrImagePull": _CANNOT_PULL,
    "ImagePullBackOff": _CANNOT_PULL,
    "ImageInspectError": _image_rule(90, "The builder image cannot be inspected: {}"),
    "RegistryUnavailable": _image_rule(90, "The registry of the builder image is unavailable: {}"),
    "SignatureValidationFailed": _image_rule(90, "The signature of the builder image is not valid: {}"),
    "InvalidImageName": _image_rule(0, "The name of the builder image is not valid: {}"),
    "ErrImageNeverPull": _image_rule(
        30, "The builder image is not on the node, and its pull policy is Never: {}"
    ),
    # With a delay, because a missing Secret may be about to be created.
    "CreateContainerConfigError": StuckRule(
        Reason.POD_MISCONFIGURED, 20, "The build pod is misconfigured: {}"
    ),
    "CreateContainerError": _CANNOT_CREATE,
    "RunContainerError": StuckRule(
        Reason.POD_MISCONFIGURED, 20, "The node cannot start the builder container: {}"
    ),
    "PreCreateHookError": _CANNOT_CREATE,
    "PreStartHookError": _CANNOT_START,
    "PostStartHookError": _CANNOT_START,
}
"""Reasons of a waiting container."""


def _event_rule(
    reason: str,
    message: str,
    *,
    failure: Reason = Reason.POD_NOT_STARTED,
    seconds: float = 120,
    like: str = "",
) -> tuple[str, re.Pattern[str], StuckRule]:
    return reason, re.compile(like), StuckRule(failure, seconds, message)


EVENT_REASONS: Final = (
    _event_rule(
        "FailedMount",
        "A Secret or ConfigMap that the build pod mounts is missing: {}",
        failure=Reason.POD_MISCONFIGURED,
        like=r'(?:secret|configmap) "[^"]*" not found|references non-existent (?:secret|config) key',
    ),
    _event_rule(
        "FailedMount",
        "docker-api is not running on the node yet: {}",
        seconds=90,
        like=r"hostPath type check failed",
    ),
    _event_rule("FailedMount", "The node cannot mount a volume of the build pod: {}"),
    _event_rule("FailedAttachVolume", "The node cannot attach a volume of the build pod: {}"),
    _event_rule("FailedCreatePodSandBox", "The node cannot create the sandbox of the build pod: {}"),
    _event_rule("NetworkNotReady", "The network of the node is not ready: {}"),
)
"""Event reasons that no status shows, each with a pattern for its message; the first match applies."""

DISRUPTIONS: Final = {
    "PreemptionByScheduler": (Reason.EVICTED, "The build was preempted by a pod of higher priority."),
    "EvictionByEvictionAPI": (Reason.EVICTED, "The build was evicted because its node is being drained."),
    "DeletionByTaintManager": (Reason.NODE_LOST, "The node of the build stopped responding."),
    "DeletionByPodGC": (Reason.NODE_LOST, "The node of the build no longer exists."),
    "TerminationByKubelet": (Reason.EVICTED, "The node ended the build: {}"),
}
"""Reasons of the condition DisruptionTarget."""

_NODE_SHUT_DOWN: Final = (Reason.EVICTED, "The node of the build was shut down.")
NODE_REJECTED: Final = (Reason.NODE_REFUSED, "The node rejected the build pod: {}")

STATUS_REASONS: Final = {
    "Evicted": (Reason.EVICTED, "The build was evicted because its node ran out of a resource: {}"),
    "NodeShutdown": _NODE_SHUT_DOWN,
    "Shutdown": _NODE_SHUT_DOWN,
    "Terminated": _NODE_SHUT_DOWN,
    "NodeLost": (Reason.NODE_LOST, "The node of the build stopped responding."),
    "DeadlineExceeded": (Reason.TIMEOUT, "The build exceeded its time limit and was ended."),
    "Preempting": (Reason.NODE_REFUSED, "The node gave the resources of the build to another pod: {}"),
    "NodeAffinity": NODE_REJECTED,
    "NodeName": NODE_REJECTED,
    "NodePorts": NODE_REJECTED,
    "UnexpectedAdmissionError": NODE_REJECTED,
}
"""Reasons of a failed pod. Those that begin with OutOf name a resource that the node lacks."""

CONTAINER_REASONS: Final = {
    "OOMKilled": (
        Reason.BUILDER_OUT_OF_MEMORY,
        "The builder exceeded the memory limit of the build pod while fetching the repository.",
    ),
    "StartError": (Reason.POD_MISCONFIGURED, "The builder container cannot be started: {}"),
    "ContainerCannotRun": (Reason.POD_MISCONFIGURED, "The builder container cannot be started: {}"),
    "ContainerStatusUnknown": (Reason.NODE_LOST, "The node lost track of the builder container."),
}
"""Reasons of a terminated container."""
