"""Every way in which a build pod waits, gets stuck or ends is told apart, in time, in words for a person.

The pods are documents in `pods/`; each says whether a real cluster produced it or somebody wrote it by hand.
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
from rabbit2docker.consumer.executors.kubernetes.pod_status import (
    CONTAINER_REASONS,
    DISRUPTIONS,
    EVENT_REASONS,
    EXAMINE_SECONDS,
    LOST_SECONDS,
    STATUS_REASONS,
    WAITING_REASONS,
    ObservationContext,
    PodObservation,
    in_order,
    observe_pod,
    read_result,
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
    return in_order(EventList.model_validate({"items": document(name)["events"]}).items)


def created(pod: Pod) -> datetime:
    assert pod.metadata.creation_timestamp is not None
    return pod.metadata.creation_timestamp


def started(pod: Pod) -> datetime:
    assert pod.status.start_time is not None
    return pod.status.start_time


def seen(pod: Pod, *, after: float = 10.0, events: list[Event] | None = None, **more: Any) -> PodObservation:
    """Return what the pod means some seconds after it was made."""
    now = created(pod) + timedelta(seconds=after)
    return observe_pod(
        pod, ObservationContext(now=now, pending_seconds=PENDING_SECONDS, events=events, **more)
    )


def verdict_on(sight: PodObservation, *, status: AttemptStatus | None = None, attempts: int = 2) -> Outcome:
    """Return what becomes of an attempt that is seen so."""
    attempt = an_attempt(state=sight.state, result=sight.result, status=status)
    attempt = attempt.model_copy(update={"external_end": sight.external_end})
    return decide(attempt, Evidence(ImageCheck.THERE, (), 0, attempts))


@dataclass(frozen=True)
class Ends:
    """A pod that has ended, and what is told of it."""

    document: str
    reason: R
    says: str
    retried: bool = False


ENDS: Final = (
    Ends("out-of-memory", R.BUILDER_OUT_OF_MEMORY, "took more memory than the build pod may use"),
    Ends("start-error", R.POD_MISCONFIGURED, "cannot be started: failed to create containerd task: failed"),
    Ends("failed-with-a-result", R.BUILD_STEP_FAILED, "The step `RUN x` ended."),
    Ends("failed-with-last-words", R.BUILDER_LOST, "exit code 1 and no result: Traceback: the builder", True),
    Ends("failed-in-silence", R.BUILDER_LOST, "ended without a result", True),
    Ends("deadline-exceeded", R.TIMEOUT, "took longer than it may"),
    Ends("deadline-exceeded-while-starting", R.TIMEOUT, "took longer than it may"),
    Ends("evicted-by-api", R.EVICTED, "node is being emptied", True),
    Ends("evicted-while-starting", R.EVICTED, "node is being emptied", True),
    Ends("evicted-by-kubelet", R.EVICTED, 'ran short: Usage of EmptyDir volume "scratch" exceeds', True),
    Ends("evicted-for-memory", R.EVICTED, "The node was low on resource: memory.", True),
    Ends("preempted", R.EVICTED, "gave way to a pod of higher priority", True),
    Ends("node-shutdown", R.EVICTED, "in response to imminent node shutdown", True),
    Ends("node-shutdown-before-1-26", R.EVICTED, "was shut down", True),
    Ends("out-of-cpu", R.NODE_REFUSED, "Node didn't have enough resource: cpu", True),
    Ends("node-affinity", R.NODE_REFUSED, "Predicate NodeAffinity failed", True),
    Ends("unexpected-admission-error", R.NODE_REFUSED, "no healthy devices present", True),
    Ends("preempted-by-kubelet", R.NODE_REFUSED, "in order to admit critical pod", True),
    Ends("node-gone", R.NODE_LOST, "node is gone", True),
    Ends("lost-track", R.NODE_LOST, "lost track of it", True),
    # Whoever deletes a pod by hand wants the build to end.
    Ends("deleted", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-and-killed", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-while-starting", R.POD_DELETED, "was deleted from the cluster"),
    Ends("deleted-before-a-node", R.POD_DELETED, "was deleted from the cluster"),
)


@dataclass(frozen=True)
class Waits:
    """A pod that does not start, what is told meanwhile, and when and as what it is given up."""

    document: str
    reason: R
    seconds: float
    """From when a node took it."""
    says: str


WAITS: Final = (
    Waits("err-image-pull", R.BUILDER_IMAGE_UNAVAILABLE, 90, "cannot be pulled: rpc error: code = NotFound"),
    Waits("image-pull-back-off", R.BUILDER_IMAGE_UNAVAILABLE, 90, "cannot be pulled: Back-off pulling image"),
    Waits("invalid-image-name", R.BUILDER_IMAGE_UNAVAILABLE, 0, "name is invalid: Failed to apply default"),
    Waits(
        "err-image-never-pull", R.BUILDER_IMAGE_UNAVAILABLE, 30, "lacks the builder image and may not pull"
    ),
    Waits("config-error", R.POD_MISCONFIGURED, 20, 'misconfigured: secret "absent" not found'),
    Waits("missing-secret", R.POD_MISCONFIGURED, 120, "mounts is missing: MountVolume.SetUp failed"),
    Waits("missing-key", R.POD_MISCONFIGURED, 120, "references non-existent config key: no"),
    Waits("missing-socket", R.POD_NOT_STARTED, 90, "docker-api is not up on the node yet"),
    Waits("failed-sandbox", R.POD_NOT_STARTED, 120, 'no runtime for "none-such" is configured'),
    Waits("sandbox-without-addresses", R.POD_NOT_STARTED, 120, "no IP addresses available"),
    Waits("network-not-ready", R.POD_NOT_STARTED, 120, "network is not ready"),
    Waits("failed-attach", R.POD_NOT_STARTED, 120, "Multi-Attach error"),
)


# -- the rows


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.document)
def test_how_a_pod_ended_is_told_for_what_it_is(row: Ends) -> None:
    sight = seen(a_pod(row.document))
    assert sight.state is AttemptState.ENDED
    assert sight.ended_at is not None
    assert sight.ended_at.year > 1970
    last = verdict_on(sight, attempts=1)
    assert isinstance(last, Failed)
    assert (last.reason, last.category) == (row.reason, CATEGORY_OF[row.reason])
    assert row.says in last.message
    assert last.hint
    assert isinstance(verdict_on(sight), Retry) == row.retried


@pytest.mark.parametrize("row", WAITS, ids=lambda row: row.document)
def test_what_keeps_a_pod_from_starting_is_told_and_given_up_in_time(row: Waits) -> None:
    pod = a_pod(row.document)
    sight = seen(pod, events=events_of(row.document))
    assert sight.state is AttemptState.PENDING
    assert sight.pending_deadline is not None
    assert (sight.pending_deadline.reason, sight.pending_deadline.at) == (
        row.reason,
        started(pod) + timedelta(seconds=row.seconds),
    )
    assert row.says in sight.pending_deadline.message
    assert sight.waiting_for == sight.pending_deadline.message


def test_every_document_says_where_it_is_from_and_is_used() -> None:
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
    sight = seen(a_pod("succeeded"))
    assert sight.result is not None
    assert (sight.result.lines, sight.external_end) == (9, None)
    assert isinstance(verdict_on(sight), Completed)


def test_a_pod_that_runs_waits_for_nothing() -> None:
    sight = seen(a_pod("running"))
    assert sight.state is AttemptState.RUNNING
    assert sight.started_at is not None
    assert (sight.waiting_for, sight.pending_deadline, sight.external_end, sight.examine_at) == (
        None,
        None,
        None,
        None,
    )


# What clusters say, by the kind of thing that says it. A row that is dropped from the table by accident is missed here.
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
def test_every_reason_of_a_waiting_container_has_its_grace(reason: str, where: str) -> None:
    waiting = {"state": {"waiting": {"reason": reason, "message": "the cluster's words"}}}
    name = "builder" if where == "containerStatuses" else "somebody-elses"
    pod = a_pod("pulling", status={where: [{"name": name, **waiting}]})
    sight = seen(pod)
    assert sight.pending_deadline is not None
    seconds = (sight.pending_deadline.at - started(pod)).total_seconds()
    assert (sight.pending_deadline.reason, seconds) == WAITING[reason]
    assert sight.pending_deadline.message.endswith(": the cluster's words")


@pytest.mark.parametrize(
    "reason", sorted({*STATUS_REASONS, "OutOfmemory", "OutOfpods", "OutOfexample.org/gpu"})
)
def test_every_reason_of_a_failed_pod_is_told_and_none_is_the_users_fault(reason: str) -> None:
    pod = a_pod("out-of-cpu", status={"reason": reason, "message": "the cluster's words"})
    ending = seen(pod).external_end
    assert ending is not None
    assert CATEGORY_OF[ending.reason] in (Category.INFRASTRUCTURE, Category.TIMEOUT)
    assert "{}" not in ending.message
    assert ending.message.endswith((".", ": the cluster's words"))


@pytest.mark.parametrize("reason", sorted({*DISRUPTIONS, "AReasonOfTheFuture"}))
def test_every_disruption_is_tried_again_on_another_node(reason: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "its words"}
    sight = seen(a_pod("deleted-and-killed", status={"conditions": [condition]}))
    assert isinstance(verdict_on(sight), Retry)


def test_a_disruption_that_was_called_off_is_none() -> None:
    condition = {"type": "DisruptionTarget", "status": "False", "reason": "PreemptionByScheduler"}
    ending = seen(a_pod("deleted", status={"conditions": [condition]})).external_end
    assert ending is not None
    assert ending.reason is R.POD_DELETED


@pytest.mark.parametrize("reason", sorted(CONTAINER_REASONS))
def test_every_reason_of_an_ended_container_is_told(reason: str) -> None:
    terminated = {"exitCode": 137, "reason": reason, "message": "its words"}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    ending = seen(a_pod("lost-track", status={"containerStatuses": statuses})).external_end
    assert ending is not None
    assert ending.reason is CONTAINER_REASONS[reason][0]
    assert "{}" not in ending.message


def test_no_grace_is_longer_than_the_time_a_pod_has_to_start() -> None:
    graces = [*WAITING_REASONS.values(), *(grace for _, _, grace in EVENT_REASONS)]
    assert all(0 <= grace.seconds < PENDING_SECONDS and "{}" in grace.says for grace in graces)


# -- which word counts


def test_a_cancel_of_ours_counts_before_everything_the_cluster_says() -> None:
    for name in ("deleted", "evicted-by-api", "node-lost", "out-of-memory", "deleted-before-a-node"):
        found = verdict_on(seen(a_pod(name), after=1e6), status=AttemptStatus(cancelled_by="ada"))
        assert isinstance(found, Cancelled), name
        assert found.by == "ada"


def test_what_the_builder_itself_says_counts_before_what_was_done_to_its_pod() -> None:
    statuses = document("failed-with-a-result")["pod"]["status"]["containerStatuses"]
    for name in ("deleted", "evicted-by-api", "evicted-for-memory", "deadline-exceeded", "preempted"):
        sight = seen(a_pod(name, status={"containerStatuses": statuses}))
        assert sight.external_end is None, name
        found = verdict_on(sight)
        assert isinstance(found, Failed)
        assert found.reason is R.BUILD_STEP_FAILED


def test_an_image_that_was_pushed_before_the_pod_was_deleted_is_completed() -> None:
    statuses = document("succeeded")["pod"]["status"]["containerStatuses"]
    for name in ("deleted", "evicted-by-api", "node-shutdown"):
        assert isinstance(verdict_on(seen(a_pod(name, status={"containerStatuses": statuses}))), Completed)


def test_a_disruption_counts_before_the_pods_own_reason() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    ending = seen(a_pod("deadline-exceeded", status={"conditions": [condition]})).external_end
    assert ending is not None
    assert ending.reason is R.EVICTED


def test_the_pods_own_reason_counts_before_the_containers() -> None:
    statuses = document("out-of-memory")["pod"]["status"]["containerStatuses"]
    ending = seen(a_pod("evicted-by-kubelet", status={"containerStatuses": statuses})).external_end
    assert ending is not None
    assert ending.reason is R.EVICTED


def test_the_containers_reason_counts_before_a_deletion() -> None:
    statuses = document("out-of-memory")["pod"]["status"]["containerStatuses"]
    ending = seen(a_pod("deleted", status={"containerStatuses": statuses})).external_end
    assert ending is not None
    assert ending.reason is R.BUILDER_OUT_OF_MEMORY


def test_a_container_that_never_was_is_no_lost_node_when_the_pod_was_deleted() -> None:
    # The kubelet writes the same "could not be located" for both.
    deleted, lost = seen(a_pod("deleted-while-starting")), seen(a_pod("lost-track"))
    assert deleted.external_end is not None
    assert lost.external_end is not None
    assert (deleted.external_end.reason, lost.external_end.reason) == (R.POD_DELETED, R.NODE_LOST)


def test_a_deletion_counts_before_the_last_words_of_the_log() -> None:
    pod = document("failed-with-last-words")["pod"]
    gone = {**pod["metadata"], "deletionTimestamp": "2026-01-01T12:00:00Z"}
    ending = seen(Pod.model_validate({**pod, "metadata": gone})).external_end
    assert ending is not None
    assert ending.reason is R.POD_DELETED


def test_a_sigterm_from_nobody_knows_where_is_a_builder_that_was_lost() -> None:
    message = document("deleted")["pod"]["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    terminated = {"exitCode": 143, "reason": "Error", "message": message}
    sight = seen(
        a_pod(
            "running",
            status={"containerStatuses": [{"name": "builder", "state": {"terminated": terminated}}]},
        )
    )
    assert sight.result is not None
    assert isinstance(found := verdict_on(sight), Retry)
    assert found.reason is R.BUILDER_LOST


def test_a_pod_whose_builder_has_ended_is_over_before_the_pod_says_so() -> None:
    statuses = document("succeeded")["pod"]["status"]["containerStatuses"]
    assert seen(a_pod("running", status={"containerStatuses": statuses})).state is AttemptState.ENDED


def test_another_container_of_the_pod_is_not_taken_for_the_builder() -> None:
    proxy = {"name": "proxy", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    statuses = document("running")["pod"]["status"]["containerStatuses"]
    sight = seen(a_pod("running", status={"containerStatuses": [proxy, *statuses]}))
    assert sight.state is AttemptState.RUNNING


# -- words and times


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
def test_the_last_words_of_a_builder_without_a_result_are_told(message: str, said: str) -> None:
    terminated = {"exitCode": 1, "reason": "Error", "message": message}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    ending = seen(a_pod("lost-track", status={"containerStatuses": statuses})).external_end
    assert ending is not None
    assert ending.message == f"The builder ended with exit code 1 and no result: {said}"


@pytest.mark.parametrize("message", [None, "", "null", "[]", "{}", '{"reason": "ok"}', "x" * 5000])
def test_what_is_no_result_is_not_taken_for_one(message: str | None) -> None:
    assert read_result(message) is None


def test_long_words_of_the_cluster_are_cut_and_kept_on_one_line() -> None:
    said = "a very long reason\n" * 100
    ending = seen(a_pod("out-of-cpu", status={"message": said})).external_end
    assert ending is not None
    assert len(ending.message) < 600
    assert "\n" not in ending.message
    assert ending.message.endswith("…")


def test_words_of_the_cluster_that_look_like_a_placeholder_stay_as_they_are() -> None:
    ending = seen(a_pod("out-of-cpu", status={"message": "{} {0} %s"})).external_end
    assert ending is not None
    assert ending.message.endswith("{} {0} %s")


def test_the_epoch_stands_for_a_container_that_never_was() -> None:
    sight = seen(a_pod("start-error"))
    [status] = document("start-error")["pod"]["status"]["containerStatuses"]
    finished = datetime.fromisoformat(status["state"]["terminated"]["finishedAt"])
    assert (sight.started_at, sight.ended_at) == (None, finished)
    epoch = "1970-01-01T00:00:00Z"
    terminated = {"exitCode": 128, "reason": "StartError", "startedAt": epoch, "finishedAt": epoch}
    statuses = [{"name": "builder", "state": {"terminated": terminated}}]
    pod = a_pod("start-error", status={"containerStatuses": statuses})
    assert (seen(pod).started_at, seen(pod).ended_at) == (None, started(pod))


def test_a_build_that_ran_on_a_node_that_is_gone_keeps_its_start() -> None:
    assert seen(a_pod("node-gone")).started_at == seen(a_pod("node-lost")).started_at is not None


# -- waiting for a node


def test_a_pod_without_a_node_says_what_the_scheduler_says() -> None:
    sight = seen(a_pod("unschedulable"))
    assert sight.waiting_for is not None
    assert sight.waiting_for.startswith("Waiting for a node with docker-api and room: 0/")
    assert sight.pending_deadline is not None
    assert sight.pending_deadline.reason is R.NO_NODE
    assert "within 600 seconds. 0/" in sight.pending_deadline.message
    assert sight.examine_at is None, "events say no more than the condition does"


def test_without_any_docker_api_pod_that_is_said_first() -> None:
    sight = seen(a_pod("unschedulable"), docker_api_pods=0)
    assert sight.waiting_for == "Waiting for a node with docker-api: no docker-api pod exists"
    assert sight.pending_deadline is not None
    assert "No docker-api pod exists" in sight.pending_deadline.message


def test_a_pod_that_is_held_back_says_so() -> None:
    sight = seen(a_pod("scheduling-gated"), docker_api_pods=0)
    assert sight.waiting_for == "The cluster holds the build pod back with a scheduling gate"


def test_a_pod_that_the_scheduler_has_not_seen_yet_waits_for_a_node() -> None:
    assert seen(a_pod("unschedulable", status={"conditions": []})).waiting_for == "Waiting for a node"


@pytest.mark.parametrize("name", ["unschedulable", "scheduling-gated", "pulling"])
def test_a_pod_is_given_up_a_time_after_its_creation_whatever_it_waits_for(name: str) -> None:
    pod = a_pod(name)
    sight = seen(pod)
    assert sight.pending_deadline is not None
    assert sight.pending_deadline.at == created(pod) + timedelta(seconds=PENDING_SECONDS)


def test_time_spent_without_a_node_counts() -> None:
    late = created(a_pod("err-image-pull")) + timedelta(seconds=PENDING_SECONDS - 10)
    pod = a_pod("err-image-pull", status={"startTime": late.isoformat()})
    sight = seen(pod, after=PENDING_SECONDS)
    assert sight.pending_deadline is not None
    assert sight.pending_deadline.at == late + timedelta(seconds=10)
    assert sight.pending_deadline.reason is R.BUILDER_IMAGE_UNAVAILABLE


# -- what only events tell


def test_events_are_asked_for_now_and_then_while_a_node_starts_the_pod() -> None:
    pod = a_pod("pulling")
    due = [seen(pod, examined=times).examine_at for times in range(len(EXAMINE_SECONDS) + 1)]
    assert due == [*(started(pod) + timedelta(seconds=seconds) for seconds in EXAMINE_SECONDS), None]


@pytest.mark.parametrize("name", ["err-image-pull", "config-error", "running", "out-of-cpu", "unschedulable"])
def test_events_are_not_asked_for_where_the_status_says_it(name: str) -> None:
    assert seen(a_pod(name)).examine_at is None


def test_trouble_that_an_event_told_is_looked_into_again() -> None:
    pod = a_pod("missing-secret")
    sight = seen(pod, events=events_of("missing-secret"), examined=1)
    assert sight.examine_at == started(pod) + timedelta(seconds=EXAMINE_SECONDS[1])


def test_a_large_image_is_told_as_being_pulled() -> None:
    assert seen(a_pod("pulling")).waiting_for == "Starting on node node-1"
    words = seen(a_pod("pulling"), events=events_of("pulling")).waiting_for
    assert words == "Pulling the builder image on node node-1"


def test_a_pod_that_just_does_not_start_is_given_up_with_its_nodes_name() -> None:
    hopeless = seen(a_pod("pulling"), events=[]).pending_deadline
    assert hopeless is not None
    assert hopeless.reason is R.POD_NOT_STARTED
    assert "node-1" in hopeless.message


@pytest.mark.parametrize("good", ["Pulling", "Pulled", "Created", "Started"])
def test_trouble_that_is_over_is_not_told(good: str) -> None:
    trouble = events_of("missing-secret")
    sight = seen(a_pod("missing-secret"), events=[*trouble, Event(reason=good)])
    assert sight.pending_deadline is not None
    assert sight.pending_deadline.at == created(a_pod("missing-secret")) + timedelta(seconds=PENDING_SECONDS)


def test_events_are_read_in_the_order_in_which_they_happened() -> None:
    # A scheduler's event has an eventTime instead of a last time; and the API server sorts by name.
    first = Event(reason="Scheduled", event_time=datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC))
    second = Event(reason="FailedMount", last_timestamp=datetime(2026, 1, 1, 12, 0, 5, tzinfo=UTC))
    third = Event(reason="Pulled", last_timestamp=datetime(2026, 1, 1, 12, 0, 9, tzinfo=UTC))
    assert in_order([third, first, second]) == [first, second, third]
    assert in_order([first, Event(reason="Timeless")])[0].reason == "Timeless"


# -- being ended


def test_a_pod_that_is_being_deleted_still_runs_until_its_container_has_ended() -> None:
    pod = a_pod("being-deleted")
    until = pod.metadata.deletion_timestamp
    assert until is not None
    around = ObservationContext(
        now=until + timedelta(seconds=LOST_SECONDS - 1), pending_seconds=PENDING_SECONDS
    )
    sight = observe_pod(pod, around)
    assert (sight.state, sight.external_end) == (AttemptState.RUNNING, None)
    assert sight.look_again_at == until + timedelta(seconds=LOST_SECONDS), "no change of the pod will say it"


def test_a_pod_that_is_still_there_long_after_it_had_to_end_is_on_a_node_that_is_lost() -> None:
    pod = a_pod("being-deleted")
    assert pod.metadata.deletion_timestamp is not None
    lost_at = pod.metadata.deletion_timestamp + timedelta(seconds=LOST_SECONDS)
    sight = observe_pod(pod, ObservationContext(now=lost_at, pending_seconds=PENDING_SECONDS))
    assert (sight.state, sight.ended_at) == (AttemptState.ENDED, lost_at)
    assert sight.external_end is not None
    assert sight.external_end.reason is R.NODE_LOST
    assert sight.external_end.message == f"The node {pod.spec.node_name} stopped responding."
    assert sight.started_at is not None
    assert isinstance(verdict_on(sight), Retry)


def test_a_lost_node_is_told_by_the_taint_managers_word_and_not_before_the_time() -> None:
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
        "The build's node stopped responding.",
    )


def test_a_pod_that_is_deleted_while_it_starts_is_waited_for_and_not_given_up_twice() -> None:
    gone = {**document("pulling")["pod"]["metadata"], "deletionTimestamp": "2026-01-01T12:01:00Z"}
    sight = seen(Pod.model_validate({**document("pulling")["pod"], "metadata": gone}))
    assert sight.state is AttemptState.PENDING
    assert (sight.pending_deadline, sight.waiting_for) == (None, "The build pod is being ended.")
    assert sight.look_again_at is not None


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
    trouble=st.none() | st.sampled_from(["Pulling", "FailedMount", "FailedCreatePodSandBox", "Whatever"]),
    after=st.floats(0, 10_000),
)
def test_no_pod_waits_for_ever(
    phase: str,
    reason: str | None,
    state: Json | None,
    node: str | None,
    start: str | None,
    deleted: str | None,
    disrupted: str | None,
    trouble: str | None,
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
    events = [Event(reason=trouble, message="its words")] if trouble else None
    sight = seen(pod, after=after, events=events)
    assert sight.state is not AttemptState.PENDING or sight.pending_deadline or sight.look_again_at
    assert sight.state is not AttemptState.ENDED or sight.ended_at
    assert sight.pending_deadline is None or sight.pending_deadline.at <= created(pod) + timedelta(
        seconds=PENDING_SECONDS
    )
    if sight.look_again_at is not None:
        assert seen(pod, after=90.0, events=events).state is AttemptState.ENDED


# -- what is left over


def test_a_pod_is_stuck_only_when_its_end_is_told_and_its_node_had_time() -> None:
    held = a_pod("node-lost")
    until = held.metadata.deletion_timestamp
    assert until is not None
    free = held.model_copy(update={"metadata": held.metadata.model_copy(update={"finalizers": ()})})
    late = until + timedelta(seconds=61)
    assert is_stuck(free, late)
    assert not is_stuck(free, until + timedelta(seconds=60))
    assert not is_stuck(held, late), "the finalizer says that the end is not told"
    assert not is_stuck(a_pod("running"), late + timedelta(days=1))


def test_a_pod_is_an_orphan_only_when_it_is_no_record_and_nobody_makes_it_one() -> None:
    pod = a_pod("running")
    annotations = {SPEC: a_spec("running").model_dump_json()}
    record = pod.model_copy(update={"metadata": pod.metadata.model_copy(update={"annotations": annotations})})
    assert pod.metadata.finalizers == (FINALIZER,)
    assert is_orphan(pod, created(pod) + timedelta(minutes=61))
    assert not is_orphan(pod, created(pod) + timedelta(minutes=59))
    assert not is_orphan(record, created(pod) + timedelta(days=9))
