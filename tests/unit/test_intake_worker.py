"""Each delivery is settled exactly once: acknowledged, requeued, rejected or left to RabbitMQ."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

from rabbit2docker.amqp.ports import RequestMessage
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.admission import Admission, AdmissionOutcome
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.parsing import IncomingCancel, IncomingRequest
from rabbit2docker.consumer.intake.worker import IntakeWorker, next_rung
from rabbit2docker.errors import BrokerUnavailable, ProviderUnavailable, RequestRejected
from rabbit2docker_schemas.events import Progress, Rejected
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.routing import RETRY_LADDER, RetryRung
from tests.support.publishing import RecordingPublisher

REQUEST = {"provider": "gh", "spec": "o/r/HEAD", "request_id": "one"}


class FakeDelivery:
    """Implements `Delivery` and records how it is settled."""

    is_stale = False

    def __init__(self, body: object, *, key: str, tries: int) -> None:
        self.received = RequestMessage(
            body=json.dumps(body).encode(),
            routing_key=key,
            queue="builds.requests",
            headers={},
            message_id="envelope",
            content_type=None,
            timestamp=None,
            redelivered=False,
            tries=tries,
        )
        self.settled: list[str] = []
        self.recorded = 0

    async def record(self) -> None:
        self.recorded += 1

    async def ack(self) -> None:
        self.settled.append("ack")

    async def retry(self, rung: RetryRung) -> None:
        self.settled.append(f"retry {rung.name}")

    async def dead_letter(self, reason: str, message: str) -> None:
        self.settled.append(f"dead {reason}")


class Intake:
    """A worker whose admission has a given outcome, and its in-memory surroundings."""

    def __init__(self, outcome: AdmissionOutcome | Exception = AdmissionOutcome.ACCEPTED) -> None:
        self.outcome = outcome
        self.found = True
        self.publisher = RecordingPublisher()
        self.in_hand = 0

    async def admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def cancel(self, incoming: IncomingCancel) -> bool:
        return self.found

    def take(self, queue: str) -> None:
        self.in_hand += 1

    def release(self, queue: str) -> None:
        self.in_hand -= 1

    async def settle(
        self, body: object = REQUEST, *, key: str = "request.ada.interactive", tries: int = 0
    ) -> list[str]:
        delivery = FakeDelivery(body, key=key, tries=tries)

        class Source:
            async def deliveries(self) -> AsyncIterator[FakeDelivery]:
                yield delivery

        worker = IntakeWorker(
            source=cast("Any", Source()),
            events=EventPublisher(self.publisher, instance="test"),
            admission=cast("Admission", self),
            cancellation=cast("Cancellation", self),
            capacity=cast("Capacity", self),
            max_bytes=1000,
        )
        await worker.run()
        await worker.drain(10)
        await asyncio.sleep(0)
        assert self.in_hand == 0
        return delivery.settled

    @property
    def events(self) -> list[object]:
        return [event.data for event in self.publisher.events]


async def test_an_admitted_request_is_acknowledged() -> None:
    assert await Intake().settle() == ["ack"]


async def test_a_transient_error_requeues_the_request_and_publishes_why() -> None:
    intake = Intake(ProviderUnavailable("Waiting for the host."))
    assert await intake.settle() == [f"retry {RETRY_LADDER[0].name}"]
    [progress] = intake.events
    assert isinstance(progress, Progress)
    assert progress.detail.retry_in_seconds == RETRY_LADDER[0].seconds


async def test_a_transient_error_after_the_last_rung_rejects_the_request() -> None:
    intake = Intake(ProviderUnavailable("Waiting for the host."))
    assert await intake.settle(tries=len(RETRY_LADDER)) == ["dead unavailable"]
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
    assert await intake.settle() == [f"retry {RETRY_LADDER[0].name}"]
    assert intake.events == []


async def test_a_defect_after_the_last_rung_rejects_the_request_under_its_own_id() -> None:
    intake = Intake(RuntimeError("a defect"))
    assert await intake.settle(tries=len(RETRY_LADDER)) == ["dead internal"]
    [rejected] = intake.events
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.reason, rejected.retryable) == ("one", "internal", True)


async def test_a_cancel_without_a_build_is_requeued_until_the_last_rung() -> None:
    intake = Intake()
    intake.found = False
    cancel = {"request_id": "one"}
    assert await intake.settle(cancel, key="cancel.ada") == [f"retry {RETRY_LADDER[0].name}"]
    assert await intake.settle(cancel, key="cancel.ada", tries=len(RETRY_LADDER)) == ["ack"]


async def test_a_message_with_an_unknown_routing_key_is_dead_lettered() -> None:
    assert await Intake().settle(key="other") == ["dead unroutable"]


def test_a_request_waits_on_a_rung_at_least_as_long_as_the_error_asks_for() -> None:
    assert next_rung(0, None) == RETRY_LADDER[0]
    assert next_rung(0, 30.0) == RETRY_LADDER[1]
    assert next_rung(0, 10_000.0) == RETRY_LADDER[-1]
    assert next_rung(len(RETRY_LADDER), None) is None
