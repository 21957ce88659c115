"""Takes deliveries, has them carried out, and settles each exactly once, whatever happens."""

import asyncio
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.ports import Delivery, RequestSource
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.admission import Admission
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.parsing import IncomingRequest, header, request_id_of
from rabbit2docker.errors import BrokerUnavailable, RequestRejected, TransientError
from rabbit2docker_schemas.events import Phase, Progress, ProgressDetail, Rejected
from rabbit2docker_schemas.parsing import InvalidMessage, read_cancel, read_request
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.routing import (
    RETRY_LADDER,
    RequestKey,
    RetryRung,
    parse_request_key,
)

log = structlog.get_logger()

REJECTED: Final = "rejected"
RETRIED: Final = "retried"
# Rejections about the message itself: an operator may want to look at it. The others are answers to people.
_DEAD_LETTERED: Final = frozenset(
    {
        RejectReason.INVALID_JSON,
        RejectReason.INVALID_REQUEST,
        RejectReason.TOO_LARGE,
        RejectReason.UNSUPPORTED_TYPE,
        RejectReason.NOT_ALLOWED,
        RejectReason.REFUSED_URL,
        RejectReason.UNAVAILABLE,
        RejectReason.INTERNAL,
    }
)


def next_rung(tries: int, retry_after: float | None) -> RetryRung | None:
    """Return where a message rests before it is tried again; None when it was on every rung already."""
    remaining = RETRY_LADDER[tries:]
    long_enough = (rung for rung in remaining if rung.seconds >= (retry_after or 0))
    return next(long_enough, remaining[-1] if remaining else None)


