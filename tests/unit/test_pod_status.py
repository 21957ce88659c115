"""The mapping of a pod's status to an attempt: states, reasons, deadlines and messages for users.

The pods are documents in `pods/`, recorded from a real cluster or written by hand, as each of them says.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.executors.base import AttemptState, AttemptStatus
from rabbit2docker.consumer.executors.kubernetes.gc import is_orphan, is_stuck
from rabbit2docker.consumer.executors.kubernetes.manifest import FINALIZER, SPEC
from rabbit2docker.consumer.executors.kubernetes.models import Event, EventList, Pod
from rabbit2docker.consumer.executors.kubernetes.pod_reasons import (
    CONTAINER_REASONS,
    DISRUPTIONS,
    EVENT_REASONS,
    STATUS_REASONS,
    WAITING_REASONS,
)
from rabbit2docker.consumer.executors.kubernetes.pod_status import (
    EVENT_READ_SECONDS,
    LOST_SECONDS,
    ObservationContext,
    PodObservation,
    observe_pod,
    read_result,
    sort_events,
)
from rabbit2docker.consumer.following.outcome import Evidence, ImageCheck, Outcome, Retry, decide
from rabbit2docker_schemas.events import Cancelled, Completed, Failed
from rabbit2docker_schemas.reasons import CATEGORY_OF, Category, FailureReason
from tests.support.records import a_spec, an_attempt

Json = dict[str, Any]

PODS: Final = Path(__file__).parent / "pods"
PENDING_SECONDS: Final = 600.0
R = FailureReason


def document(name: str) -> Json:
    loaded: Json = json.loads((PODS / f"{name}.json").read_text("utf-8"))
    return loaded


def a_pod(name: str, **changes: Any) -> Pod:
    """Return the pod of a document, with other parts: `status={"phase": …}` keeps the rest of the status."""
    found = document(name)["pod"]
    for part, values in changes.items():
        found[part] = {**found[part], **values}
    return Pod.model_validate(found)


def events_of(name: str) -> list[Event]:
    return sort_events(EventList.model_validate({"items": document(name)["events"]}).items)


def created(pod: Pod) -> datetime:
    assert pod.metadata.creation_timestamp is not None
    return pod.metadata.creation_timestamp


def started(pod: Pod) -> datetime:
    assert pod.status.start_time is not None
    return pod.status.start_time


def observed(
    pod: Pod, *, after: float = 10.0, events: list[Event] | None = None, **more: Any
) -> PodObservation:
    """Return the observation of a pod `after` seconds from its creation."""
    now = created(pod) + timedelta(seconds=after)
    return observe_pod(
        pod, ObservationContext(now=now, pending_seconds=PENDING_SECONDS, events=events, **more)
    )


def outcome_of(
    observation: PodObservation, *, status: AttemptStatus | None = None, attempts: int = 2
) -> Outcome:
    """Return the outcome of an attempt with this observation."""
    attempt = an_attempt(state=observation.state, result=observation.result, status=status)
    attempt = attempt.model_copy(update={"external_end": observation.external_end})
    return decide(attempt, Evidence(ImageCheck.THERE, (), 0, attempts))


@dataclass(frozen=True)
class Ends:
    """A pod that has ended, and the failure it is reported as."""

    document: str
    reason: R
    says: str
    retried: bool = False


ENDS: Final = (
    Ends("out-of-memory", R.BUILDER_OUT_OF_MEMORY, "exceeded the memory limit of the build pod"),
    Ends("start-error", R.POD_MISCONFIGURED, "cannot be started: failed to create containerd task: failed"),
    Ends("failed-with-a-result", R.BUILD_STEP_FAILED, "The step `RUN x` ended."),
    Ends(
        "failed-with-last-words",
        R.BUILDER_LOST,
        "exited with code 1 and reported no result: Traceback: the builder",
        True,
    ),
    Ends("failed-in-silence", R.BUILDER_LOST, "ended without a result", True),
    Ends("deadline-exceeded", R.TIMEOUT, "exceeded its time limit"),
    Ends("deadline-exceeded-while-starting", R.TIMEOUT, "exceeded its time limit"),
    Ends("evicted-by-api", R.EVICTED, "its node is being drained", True),
    Ends("evicted-while-starting", R.EVICTED, "its node is being drained", True),
    Ends(
        "evicted-by-kubelet",
        R.EVICTED,
        'ran out of a resource: Usage of EmptyDir volume "scratch" exceeds',
        True,
    ),
    Ends("evicted-for-memory", R.EVICTED, "The node was low on resource: memory.", True),
    Ends("preempted", R.EVICTED, "preempted by a pod of higher priority", True),
    Ends("node-shutdown", R.EVICTED, "in response to imminent node shutdown", True),
    Ends("node-shutdown-before-1-26", R.EVICTED, "was shut down", True),
    Ends("out-of-cpu", R.NODE_REFUSED, "Node didn't have enough resource: cpu", True),
    Ends("node-affinity", R.NODE_REFUSED, "Predicate NodeAffinity failed", True),
    Ends("unexpected-admission-error", R.NODE_REFUSED, "no healthy devices present", True),
    Ends("preempted-by-kubelet", R.NODE_REFUSED, "in order to admit critical pod", True),
    Ends("node-gone", R.NODE_LOST, "node of the build no longer exists", True),
    Ends("lost-track", R.NODE_LOST, "lost track of the builder container", True),
    # Not retried: a pod is deleted by hand to end its build.
    Ends("deleted", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-and-killed", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-while-starting", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-before-a-node", R.POD_DELETED, "was deleted from the cluster"),
)


@dataclass(frozen=True)
class Waits:
    """A pod that does not start, its message, and when and as what it fails."""

    document: str
    reason: R
    seconds: float
    """From when a node accepted it."""
    says: str


WAITS: Final = (
    Waits("err-image-pull", R.BUILDER_IMAGE_UNAVAILABLE, 90, "cannot be pulled: rpc error: code = NotFound"),
    Waits("image-pull-back-off", R.BUILDER_IMAGE_UNAVAILABLE, 90, "cannot be pulled: Back-off pulling image"),
    Waits(
        "invalid-image-name",
        R.BUILDER_IMAGE_UNAVAILABLE,
        0,
        "name of the builder image is not valid: Failed to apply default",
    ),
    Waits(
        "err-image-never-pull",
        R.BUILDER_IMAGE_UNAVAILABLE,
        30,
        "not on the node, and its pull policy is Never",
    ),
    Waits("config-error", R.POD_MISCONFIGURED, 20, 'misconfigured: secret "absent" not found'),
    Waits("missing-secret", R.POD_MISCONFIGURED, 120, "mounts is missing: MountVolume.SetUp failed"),
    Waits("missing-key", R.POD_MISCONFIGURED, 120, "references non-existent config key: no"),
    Waits("missing-socket", R.POD_NOT_STARTED, 90, "docker-api is not running on the node yet"),
    Waits("failed-sandbox", R.POD_NOT_STARTED, 120, 'no runtime for "none-such" is configured'),
    Waits("sandbox-without-addresses", R.POD_NOT_STARTED, 120, "no IP addresses available"),
    Waits("network-not-ready", R.POD_NOT_STARTED, 120, "network of the node is not ready"),
    Waits("failed-attach", R.POD_NOT_STARTED, 120, "Multi-Attach error"),
)


# -- recorded pods


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.document)
def test_an_ended_pod_is_mapped_to_its_failure_reason(row: Ends) -> None:
    observation = observed(a_pod(row.document))
    assert observation.state is AttemptState.ENDED
    assert observation.ended_at is not None
    assert observation.ended_at.year > 1970
    last = outcome_of(observation, attempts=1)
    assert isinstance(last, Failed)
    assert (last.reason, last.category) == (row.reason, CATEGORY_OF[row.reason])
    assert row.says in last.message
    assert last.hint
    assert isinstance(outcome_of(observation), Retry) == row.retried


@pytest.mark.parametrize("row", WAITS, ids=lambda row: row.document)
def test_a_stuck_pod_has_a_message_and_a_deadline(row: Waits) -> None:
    pod = a_pod(row.document)
    observation = observed(pod, events=events_of(row.document))
    assert observation.state is AttemptState.PENDING
    assert observation.pending_deadline is not None
    assert (observation.pending_deadline.reason, observation.pending_deadline.at) == (
        row.reason,
        started(pod) + timedelta(seconds=row.seconds),
    )
    assert row.says in observation.pending_deadline.message
    assert observation.waiting_for == observation.pending_deadline.message


def test_every_recorded_pod_names_its_source_and_is_used() -> None:
    used = {row.document for row in (*ENDS, *WAITS)}
    others = {
        "running",
        "succeeded",
        "pulling",
        "being-deleted",
        "node-lost",
        "unschedulable",
        "scheduling-gated",
    }
    names = {path.stem for path in PODS.glob("*.json")}
    assert names == used | others
    assert all(document(name)["source"].startswith(("recorded from", "written by hand")) for name in names)


def test_a_pod_that_pushed_its_image_is_completed() -> None:
    observation = observed(a_pod("succeeded"))
    assert observation.result is not None
    assert (observation.result.lines, observation.external_end) == (9, None)
    assert isinstance(outcome_of(observation), Completed)


def test_a_running_pod_waits_for_nothing() -> None:
    observation = observed(a_pod("running"))
    assert observation.state is AttemptState.RUNNING
    assert observation.started_at is not None
    assert (
        observation.waiting_for,
        observation.pending_deadline,
        observation.external_end,
        observation.read_events_at,
    ) == (
        None,
        None,
        None,
        None,
    )


# Written out again, so that a row that is dropped from the table by accident is missed.
WAITING: Final = {
    **dict.fromkeys(
        ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"),
        (R.BUILDER_IMAGE_UNAVAILABLE, 90),
    ),
    "SignatureValidationFailed": (R.BUILDER_IMAGE_UNAVAILABLE, 90),
    "InvalidImageName": (R.BUILDER_IMAGE_UNAVAILABLE, 0),
    "ErrImageNeverPull": (R.BUILDER_IMAGE_UNAVAILABLE, 30),
    **dict.fromkeys(("CreateContainerConfigError", "RunContainerError"), (R.POD_MISCONFIGURED, 20)),
    **dict.fromkeys(
        ("CreateContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError"),
        (R.POD_NOT_STARTED, 60),
    ),
}


@pytest.mark.parametrize("reason", sorted(WAITING.keys() | WAITING_REASONS.keys()))
@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_every_waiting_reason_has_its_time_limit(reason: str, where: str) -> None:
    waiting = {"state": {"waiting": {"reason": reason, "message": "the cluster's message"}}}
    name = "builder" if where == "containerStatuses" else "another"
    pod = a_pod("pulling", status={where: [{"name": name, **waiting}]})
    observation = observed(pod)
    assert observation.pending_deadline is not None
    seconds = (observation.pending_deadline.at - started(pod)).total_seconds()
    assert (observation.pending_deadline.reason, seconds) == WAITING[reason]
    assert observation.pending_deadline.message.endswith(": the cluster's message")


@pytest.mark.parametrize(
    "reason", sorted({*STATUS_REASONS, "OutOfmemory", "OutOfpods", "OutOfexample.org/gpu"})
)
def test_every_reason_of_a_failed_pod_has_a_message_and_blames_no_user(reason: str) -> None:
    pod = a_pod("out-of-cpu", status={"reason": reason, "message": "the cluster's message"})
    external_end = observed(pod).external_end
    assert external_end is not None
    assert CATEGORY_OF[external_end.reason] in (Category.INFRASTRUCTURE, Category.TIMEOUT)
    assert "{}" not in external_end.message
    assert external_end.message.endswith((".", ": the cluster's message"))


@pytest.mark.parametrize("reason", sorted({*DISRUPTIONS, "AReasonOfTheFuture"}))
def test_every_disruption_is_retried(reason: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "its message"}
    observation = observed(a_pod("deleted-and-killed", status={"conditions": [condition]}))
    assert isinstance(outcome_of(observation), Retry)


def test_a_disruption_condition_that_is_false_is_ignored() -> None:
    condition = {"type": "DisruptionTarget", "status": "False", "reason": "PreemptionByScheduler"}
    external_end = observed(a_pod("deleted", status={"conditions": [condition]})).external_end
    assert external_end is not None
    assert external_end.reason is R.POD_DELETED


@pytest.mark.parametrize("reason", sorted(CONTAINER_REASONS))
def test_every_reason_of_a_terminated_container_has_a_message(reason: str) -> None:
    terminated = {"exitCode": 137, "reason": reason, "message": "its message"}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    external_end = observed(a_pod("lost-track", status={"containerStatuses": statuses})).external_end
    assert external_end is not None
    assert external_end.reason is CONTAINER_REASONS[reason][0]
    assert "{}" not in external_end.message


def test_no_stuck_rule_lasts_longer_than_the_pending_limit() -> None:
    rules = [*WAITING_REASONS.values(), *(rule for _, _, rule in EVENT_REASONS)]
    assert all(0 <= rule.seconds < PENDING_SECONDS and "{}" in rule.message for rule in rules)


# -- precedence


def test_a_cancellation_by_the_service_overrides_what_the_cluster_reports() -> None:
    for name in ("deleted", "evicted-by-api", "node-lost", "out-of-memory", "deleted-before-a-node"):
        found = outcome_of(observed(a_pod(name), after=1e6), status=AttemptStatus(cancelled_by="ada"))
        assert isinstance(found, Cancelled), name
        assert found.by == "ada"


def test_the_builders_result_overrides_what_the_cluster_reports() -> None:
    statuses = document("failed-with-a-result")["pod"]["status"]["containerStatuses"]
    for name in ("deleted", "evicted-by-api", "evicted-for-memory", "deadline-exceeded", "preempted"):
        observation = observed(a_pod(name, status={"containerStatuses": statuses}))
        assert observation.external_end is None, name
        found = outcome_of(observation)
        assert isinstance(found, Failed)
        assert found.reason is R.BUILD_STEP_FAILED


def test_a_build_that_pushed_its_image_before_the_pod_was_deleted_is_completed() -> None:
    statuses = document("succeeded")["pod"]["status"]["containerStatuses"]
    for name in ("deleted", "evicted-by-api", "node-shutdown"):
        assert isinstance(
            outcome_of(observed(a_pod(name, status={"containerStatuses": statuses}))), Completed
        )


def test_a_disruption_overrides_the_reason_of_the_pod() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    external_end = observed(a_pod("deadline-exceeded", status={"conditions": [condition]})).external_end
    assert external_end is not None
    assert external_end.reason is R.EVICTED


def test_the_reason_of_the_pod_overrides_the_reason_of_the_container() -> None:
    statuses = document("out-of-memory")["pod"]["status"]["containerStatuses"]
    external_end = observed(a_pod("evicted-by-kubelet", status={"containerStatuses": statuses})).external_end
    assert external_end is not None
    assert external_end.reason is R.EVICTED


def test_the_reason_of_the_container_overrides_a_deletion() -> None:
    statuses = document("out-of-memory")["pod"]["status"]["containerStatuses"]
    external_end = observed(a_pod("deleted", status={"containerStatuses": statuses})).external_end
    assert external_end is not None
    assert external_end.reason is R.BUILDER_OUT_OF_MEMORY


def test_a_pod_deleted_before_its_container_existed_is_not_a_lost_node() -> None:
    # The kubelet writes the same "could not be located" for both.
    deleted, lost = observed(a_pod("deleted-while-starting")), observed(a_pod("lost-track"))
    assert deleted.external_end is not None
    assert lost.external_end is not None
    assert (deleted.external_end.reason, lost.external_end.reason) == (R.POD_DELETED, R.NODE_LOST)


def test_a_deletion_overrides_the_last_line_of_the_log() -> None:
    pod = document("failed-with-last-words")["pod"]
    gone = {**pod["metadata"], "deletionTimestamp": "2026-01-01T12:00:00Z"}
    external_end = observed(Pod.model_validate({**pod, "metadata": gone})).external_end
    assert external_end is not None
    assert external_end.reason is R.POD_DELETED


def test_a_sigterm_of_unknown_origin_is_a_lost_builder() -> None:
    message = document("deleted")["pod"]["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    terminated = {"exitCode": 143, "reason": "Error", "message": message}
    observation = observed(
        a_pod(
            "running",
            status={"containerStatuses": [{"name": "builder", "state": {"terminated": terminated}}]},
        )
    )
    assert observation.result is not None
    assert isinstance(found := outcome_of(observation), Retry)
    assert found.reason is R.BUILDER_LOST


def test_a_pod_has_ended_once_its_builder_container_has() -> None:
    statuses = document("succeeded")["pod"]["status"]["containerStatuses"]
    assert observed(a_pod("running", status={"containerStatuses": statuses})).state is AttemptState.ENDED


def test_a_container_that_cannot_start_beside_a_waiting_builder_is_named() -> None:
    reason = next(iter(WAITING_REASONS))
    creating = {"name": "builder", "state": {"waiting": {"reason": "ContainerCreating"}}}
    stuck = {"name": "cage", "state": {"waiting": {"reason": reason, "message": "the cause"}}}
    observation = observed(
        a_pod("running", status={"phase": "Pending", "containerStatuses": [creating, stuck]})
    )
    assert observation.state is AttemptState.PENDING
    assert observation.pending_deadline is not None
    assert observation.pending_deadline.reason is WAITING_REASONS[reason].reason


def test_other_containers_of_a_pod_are_ignored() -> None:
    proxy = {"name": "proxy", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    statuses = document("running")["pod"]["status"]["containerStatuses"]
    observation = observed(a_pod("running", status={"containerStatuses": [proxy, *statuses]}))
    assert observation.state is AttemptState.RUNNING


# -- messages and times


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("one\ntwo\n\n", "two"),
        ('{"n": 1, "ts": "x", "phase": "fetching", "text": "the last line"}\n', "the last line"),
        ('{"n": 1}', '{"n": 1}'),
        ("[1, 2]", "[1, 2]"),
        ('{"reason": "ok", "exit_co', '{"reason": "ok", "exit_co'),
    ],
)
def test_the_message_of_a_builder_without_a_result_is_its_last_line(message: str, said: str) -> None:
    terminated = {"exitCode": 1, "reason": "Error", "message": message}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    external_end = observed(a_pod("lost-track", status={"containerStatuses": statuses})).external_end
    assert external_end is not None
    assert external_end.message == f"The builder exited with code 1 and reported no result: {said}"


@pytest.mark.parametrize("message", [None, "", "null", "[]", "{}", '{"reason": "ok"}', "x" * 5000])
def test_a_termination_message_that_is_not_a_result_is_ignored(message: str | None) -> None:
    assert read_result(message) is None


def test_a_long_message_of_the_cluster_is_truncated_to_one_line() -> None:
    said = "a very long reason\n" * 100
    external_end = observed(a_pod("out-of-cpu", status={"message": said})).external_end
    assert external_end is not None
    assert len(external_end.message) < 600
    assert "\n" not in external_end.message
    assert external_end.message.endswith("…")


def test_a_message_of_the_cluster_that_looks_like_a_placeholder_is_kept() -> None:
    external_end = observed(a_pod("out-of-cpu", status={"message": "{} {0} %s"})).external_end
    assert external_end is not None
    assert external_end.message.endswith("{} {0} %s")


def test_the_epoch_is_not_taken_for_the_start_or_end_of_a_container() -> None:
    observation = observed(a_pod("start-error"))
    [status] = document("start-error")["pod"]["status"]["containerStatuses"]
    finished = datetime.fromisoformat(status["state"]["terminated"]["finishedAt"])
    assert (observation.started_at, observation.ended_at) == (None, finished)
    epoch = "1970-01-01T00:00:00Z"
    terminated = {"exitCode": 128, "reason": "StartError", "startedAt": epoch, "finishedAt": epoch}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    pod = a_pod("start-error", status={"containerStatuses": statuses})
    assert (observed(pod).started_at, observed(pod).ended_at) == (None, started(pod))


def test_a_build_on_a_removed_node_keeps_its_start_time() -> None:
    assert observed(a_pod("node-gone")).started_at == observed(a_pod("node-lost")).started_at is not None


# -- waiting for a node


def test_an_unscheduled_pod_shows_the_schedulers_message() -> None:
    observation = observed(a_pod("unschedulable"))
    assert observation.waiting_for is not None
    assert observation.waiting_for.startswith("Waiting for a node with docker-api and free resources: 0/")
    assert observation.pending_deadline is not None
    assert observation.pending_deadline.reason is R.NO_NODE
    assert "within 600 seconds. 0/" in observation.pending_deadline.message
    assert observation.read_events_at is None, "events say no more than the condition does"


def test_the_lack_of_docker_api_pods_is_shown_before_the_schedulers_message() -> None:
    observation = observed(a_pod("unschedulable"), docker_api_pods=0)
    assert observation.waiting_for == "Waiting for a node with docker-api: the cluster has no docker-api pod"
    assert observation.pending_deadline is not None
    assert "The cluster has no docker-api pod" in observation.pending_deadline.message
    assert observation.pending_deadline.reason is R.DOCKER_UNAVAILABLE, "it may come back"


def test_a_pod_with_a_scheduling_gate_says_so() -> None:
    observation = observed(a_pod("scheduling-gated"), docker_api_pods=0)
    assert observation.waiting_for == "A scheduling gate of the cluster holds the build pod back"


def test_a_pod_that_the_scheduler_has_not_seen_yet_waits_for_a_node() -> None:
    assert observed(a_pod("unschedulable", status={"conditions": []})).waiting_for == "Waiting for a node"


@pytest.mark.parametrize("name", ["unschedulable", "scheduling-gated", "pulling"])
def test_a_pending_pod_has_a_deadline_from_its_creation(name: str) -> None:
    pod = a_pod(name)
    observation = observed(pod)
    assert observation.pending_deadline is not None
    assert observation.pending_deadline.at == created(pod) + timedelta(seconds=PENDING_SECONDS)


def test_time_without_a_node_counts_towards_the_pending_limit() -> None:
    late = created(a_pod("err-image-pull")) + timedelta(seconds=PENDING_SECONDS - 10)
    pod = a_pod("err-image-pull", status={"startTime": late.isoformat()})
    observation = observed(pod, after=PENDING_SECONDS)
    assert observation.pending_deadline is not None
    assert observation.pending_deadline.at == late + timedelta(seconds=10)
    assert observation.pending_deadline.reason is R.BUILDER_IMAGE_UNAVAILABLE


# -- events


def test_events_are_read_a_few_times_while_a_node_starts_the_pod() -> None:
    pod = a_pod("pulling")
    due = [observed(pod, event_reads=times).read_events_at for times in range(len(EVENT_READ_SECONDS) + 1)]
    assert due == [*(started(pod) + timedelta(seconds=seconds) for seconds in EVENT_READ_SECONDS), None]


@pytest.mark.parametrize("name", ["err-image-pull", "config-error", "running", "out-of-cpu", "unschedulable"])
def test_events_are_not_read_if_the_status_explains_the_state(name: str) -> None:
    assert observed(a_pod(name)).read_events_at is None


def test_events_are_read_again_after_one_showed_a_problem() -> None:
    pod = a_pod("missing-secret")
    observation = observed(pod, events=events_of("missing-secret"), event_reads=1)
    assert observation.read_events_at == started(pod) + timedelta(seconds=EVENT_READ_SECONDS[1])


def test_a_pod_that_pulls_its_image_says_so() -> None:
    assert observed(a_pod("pulling")).waiting_for == "Starting on node node-1"
    words = observed(a_pod("pulling"), events=events_of("pulling")).waiting_for
    assert words == "Pulling the builder image on node node-1"


def test_the_deadline_of_a_pod_that_does_not_start_names_its_node() -> None:
    deadline = observed(a_pod("pulling"), events=[]).pending_deadline
    assert deadline is not None
    assert deadline.reason is R.POD_NOT_STARTED
    assert "node-1" in deadline.message


@pytest.mark.parametrize("progress", ["Pulling", "Pulled", "Created", "Started"])
def test_a_problem_that_was_solved_is_not_shown(progress: str) -> None:
    problem = events_of("missing-secret")
    observation = observed(a_pod("missing-secret"), events=[*problem, Event(reason=progress)])
    assert observation.pending_deadline is not None
    assert observation.pending_deadline.at == created(a_pod("missing-secret")) + timedelta(
        seconds=PENDING_SECONDS
    )


def test_events_are_sorted_by_time_whichever_field_holds_it() -> None:
    # A scheduler's event has an eventTime instead of a last time; and the API server sorts by name.
    first = Event(reason="Scheduled", event_time=datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC))
    second = Event(reason="FailedMount", last_timestamp=datetime(2026, 1, 1, 12, 0, 5, tzinfo=UTC))
    third = Event(reason="Pulled", last_timestamp=datetime(2026, 1, 1, 12, 0, 9, tzinfo=UTC))
    assert sort_events([third, first, second]) == [first, second, third]
    assert sort_events([first, Event(reason="Timeless")])[0].reason == "Timeless"


# -- deletion


def test_a_pod_that_is_being_deleted_runs_until_its_container_has_ended() -> None:
    pod = a_pod("being-deleted")
    until = pod.metadata.deletion_timestamp
    assert until is not None
    context = ObservationContext(
        now=until + timedelta(seconds=LOST_SECONDS - 1), pending_seconds=PENDING_SECONDS
    )
    observation = observe_pod(pod, context)
    assert (observation.state, observation.external_end) == (AttemptState.RUNNING, None)
    assert observation.observe_again_at == until + timedelta(seconds=LOST_SECONDS), (
        "no change of the pod reports it"
    )


def test_a_pod_that_outlives_its_deletion_deadline_is_on_a_lost_node() -> None:
    pod = a_pod("being-deleted")
    assert pod.metadata.deletion_timestamp is not None
    lost_at = pod.metadata.deletion_timestamp + timedelta(seconds=LOST_SECONDS)
    observation = observe_pod(pod, ObservationContext(now=lost_at, pending_seconds=PENDING_SECONDS))
    assert (observation.state, observation.ended_at) == (AttemptState.ENDED, lost_at)
    assert observation.external_end is not None
    assert observation.external_end.reason is R.NODE_LOST
    assert observation.external_end.message == f"The node {pod.spec.node_name} stopped responding."
    assert observation.started_at is not None
    assert isinstance(outcome_of(observation), Retry)


def test_a_lost_node_is_reported_with_the_taint_managers_reason_after_a_delay() -> None:
    pod = a_pod("node-lost")
    assert pod.metadata.deletion_timestamp is not None
    lost_at = pod.metadata.deletion_timestamp + timedelta(seconds=LOST_SECONDS)
    early = observe_pod(
        pod, ObservationContext(now=lost_at - timedelta(seconds=1), pending_seconds=PENDING_SECONDS)
    )
    late = observe_pod(pod, ObservationContext(now=lost_at, pending_seconds=PENDING_SECONDS))
    assert (early.state, late.state) == (AttemptState.RUNNING, AttemptState.ENDED)
    assert late.external_end is not None
    assert (late.external_end.reason, late.external_end.message) == (
        R.NODE_LOST,
        "The node of the build stopped responding.",
    )


def test_a_pod_deleted_while_it_starts_has_no_pending_deadline() -> None:
    gone = {**document("pulling")["pod"]["metadata"], "deletionTimestamp": "2026-01-01T12:01:00Z"}
    observation = observed(Pod.model_validate({**document("pulling")["pod"], "metadata": gone}))
    assert observation.state is AttemptState.PENDING
    assert (observation.pending_deadline, observation.waiting_for) == (
        None,
        "The build pod is being deleted.",
    )
    assert observation.observe_again_at is not None


@given(
    phase=st.sampled_from(["", "Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    reason=st.none() | st.sampled_from([*STATUS_REASONS, "OutOfcpu", "AReasonOfTheFuture"]),
    state=st.sampled_from(
        [
            None,
            {},
            {"running": {}},
            *({"waiting": {"reason": word}} for word in [*WAITING_REASONS, "PodInitializing", None]),
            *(
                {"terminated": {"exitCode": 1, "reason": word}}
                for word in [*CONTAINER_REASONS, "Error", None]
            ),
        ]
    ),
    node=st.none() | st.just("node-1"),
    start=st.none() | st.just("2026-01-01T12:00:05Z"),
    deleted=st.none() | st.just("2026-01-01T12:01:00Z"),
    disrupted=st.none() | st.sampled_from([*DISRUPTIONS, "AReasonOfTheFuture"]),
    problem=st.none() | st.sampled_from(["Pulling", "FailedMount", "FailedCreatePodSandBox", "Whatever"]),
    after=st.floats(0, 10_000),
)
def test_no_pod_waits_forever(
    phase: str,
    reason: str | None,
    state: Json | None,
    node: str | None,
    start: str | None,
    deleted: str | None,
    disrupted: str | None,
    problem: str | None,
    after: float,
) -> None:
    pod = Pod.model_validate(
        {
            "metadata": {
                "name": "a",
                "uid": "b",
                "creationTimestamp": "2026-01-01T12:00:00Z",
                **({"deletionTimestamp": deleted} if deleted else {}),
            },
            "spec": {"nodeName": node},
            "status": {
                "phase": phase,
                "reason": reason,
                "startTime": start,
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": disrupted}]
                if disrupted
                else [],
                "containerStatuses": [{"name": "builder", "state": state}] if state is not None else [],
            },
        }
    )
    events = [Event(reason=problem, message="its message")] if problem else None
    observation = observed(pod, after=after, events=events)
    assert (
        observation.state is not AttemptState.PENDING
        or observation.pending_deadline
        or observation.observe_again_at
    )
    assert observation.state is not AttemptState.ENDED or observation.ended_at
    assert observation.pending_deadline is None or observation.pending_deadline.at <= created(
        pod
    ) + timedelta(seconds=PENDING_SECONDS)
    if observation.observe_again_at is not None:
        assert observed(pod, after=90.0, events=events).state is AttemptState.ENDED


# -- garbage


def test_a_pod_is_stuck_only_after_its_end_was_reported_and_its_node_had_time() -> None:
    held = a_pod("node-lost")
    until = held.metadata.deletion_timestamp
    assert until is not None
    free = held.model_copy(update={"metadata": held.metadata.model_copy(update={"finalizers": ()})})
    late = until + timedelta(seconds=61)
    assert is_stuck(free, late)
    assert not is_stuck(free, until + timedelta(seconds=60))
    assert not is_stuck(held, late), "its finalizer shows that the end is not reported"
    assert not is_stuck(a_pod("running"), late + timedelta(days=1))


def test_a_pod_is_an_orphan_only_if_it_is_old_and_holds_no_record() -> None:
    pod = a_pod("running")
    annotations = {SPEC: a_spec("running").model_dump_json()}
    record = pod.model_copy(update={"metadata": pod.metadata.model_copy(update={"annotations": annotations})})
    assert pod.metadata.finalizers == (FINALIZER,)
    assert is_orphan(pod, created(pod) + timedelta(minutes=61))
    assert not is_orphan(pod, created(pod) + timedelta(minutes=59))
    assert not is_orphan(record, created(pod) + timedelta(days=9))
