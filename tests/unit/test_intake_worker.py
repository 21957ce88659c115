"""Each delivery is settled exactly once: acknowledged, requeued, rejected or left to RabbitMQ."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from rabbit2docker.amqp.ports import RequestMessage, Waiting, WaitingLog
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.admission import Admission, AdmissionOutcome
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.parsing import IncomingCancel, IncomingRequest
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting import Wait, next_try_text, plan_wait
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.consumer.intake.worker import IntakeWorker
from rabbit2docker.errors import (
    BrokerUnavailable,
    Dependency,
    DependencyKind,
    MessageRefused,
    ProviderUnavailable,
    RegistryUnavailable,
    RequestRejected,
    StreamUnavailable,
    TopologyMismatch,
    TransientError,
)
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Progress, Rejected
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.routing import RETRY_LADDER, RetryRung, make_ladder
from tests.support.publishing import RecordingPublisher

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PATIENCE = timedelta(hours=6)
REGISTRY = Dependency(DependencyKind.REGISTRY, "registry.example.org")
HOST = Dependency(DependencyKind.HOST, "git.example.org:443")
LISTED = Settings(tenants=["ada"])
REQUEST = {"provider": "gh", "spec": "o/r/HEAD", "request_id": "one"}


class FakeDelivery:
    """Implements `Delivery` and records how it is settled."""

    is_stale = False
    refusal: Exception | None = None

    def __init__(
        self,
        body: object,
        *,
        key: str = "",
        queue: str = "",
        tries: int = 0,
        dropped: str = "",
        dead_reason: str = "",
        waiting: Waiting | None = None,
    ) -> None:
        self.received = RequestMessage(
            body=json.dumps(body).encode(),
            routing_key=key,
            queue=queue,
            headers={},
            message_id="envelope",
            content_type=None,
            timestamp=None,
            redelivered=False,
            tries=tries,
            dropped=dropped,
            waiting=waiting,
            dead_reason=dead_reason,
        )
        self.settled: list[str] = []
        self.returns_with: Waiting | None = None
        self.recorded = 0

    async def record(self) -> None:
        self.recorded += 1

    async def ack(self) -> None:
        self.settled.append("ack")

    async def retry(self, rung: RetryRung, *, counts: bool = True, waiting: Waiting | None = None) -> None:
        self.settled.append(f"retry {rung.name}" if counts else f"wait {rung.name}")
        self.returns_with = waiting

    async def enqueue(self, queue: str) -> None:
        if self.refusal:
            raise self.refusal
        self.settled.append(f"into {queue}")

    async def dead_letter(self, reason: str, message: str) -> None:
        self.settled.append(f"dead {reason}")


class Intake:
    """A worker whose admission has a given outcome, and its in-memory surroundings."""

    def __init__(self, outcome: AdmissionOutcome | Exception = AdmissionOutcome.ACCEPTED) -> None:
        self.outcome = outcome
        self.found = True
        self.publisher = RecordingPublisher()
        self.in_hand = 0
        self.waiting: Waiting | None = None
        """The wait that the next delivery brings along from the ladder."""
        self.time = NOW
        self.refusal: Exception | None = None
        self.entries: list[Mapping[str, Any]] = []
        """Written into the log of waiting requests."""
        self.line = WaitingLine(LISTED, Shares(LISTED.shares))
        self.line.subscribe(lambda: self.settled.append("begins to wait"))
        self.settled: list[str] = []
        self.recorded = 0

    async def record(self, content: Mapping[str, Any]) -> None:
        self.entries.append(content)

    def running_of(self, tenant: str, requester: str) -> int:
        return 2 if requester == "script" else 0

    async def admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def answer_dropped(self, incoming: IncomingRequest) -> bool:
        return await self.admit(incoming) is AdmissionOutcome.DUPLICATE

    async def cancel(self, incoming: IncomingCancel) -> bool:
        return self.found

    def take(self, queue: str) -> None:
        self.in_hand += 1

    def release(self, queue: str) -> None:
        self.in_hand -= 1

    async def settle(
        self,
        body: object = REQUEST,
        *,
        key: str = "request.ada.interactive",
        queue: str = "builds.waiting.ada.interactive",
        tries: int = 0,
        dropped: str = "",
        dead_reason: str = "",
    ) -> list[str]:
        delivery = FakeDelivery(
            body,
            key=key,
            queue=queue,
            tries=tries,
            dropped=dropped,
            dead_reason=dead_reason,
            waiting=self.waiting,
        )
        delivery.refusal = self.refusal
        self.settled = delivery.settled

        class Source:
            async def deliveries(self) -> AsyncIterator[FakeDelivery]:
                yield delivery

        worker = IntakeWorker(
            source=cast("Any", Source()),
            events=EventPublisher(self.publisher, instance="test"),
            admission=cast("Admission", self),
            cancellation=cast("Cancellation", self),
            capacity=cast("Capacity", self),
            line=self.line,
            waiting_log=cast("WaitingLog", self),
            max_bytes=1000,
            patience=PATIENCE,
            now=lambda: self.time,
        )
        await worker.run()
        await worker.drain(10)
        await asyncio.sleep(0)
        assert self.in_hand == 0
        self.waiting = delivery.returns_with
        self.recorded = delivery.recorded
        return delivery.settled

    @property
    def events(self) -> list[object]:
        return [event.data for event in self.publisher.events]


async def test_an_admitted_request_is_acknowledged() -> None:
    intake = Intake()
    assert await intake.settle() == ["ack"]
    assert intake.recorded == 0  # it was, when it came in


async def test_a_request_that_comes_in_waits_in_a_queue_of_its_tenant_even_if_it_has_been_tried() -> None:
    for key, queue, lane in (
        ("request.ada.interactive", "builds.requests", "ada.interactive"),
        ("request.ada.bulk", "builds.requests.bulk", "ada.bulk"),
        ("request.unknown.interactive", "builds.requests", "_.interactive"),
    ):
        intake = Intake()
        found = await intake.settle(key=key, queue=queue, tries=1)
        # Before it is in the queue, it cannot be taken.
        assert found == [f"into builds.waiting.{lane}", "begins to wait"]
        assert intake.recorded == 1
        assert not intake.events
        [entry] = intake.entries
        assert entry["queued"]["queue"] == f"builds.waiting.{lane}"
        await intake.settle(key=key, queue=f"builds.waiting.{lane}")
        assert intake.entries[1]["taken"] == entry["queued"]["build_id"]
        assert not len(intake.line)


async def test_further_requests_of_one_requester_wait_in_another_queue_and_in_their_order() -> None:
    intake = Intake()
    found = [
        await intake.settle({**REQUEST, "request_id": name, "requester": requester}, queue="builds.requests")
        for name, requester in [("one", "script"), ("two", "script"), ("three", "ada"), ("four", "script")]
    ]
    lanes = [settled[0].rpartition(".")[2] for settled in found]
    assert lanes == ["interactive", "later", "interactive", "later"]


@pytest.mark.parametrize(
    ("refusal", "rung"), [(MessageRefused("It is full."), "1m"), (TopologyMismatch("It is missing."), "10s")]
)
async def test_a_request_that_no_queue_takes_waits_on_the_ladder_without_a_try(
    refusal: Exception, rung: str
) -> None:
    intake = Intake()
    intake.refusal = refusal
    assert await intake.settle(queue="builds.requests") == [f"wait {rung}"]
    assert not len(intake.line)


async def test_an_invalid_request_is_rejected_when_it_comes_in() -> None:
    intake = Intake()
    assert await intake.settle({"provider": "gh"}, queue="builds.requests") == ["dead invalid_request"]
    assert not intake.entries


async def test_a_transient_error_requeues_the_request_and_publishes_why() -> None:
    intake = Intake(ProviderUnavailable("Waiting for the host."))
    assert await intake.settle() == [f"retry {RETRY_LADDER.rungs[0].name}"]
    [progress] = intake.events
    assert isinstance(progress, Progress)
    assert progress.detail.retry_in_seconds == RETRY_LADDER.rungs[0].seconds
    assert progress.message == "Waiting for the host. The next try is in 10 seconds."


async def test_a_request_whose_answer_cannot_be_stored_waits_on_the_ladder_without_a_try() -> None:
    intake = Intake(StreamUnavailable("The events of tenant ada cannot be stored."))
    assert await intake.settle(tries=1) == ["wait 1m"]
    assert not intake.events


async def test_a_rejection_that_cannot_be_stored_waits_on_the_ladder_without_a_try() -> None:
    intake = Intake(RequestRejected(RejectReason.NOT_ALLOWED, "No."))
    intake.publisher.failure = StreamUnavailable("The events of tenant ada cannot be stored.")
    assert await intake.settle() == ["wait 1m"]


async def test_a_message_that_waited_for_the_dead_letter_queue_goes_there_without_another_answer() -> None:
    intake = Intake()
    assert await intake.settle(dead_reason="invalid_json") == ["dead invalid_json"]
    assert not intake.events


async def test_a_rate_limit_is_waited_for_as_long_as_the_host_says_and_that_is_said() -> None:
    intake = Intake(ProviderUnavailable("The host limits requests.", retry_after=2400))
    assert await intake.settle() == ["wait 10m"]
    assert await intake.settle(tries=2) == ["wait 10m"]  # the wait costs no try
    progress = intake.events[0]
    assert isinstance(progress, Progress)
    assert progress.detail.retry_in_seconds == 2400
    assert progress.detail.retry_at is not None
    assert progress.message.startswith("The host limits requests. The next try is at ")
    assert progress.message.endswith(f"{progress.detail.retry_at:%H:%M} UTC, in 40 minutes.")


async def test_a_transient_error_after_the_last_rung_rejects_the_request() -> None:
    intake = Intake(ProviderUnavailable("Waiting for the host."))
    assert await intake.settle(tries=RETRY_LADDER.tries) == ["dead unavailable"]
    [rejected] = intake.events
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.reason, rejected.retryable) == ("one", "unavailable", True)


async def test_a_rejected_request_is_acknowledged_unless_an_operator_should_see_it() -> None:
    user_error = Intake(RequestRejected(RejectReason.REF_NOT_FOUND, "No such branch."))
    assert await user_error.settle() == ["ack"]
    forbidden = Intake(RequestRejected(RejectReason.NOT_ALLOWED, "Not allowed."))
    assert await forbidden.settle() == ["dead not_allowed"]


async def test_a_delivery_is_left_to_rabbitmq_when_the_broker_is_away() -> None:
    assert await Intake(BrokerUnavailable("away")).settle() == []


async def test_a_defect_requeues_the_request_without_an_event() -> None:
    intake = Intake(RuntimeError("a defect"))
    assert await intake.settle() == [f"retry {RETRY_LADDER.rungs[0].name}"]
    assert intake.events == []


async def test_a_defect_after_the_last_rung_rejects_the_request_under_its_own_id() -> None:
    intake = Intake(RuntimeError("a defect"))
    assert await intake.settle(tries=RETRY_LADDER.tries) == ["dead internal"]
    [rejected] = intake.events
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.reason, rejected.retryable) == ("one", "internal", True)


async def test_a_cancel_without_a_build_is_requeued_until_the_last_rung() -> None:
    intake = Intake()
    intake.found = False
    cancel = {"request_id": "one"}
    assert await intake.settle(cancel, key="cancel.ada") == [f"retry {RETRY_LADDER.rungs[0].name}"]
    assert await intake.settle(cancel, key="cancel.ada", tries=RETRY_LADDER.tries) == ["ack"]


@pytest.mark.parametrize(
    ("dropped", "reason"),
    [
        ("expired", "expired"),
        ("delivery_limit", "delivery_limit"),
        ("maxlen", "unavailable"),
        ("new", "unavailable"),
    ],
)
async def test_a_request_that_rabbitmq_dropped_is_rejected_and_dead_lettered(
    dropped: str, reason: str
) -> None:
    intake = Intake()
    assert await intake.settle(dropped=dropped) == [f"dead {dropped}"]
    [rejected] = intake.events
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.reason, rejected.retryable) == ("one", reason, True)


async def test_a_dropped_message_that_has_an_answer_or_a_defect_is_only_dead_lettered() -> None:
    for outcome in (AdmissionOutcome.DUPLICATE, RuntimeError("a defect")):
        intake = Intake(outcome)
        assert await intake.settle(dropped="expired") == ["dead expired"]
        assert intake.events == []
    intake = Intake()
    assert await intake.settle({"request_id": "one"}, key="cancel.ada", dropped="expired") == ["dead expired"]


async def test_a_message_with_an_unknown_routing_key_is_dead_lettered() -> None:
    assert await Intake().settle(key="other") == ["dead unroutable"]


def test_a_request_waits_on_a_rung_at_least_as_long_as_the_error_asks_for() -> None:
    assert RETRY_LADDER.next(0, None) == RETRY_LADDER.rungs[0]
    assert RETRY_LADDER.next(0, 30.0) == RETRY_LADDER.rungs[1]
    assert RETRY_LADDER.next(0, 10_000.0) == RETRY_LADDER.rungs[-1]
    assert RETRY_LADDER.next(RETRY_LADDER.tries, None) is None


def test_a_ladder_repeats_its_last_rung_until_its_total_and_takes_each_rung_once_without() -> None:
    once, long = make_ladder([600, 5]), make_ladder([5, 600], 3600)
    assert [rung.name for rung in once.rungs] == ["5s", "10m"]
    assert [once.next(tries, None) for tries in range(3)] == [*once.rungs, None]
    names = [rung and rung.name for rung in (long.next(tries, None) for tries in range(8))]
    assert names == ["5s", *["10m"] * 6, None]
    assert make_ladder([7200]).regular(9).name == "2h"


@pytest.mark.parametrize("pauses", [[1], [1, 2], [1, 5, 30, 7200]])
def test_each_wait_takes_a_rung_that_the_ladder_has(pauses: list[int]) -> None:
    ladder = make_ladder(pauses)
    away = ProviderUnavailable("away", outage_of=Dependency(DependencyKind.HOST, "h:1"))
    for error in (away, ProviderUnavailable("limited", retry_after=900), ProviderUnavailable("failed")):
        for minutes in (0, 1, 45):
            waiting = Waiting(NOW - timedelta(minutes=minutes), "before")
            received = FakeDelivery({}, waiting=waiting).received
            wait = plan_wait(received, error, now=NOW, patience=PATIENCE, ladder=ladder)
            assert wait is not None
            assert wait.rung in ladder.rungs


def planned(error: TransientError, *, now: datetime = NOW, waiting: Waiting | None = None) -> Wait | None:
    return plan_wait(FakeDelivery({}, waiting=waiting).received, error, now=now, patience=PATIENCE)


def test_a_known_wait_is_split_into_rungs_and_is_said_anew_only_when_its_end_changes() -> None:
    end, now, waits = NOW + timedelta(seconds=725), NOW, list[Wait]()
    while (seconds := (end - now).total_seconds()) > 0:
        known = waits[-1].waiting if waits else None
        # The other side rounds: its end is a little earlier or later each time.
        wait = planned(
            ProviderUnavailable("limited", retry_after=seconds + len(waits)), now=now, waiting=known
        )
        assert wait is not None
        waits.append(wait)
        now += timedelta(seconds=wait.rung.seconds)
    assert [wait.rung.name for wait in waits] == ["10m", "1m", "1m", "10s"]
    assert [wait.counts for wait in waits] == [False, False, False, True]
    assert len({wait.waiting.about for wait in waits if not wait.counts}) == 1
    later = planned(ProviderUnavailable("limited", retry_after=3000), waiting=waits[0].waiting)
    assert later is not None
    assert later.waiting.about != waits[0].waiting.about


def test_a_host_that_asks_for_patience_forever_is_given_up_in_the_end() -> None:
    error = ProviderUnavailable("limited", retry_after=3600)
    waiting = Waiting(NOW, "until")
    assert planned(error, now=NOW + PATIENCE - timedelta(seconds=1), waiting=waiting) is not None
    assert planned(error, now=NOW + PATIENCE, waiting=waiting) is None


def test_an_outage_costs_no_try_and_its_rounds_grow_with_its_age() -> None:
    def rung(dependency: Dependency, **age: float) -> str:
        waiting = Waiting(NOW, "outage")
        wait = planned(
            TransientError("away", outage_of=dependency), now=NOW + timedelta(**age), waiting=waiting
        )
        assert wait is not None
        assert not wait.counts
        return wait.rung.name

    assert [rung(REGISTRY, seconds=30), rung(REGISTRY, minutes=2), rung(REGISTRY, hours=5)] == [
        "10s",
        "1m",
        "1m",
    ]
    # Requests name hosts, also such as never answer.
    assert [rung(HOST, minutes=2), rung(HOST, hours=5)] == ["1m", "10m"]


async def test_an_outage_is_announced_once_and_waited_for_across_many_rounds() -> None:
    intake = Intake(RegistryUnavailable("The registry is away.", outage_of=REGISTRY))
    for _ in range(300):
        assert (await intake.settle())[0].startswith("wait ")
        intake.time += timedelta(minutes=1)
    [progress] = intake.events
    assert isinstance(progress, Progress)
    assert progress.message == (
        "The registry is away. The request waits and goes on by itself once the registry registry.example.org is "
        "back, until 2026-01-01 18:00 UTC at the latest."
    )
    assert progress.detail.gives_up_at == NOW + PATIENCE
    intake.outcome = ProviderUnavailable("The host is away.", outage_of=HOST)
    await intake.settle()
    assert len(intake.events) == 2
    intake.time = NOW + PATIENCE
    assert await intake.settle() == ["dead unavailable"]
    rejected = intake.events[-1]
    assert isinstance(rejected, Rejected)
    assert rejected.message.startswith("The host is away. The request has waited 6 hours for it;")


def test_the_next_try_is_named_by_time_and_by_the_length_of_the_wait() -> None:
    assert next_try_text(0.2, NOW) == "The next try is in a moment."
    assert next_try_text(10, NOW) == "The next try is in 10 seconds."
    assert next_try_text(60, NOW) == "The next try is at 12:01 UTC, in 1 minute."
    assert next_try_text(725, NOW) == "The next try is at 12:12 UTC, in 13 minutes."
