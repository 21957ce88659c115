"""The intake loop: a task per delivery, each settled exactly once."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, assert_never
from weakref import WeakValueDictionary

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.ports import Delivery, RequestSource, WaitingLog
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.admission import Admission
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.dropped import rejection_of_dropped
from rabbit2docker.consumer.intake.parsing import (
    IncomingCancel,
    IncomingRequest,
    InvalidRequest,
    ParsedDelivery,
    UndeliverableMessage,
    parse_delivery,
    sender_of,
)
from rabbit2docker.consumer.intake.waiting import plan_wait, waited_text, waiting_progress
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.errors import (
    BrokerUnavailable,
    LimitReached,
    MessageRefused,
    RequestRejected,
    StreamUnavailable,
    TopologyMismatch,
    TransientError,
)
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.events import Rejected
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.routing import (
    RETRY_LADDER,
    RetryLadder,
    parse_request_key,
    parse_waiting_queue,
)
from rabbit2docker_schemas.tracing import Trace, read_trace

log = structlog.get_logger()

REJECTED: Final = "rejected"
RETRIED: Final = "retried"
WAITING: Final = "waiting"
QUEUED: Final = "queued"
# Rejections that an operator may want to look at: the message is malformed or forbidden, or the service failed.
DEAD_LETTERED: Final = frozenset(
    {
        RejectReason.INVALID_JSON,
        RejectReason.INVALID_REQUEST,
        RejectReason.TOO_LARGE,
        RejectReason.UNSUPPORTED_TYPE,
        RejectReason.NOT_ALLOWED,
        RejectReason.REFUSED_URL,
        RejectReason.REGISTRY_DENIED,
        RejectReason.CREDENTIALS_REFUSED,
        RejectReason.HOST_KEY_REFUSED,
        RejectReason.UNAVAILABLE,
        RejectReason.INTERNAL,
    }
)
"""Reasons of requests that are not only answered, but kept for an operator."""


class IntakeWorker:
    """Consumes deliveries. Many are in hand at once, each in a task of its own."""

    def __init__(
        self,
        *,
        source: RequestSource,
        events: EventPublisher,
        admission: Admission,
        cancellation: Cancellation,
        capacity: Capacity,
        line: WaitingLine,
        waiting_log: WaitingLog,
        max_bytes: int,
        patience: timedelta,
        ladder: RetryLadder = RETRY_LADDER,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Accept bodies of at most `max_bytes`; nothing is consumed before `run`.

        `patience`: how long a request waits for the end of an outage; `ladder`: its pauses while it waits for anything.
        """
        self._source = source
        self._events = events
        self._admission = admission
        self._cancellation = cancellation
        self._capacity = capacity
        self._line = line
        self._waiting_log = waiting_log
        self._max_bytes = max_bytes
        self._patience = patience
        self._ladder = ladder
        self._now = now
        self._tasks = TaskSet()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> None:
        """Consume deliveries until cancelled."""
        async for delivery in self._source.deliveries():
            self.start(delivery)

    def start(self, delivery: Delivery) -> None:
        """Process one delivery in a task of its own."""
        queue = delivery.received.queue
        self._capacity.take(queue)
        self._tasks.run(self._handle(delivery), name=f"intake from {queue}")

    async def drain(self, seconds: float) -> None:
        """Let the deliveries in hand finish for `seconds`, then cancel the rest, which RabbitMQ redelivers."""
        await self._tasks.close(seconds=seconds)

    async def _handle(self, delivery: Delivery) -> None:
        received = delivery.received
        parsed: ParsedDelivery | None = None
        structlog.contextvars.clear_contextvars()
        metrics.REQUESTS_RECEIVED.labels(queue=received.queue).inc()
        try:
            with metrics.INTAKE_SECONDS.time():
                if delivery.is_stale:
                    outcome = "stale"
                elif received.dead_reason:
                    await delivery.dead_letter(received.dead_reason, received.dead_message)
                    outcome = REJECTED
                else:
                    parsed = parse_delivery(received, max_bytes=self._max_bytes)
                    outcome = await self._or_later(delivery, self._settle(delivery, parsed))
            metrics.REQUESTS_SETTLED.labels(outcome=outcome).inc()
        except BrokerUnavailable as error:
            # Unacknowledged: RabbitMQ redelivers it when the channel is closed or renewed.
            log.warning("delivery not settled", error=str(error))
        except Exception:
            metrics.REQUESTS_SETTLED.labels(outcome="error").inc()
            log.exception("intake failed")
            with suppress(TransientError):
                await self._or_later(delivery, self._requeue_after_defect(delivery, parsed))
        finally:
            self._capacity.release(received.queue)

    async def _or_later(self, delivery: Delivery, settling: Awaitable[str]) -> str:
        """Settle a delivery, or put it on the ladder if its tenant's stream takes no answer, so that it delays no other."""
        try:
            return await settling
        except StreamUnavailable as error:
            rung = self._ladder.regular(1)
            log.warning("delivery requeued", reason=error.message, delay_seconds=rung.seconds)
            await delivery.retry(rung, counts=False)
            return RETRIED

    async def _settle(self, delivery: Delivery, parsed: ParsedDelivery) -> str:
        if delivery.received.dropped and isinstance(parsed, IncomingRequest | IncomingCancel):
            return await self._settle_dropped(delivery, parsed)
        match parsed:
            case IncomingRequest() as incoming if not parse_waiting_queue(delivery.received.queue):
                return await self._enqueue(delivery, incoming)
            case IncomingRequest() as incoming:
                return await self._settle_request(delivery, incoming)
            case IncomingCancel() as incoming:
                return await self._settle_cancel(delivery, incoming)
            case InvalidRequest(tenant, request_id, reason, message):
                return await self._reject(delivery, tenant, request_id, RequestRejected(reason, message))
            case UndeliverableMessage(reason, message):
                log.info("message dead-lettered", reason=reason, error=message)
                await delivery.dead_letter(reason, message)
                return REJECTED
            case unhandled:
                assert_never(unhandled)

    async def _enqueue(self, delivery: Delivery, incoming: IncomingRequest) -> str:
        """Put a request that has come in into the queue in which it waits for its turn."""
        tenant, requester = incoming.tenant, incoming.request.requester or ""
        key = parse_request_key(delivery.received.routing_key)
        running = self._capacity.running_of(tenant, requester)
        queue = self._line.queue_for(
            incoming.build_id, tenant, requester, key.action if key else "", running=running
        )
        entry = self._line.queued(incoming.build_id, tenant, requester, queue)
        # The entry first: another replica may take the request as soon as it is in the queue.
        await asyncio.gather(delivery.record(), self._waiting_log.record(entry))
        try:
            await delivery.enqueue(queue)
        except (MessageRefused, TopologyMismatch) as error:
            # A missing queue may be declared in seconds, a full one lasts.
            rung = self._ladder.regular(1 if isinstance(error, MessageRefused) else 0)
            log.warning("request requeued", reason=str(error), delay_seconds=rung.seconds)
            await self._waiting_log.record(self._line.taken(incoming.build_id, queue))
            await delivery.retry(rung, counts=False, waiting=delivery.received.waiting)
            return RETRIED
        self._line.notify()
        return QUEUED

    async def _settle_request(self, delivery: Delivery, incoming: IncomingRequest) -> str:
        tenant, request_id = incoming.tenant, incoming.request_id
        structlog.contextvars.bind_contextvars(
            tenant=tenant, request_id=request_id, build_id=incoming.build_id
        )
        entry = self._line.taken(incoming.build_id, delivery.received.queue)
        self._tasks.run(self._waiting_log.record(entry), "entry of a taken request")
        try:
            async with self._locks.setdefault((tenant, request_id), asyncio.Lock()):
                outcome = await self._admission.admit(incoming)
        except RequestRejected as rejection:
            return await self._reject(delivery, tenant, request_id, rejection)
        except (BrokerUnavailable, StreamUnavailable):
            raise
        except TransientError as error:
            return await self._requeue_request(delivery, incoming, error)
        await delivery.ack()
        request = incoming.request
        log.info("request settled", outcome=outcome, provider=request.provider, spec=request.spec)
        return outcome

    async def _settle_cancel(self, delivery: Delivery, incoming: IncomingCancel) -> str:
        if unknown := incoming.cancel.unknown_fields:
            log.warning("unknown fields ignored", fields=unknown, tenant=incoming.tenant)
        try:
            found = await self._cancellation.cancel(incoming)
        except TransientError as error:
            return await self._requeue(delivery, error.message, error.retry_after)
        # Its request may be in hand, or behind it in the queue: look again a little later.
        if not found and (rung := self._ladder.next(delivery.received.tries, None)):
            await delivery.retry(rung)
            return RETRIED
        await delivery.ack()
        return "cancelled" if found else "nothing_to_cancel"

    async def _settle_dropped(self, delivery: Delivery, incoming: IncomingRequest | IncomingCancel) -> str:
        """Answer a request that RabbitMQ dropped, and put the message among the dead letters."""
        reason = delivery.received.dropped
        rejection = rejection_of_dropped(reason)
        if isinstance(incoming, IncomingRequest):
            try:
                is_answered = await self._admission.answer_dropped(incoming)
            except RequestRejected as found:
                is_answered, rejection = False, found
            if not is_answered:
                await self._publish_rejected(incoming.tenant, incoming.request_id, rejection, incoming.trace)
        log.warning("message dropped by RabbitMQ", reason=reason, tenant=incoming.tenant)
        await delivery.dead_letter(reason, rejection.message)
        return REJECTED

    async def _reject(
        self, delivery: Delivery, tenant: str, request_id: RequestId, rejection: RequestRejected
    ) -> str:
        await self._publish_rejected(tenant, request_id, rejection, read_trace(delivery.received.headers))
        if rejection.reason in DEAD_LETTERED:
            await delivery.dead_letter(rejection.reason, rejection.message)
        else:
            await delivery.ack()
        return REJECTED

    async def _publish_rejected(
        self, tenant: str, request_id: RequestId, rejection: RequestRejected, trace: Trace | None
    ) -> None:
        metrics.REQUESTS_REJECTED.labels(reason=rejection.reason).inc()
        log.info(
            "request rejected",
            request_id=request_id,
            reason=str(rejection.reason),
            error=rejection.message,
        )
        await self._events.publish_rejected(
            tenant,
            Rejected(
                request_id=request_id,
                reason=rejection.reason,
                message=rejection.message,
                retryable=rejection.retryable,
            ),
            trace=trace,
        )

    async def _requeue_request(
        self, delivery: Delivery, incoming: IncomingRequest, error: TransientError
    ) -> str:
        """Put a request on the retry ladder and publish why, once; reject it when its patience is used up."""
        now, known = self._now(), delivery.received.waiting
        wait = plan_wait(delivery.received, error, now=now, patience=self._patience, ladder=self._ladder)
        if wait is None:
            waited = waited_text((now - known.since).total_seconds()) if known else "some time"
            is_limit = isinstance(error, LimitReached)
            rejection = RequestRejected(
                RejectReason.LIMIT_REACHED if is_limit else RejectReason.UNAVAILABLE,
                f"{error.message} The request has waited {waited} for it; send the request again later.",
                retryable=True,
            )
            return await self._reject(delivery, incoming.tenant, incoming.request_id, rejection)
        if known is None or known.about != wait.waiting.about:
            log.warning("request requeued", reason=error.message, delay_seconds=wait.rung.seconds)
            progress = waiting_progress(incoming.build_id, error, wait, now=now)
            await self._events.publish_progress(
                incoming.tenant, progress, about=wait.waiting.about, trace=incoming.trace
            )
        await delivery.retry(wait.rung, counts=wait.counts, waiting=wait.waiting)
        return RETRIED if wait.counts else WAITING

    async def _requeue(self, delivery: Delivery, message: str, retry_after: float | None) -> str:
        """Put a message on the retry ladder without an event; dead-letter it after the last rung."""
        rung = self._ladder.next(delivery.received.tries, retry_after)
        if rung is None:
            await delivery.dead_letter(RejectReason.INTERNAL, message)
            return REJECTED
        log.warning("message requeued", reason=message, delay_seconds=rung.seconds)
        await delivery.retry(rung)
        return RETRIED

    async def _requeue_after_defect(self, delivery: Delivery, parsed: ParsedDelivery | None) -> str:
        """Put a message on the ladder after a defect; reject a request after the last rung.

        `parsed` is None where parsing itself failed: then the request has the id of its envelope.
        """
        received = delivery.received
        if received.dropped:
            await delivery.dead_letter(received.dropped, rejection_of_dropped(received.dropped).message)
            return REJECTED
        if isinstance(parsed, IncomingRequest | InvalidRequest):
            sender: tuple[str, RequestId] | None = parsed.tenant, parsed.request_id
        else:
            sender = sender_of(received)
        if sender is not None and self._ladder.next(received.tries, None) is None:
            rejection = RequestRejected(
                RejectReason.INTERNAL,
                "The service failed on this request because of a defect. Inform the operator, or try again later.",
                retryable=True,
            )
            return await self._reject(delivery, *sender, rejection)
        return await self._requeue(delivery, "The service failed because of a defect.", None)