class IntakeWorker:
    """The loop over deliveries. Many are in hand at once, each in a task of its own."""

    def __init__(
        self,
        *,
        source: RequestSource,
        events: EventPublisher,
        admission: Admission,
        cancelling: Cancellation,
        capacity: Capacity,
        max_bytes: int,
    ) -> None:
        """Take the parts; nothing is consumed before `run`."""
        self._source = source
        self._events = events
        self._admission = admission
        self._cancelling = cancelling
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> None:
        """Take deliveries until cancelled."""
        async for delivery in self._source.deliveries():
            queue = delivery.received.queue
            self._capacity.take(queue)
            task = asyncio.create_task(self._handle(delivery), name=f"intake from {queue}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Let what is in hand come to its end, then cancel the rest: it is delivered again."""
        tasks = set(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _handle(self, delivery: Delivery) -> None:
        received = delivery.received
        structlog.contextvars.clear_contextvars()
        metrics.REQUESTS_RECEIVED.labels(queue=received.queue).inc()
        try:
            with metrics.INTAKE_SECONDS.time():
                outcome = "stale" if delivery.is_stale else await self._settle(delivery)
            metrics.REQUESTS_SETTLED.labels(outcome=outcome).inc()
        except BrokerUnavailable as error:
            # Un-acknowledged: RabbitMQ delivers it again when the channel is closed or renewed.
            log.warning("cannot settle a delivery, it will be repeated", error=str(error))
        except Exception:
            metrics.REQUESTS_SETTLED.labels(outcome="error").inc()
            log.exception("intake broke on a message")
            with suppress(TransientError):
                await self._again(delivery, "The service made an error; it tries again.", None)
        finally:
            self._capacity.release(received.queue)

    async def _settle(self, delivery: Delivery) -> str:
        key = parse_request_key(delivery.received.routing_key)
        if key is None:
            await delivery.dead_letter("unroutable", "The routing key is neither a request's nor a cancel's.")
            return REJECTED
        if key.action == "cancel":
            return await self._settle_cancel(delivery, key)
        return await self._settle_request(delivery, key)

    async def _settle_request(self, delivery: Delivery, key: RequestKey) -> str:
        received = delivery.received
        try:
            request = read_request(
                received.body,
                content_type=received.content_type,
                ce_type=header(received, "ce-type"),
                max_bytes=self._max_bytes,
            )
        except InvalidMessage as error:
            request_id = request_id_of(received, error.request_id)
            return await self._reject(
                delivery, key.tenant, request_id, RequestRejected(error.reason, error.message)
            )
        wish = IncomingRequest(
            tenant=key.tenant,
            request_id=request_id_of(received, request.request_id),
            request=request,
            queued_at=received.timestamp or utc_now(),
        )
        return await self._admit(delivery, wish)

    async def _admit(self, delivery: Delivery, wish: IncomingRequest) -> str:
        structlog.contextvars.bind_contextvars(
            tenant=wish.tenant, request_id=wish.request_id, build_id=wish.build_id
        )
        turn = self._one_at_a_time.setdefault((wish.tenant, wish.request_id), asyncio.Lock())
        try:
            async with turn:
                outcome = await self._admission.admit(wish)
        except RequestRejected as rejection:
            return await self._reject(delivery, wish.tenant, wish.request_id, rejection)
        except BrokerUnavailable:
            raise
        except TransientError as error:
            return await self._again(delivery, error.message, error.retry_after, wish)
        await delivery.ack()
        log.info("request taken", outcome=outcome, provider=wish.request.provider, spec=wish.request.spec)
        return outcome

    async def _reject(
        self, delivery: Delivery, tenant: str, request_id: str, rejection: RequestRejected
    ) -> str:
        metrics.REQUESTS_REJECTED.labels(reason=rejection.reason).inc()
        log.info(
            "request rejected", request_id=request_id, reason=str(rejection.reason), why=rejection.message
        )
        await self._events.publish_rejected(
            tenant,
            Rejected(
                request_id=request_id,
                reason=rejection.reason,
                message=rejection.message,
                retryable=rejection.retryable,
            ),
        )
        if rejection.reason in _DEAD_LETTERED:
            await delivery.dead_letter(rejection.reason, rejection.message)
        else:
            await delivery.ack()
        return REJECTED

    async def _again(
        self, delivery: Delivery, message: str, retry_after: float | None, wish: IncomingRequest | None = None
    ) -> str:
        """Put the delivery on the retry ladder and say so, or give it up after the last rung."""
        received = delivery.received
        rung = next_rung(received.tries, retry_after)
        if rung is None:
            return await self._give_up(delivery, message, wish)
        log.warning("request put off", seconds=rung.seconds, why=message)
        if wish is not None:
            await self._events.publish_progress(
                wish.tenant,
                Progress(
                    build_id=wish.build_id,
                    attempt=0,
                    phase=Phase.WAITING,
                    message=message,
                    detail=ProgressDetail(waiting_for=message, retry_in_seconds=rung.seconds),
                ),
                about=f"try{received.tries}",
            )
        await delivery.retry(rung)
        return RETRIED

    async def _give_up(self, delivery: Delivery, message: str, wish: IncomingRequest | None) -> str:
        if wish is None:
            key = parse_request_key(delivery.received.routing_key)
            if key is None or key.action == "cancel":
                await delivery.dead_letter(RejectReason.INTERNAL, message)
                return REJECTED
            tenant, request_id = key.tenant, str(request_id_of(delivery.received, None))
            rejection = RequestRejected(RejectReason.INTERNAL, message, retryable=True)
        else:
            tenant, request_id = wish.tenant, str(wish.request_id)
            rejection = RequestRejected(
                RejectReason.UNAVAILABLE,
                f"{message} It was tried several times; ask again later.",
                retryable=True,
            )
        return await self._reject(delivery, tenant, request_id, rejection)

    async def _settle_cancel(self, delivery: Delivery, key: RequestKey) -> str:
        received = delivery.received
        try:
            wish = read_cancel(
                received.body,
                content_type=received.content_type,
                ce_type=header(received, "ce-type"),
                max_bytes=self._max_bytes,
            )
        except InvalidMessage as error:
            log.info("cancel message cannot be read", why=error.message)
            await delivery.dead_letter(error.reason, error.message)
            return REJECTED
        try:
            found = await self._cancelling.cancel(key.tenant, wish)
        except TransientError as error:
            return await self._again(delivery, error.message, error.retry_after)
        # Perhaps its request is in hand, or behind it in the queue: look again a little later.
        if not found and (rung := next_rung(received.tries, None)):
            await delivery.retry(rung)
            return RETRIED
        await delivery.ack()
        return "cancelled" if found else "nothing_to_cancel"
