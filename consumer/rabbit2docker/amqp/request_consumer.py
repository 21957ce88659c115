"""Requests and cancel messages from their queues, each queue with a prefetch of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError

from rabbit2docker import metrics
from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_down
from rabbit2docker.amqp.frame_screen import UNDECODABLE_HEADER
from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.ports import Delivery, RequestMessage, Waiting, anonymous_id
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.queue_age import QUEUE_AGES
from rabbit2docker.amqp.request_log import RequestLog
from rabbit2docker.amqp.senders import (
    ANY_USER,
    Drop,
    Origin,
    SenderCheck,
    as_short_string,
    header_text,
    publisher_headers,
)
from rabbit2docker.amqp.state_claim import StateClaim
from rabbit2docker.amqp.topology import WORK_QUEUES
from rabbit2docker.clock import as_utc, utc_now
from rabbit2docker.errors import BrokerUnavailable, MessageRefused, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.settings import AmqpSettings
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.routing import (
    ATTEMPT_HEADER,
    DEAD_LETTER_EXCHANGE,
    DROPPED_QUEUE,
    FORGED,
    MESSAGE_ID_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    REQUESTS_QUEUE,
    RETRY_EXCHANGE,
    RETRY_LADDER,
    ROUTING_KEY_HEADER,
    WAITING_FOR_HEADER,
    WAITING_SINCE_HEADER,
    RetryLadder,
    RetryRung,
    entry_queue,
    retry_queue,
)

log = get_logger()

MESSAGE_HEADER: Final = "r2d-message"
DEAD_LETTER_PATIENCE: Final = 0.5
"""Seconds for the dead-letter queue to take a message, which is held in the meantime."""
WAITING_PATIENCE: Final = 30.0
"""Seconds for a queue in which requests wait for a slot to confirm one, unless it refuses it."""
ANSWER_SECONDS: Final = 10.0
"""Time for RabbitMQ to answer whether a queue has a message."""
_MAX_REASON: Final = 1000
MAX_TRIES: Final = 1_000_000


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < MAX_TRIES else 0


def _waiting(headers: Mapping[str, Any]) -> Waiting | None:
    """Return the wait that the headers of a message from the retry ladder describe."""
    try:
        since = datetime.fromisoformat(header_text(headers[WAITING_SINCE_HEADER]))
    except (KeyError, ValueError):
        return None
    return Waiting(as_utc(since), header_text(headers.get(WAITING_FOR_HEADER, "")))


def _waiting_headers(waiting: Waiting | None) -> dict[str, Any]:
    if waiting is None:
        return {}
    return {WAITING_SINCE_HEADER: waiting.since.isoformat(), WAITING_FOR_HEADER: waiting.about}


def request_message_from(
    message: AbstractIncomingMessage, queue: str, check: SenderCheck = ANY_USER
) -> RequestMessage:
    """Return the content of a message. Headers of the service count only on a copy that it made itself."""
    drop = Drop.of(message) if queue == DROPPED_QUEUE else None
    headers, origin = dict(message.headers), drop.origin if drop else Origin.of(message, queue)
    tries, message_id, waiting, dead = 0, message.message_id, None, ("", "")
    if origin.is_copy:
        tries = _number(headers.get(ATTEMPT_HEADER))
        waiting = _waiting(headers)
        dead = (header_text(headers.get(REASON_HEADER, "")), header_text(headers.get(MESSAGE_HEADER, "")))
        message_id = (
            as_short_string(headers[MESSAGE_ID_HEADER]) if MESSAGE_ID_HEADER in headers else message_id
        )
    timestamp = as_utc(message.timestamp) if message.timestamp else None
    return RequestMessage(
        body=message.body,
        routing_key=origin.routing_key,
        queue=queue,
        headers=headers,
        # Before the first copy, which has a timestamp and a message_id of its own.
        message_id=message_id or anonymous_id(message.body, timestamp),
        content_type=message.content_type,
        timestamp=timestamp,
        redelivered=bool(message.redelivered),
        tries=tries,
        waiting=waiting,
        dead_reason=dead[0],
        dead_message=dead[1],
        undecodable=header_text(headers.get(UNDECODABLE_HEADER, "")),
        dropped=drop.reason if drop else "",
        forged=check.why_forged(origin),
    )


def _observe_wait(received: RequestMessage) -> None:
    """Measure the wait of a message that comes for the first time. The sender's timestamp may be any."""
    if not received.tries:
        QUEUE_AGES.note_taken(received.queue, received.timestamp)
    if received.timestamp is not None and not received.tries and not received.redelivered:
        seconds = (utc_now() - received.timestamp).total_seconds()
        metrics.QUEUED_SECONDS.labels(queue=received.queue).observe(max(0.0, seconds))


class AmqpDelivery:
    """One unacknowledged message; see amqp.ports.Delivery."""

    def __init__(
        self,
        message: AbstractIncomingMessage,
        queue: str,
        connection: ManagedChannel,
        publisher: ConfirmedPublisher,
        request_log: RequestLog,
        check: SenderCheck,
        ladder: RetryLadder,
    ) -> None:
        """Bind the message to the connection's current channel."""
        self._message = message
        self._connection = connection
        self._generation = connection.generation
        self._publisher = publisher
        self._request_log = request_log
        self._received = request_message_from(message, queue, check)
        self._ladder = ladder

    @property
    def received(self) -> RequestMessage:
        """Return the content."""
        return self._received

    @property
    def is_stale(self) -> bool:
        """True once the channel has closed."""
        return self._generation != self._connection.generation or not self._connection.is_channel_open

    async def record(self) -> None:
        """Publish a copy to the log of requests, unless it came from the retry ladder."""
        # The ladder's queues deliver through the default exchange, which has no name.
        if self._message.exchange:
            await self._request_log.record(self._received)

    async def ack(self) -> None:
        """Acknowledge."""
        try:
            await self._message.ack()
        except BROKEN:
            metrics.ACK_FAILURES.inc()
            log.info("acknowledgement lost, RabbitMQ will redeliver the message")

    async def retry(self, rung: RetryRung, *, counts: bool = True, waiting: Waiting | None = None) -> None:
        """Publish a copy to the ladder, then acknowledge."""
        received = self._received
        headers = self._copy_headers(received.tries + counts, waiting)
        await self._publish_copy(RETRY_EXCHANGE, retry_queue(rung, received.queue), headers)
        await self.ack()

    async def enqueue(self, queue: str) -> None:
        """Publish a copy to a queue in which requests wait for a slot, then acknowledge."""
        headers = self._copy_headers(self._received.tries, self._received.waiting)
        at_once = (MessageRefused, TopologyMismatch)
        try:
            await self._publish_copy(RETRY_EXCHANGE, queue, headers, gives_up_on=at_once)
        except MessageRefused as error:
            if isinstance(error.__cause__, DeliveryError):
                raise
            # Slow, or without a majority for a moment. A second copy is answered as a duplicate.
            await self._publish_copy(RETRY_EXCHANGE, queue, headers, patience=WAITING_PATIENCE)
        await self.ack()

    async def reroute(self, queue: str) -> None:
        """Publish a copy to the queue, once that exists, then acknowledge."""
        await self._publish_copy(RETRY_EXCHANGE, queue, self._copy_headers(0, None))
        await self.ack()

    async def dead_letter(self, reason: str, message: str) -> None:
        """Publish a copy with the reason to the dead-letter queue or, if that is full, to the ladder; acknowledge."""
        received = self._received
        headers = {
            REASON_HEADER: str(reason),
            MESSAGE_HEADER: message[:_MAX_REASON],
            QUEUE_HEADER: entry_queue(received.queue),
            ATTEMPT_HEADER: received.tries,
            ROUTING_KEY_HEADER: received.routing_key,
        }
        if reason == FORGED:
            log.warning(
                "message forged", routing_key=received.routing_key, queue=received.queue, reason=message
            )
        try:
            await self._publish_copy(
                DEAD_LETTER_EXCHANGE, received.routing_key, headers, patience=DEAD_LETTER_PATIENCE
            )
        except MessageRefused as error:
            metrics.DEAD_LETTERS_REFUSED.inc()
            rung = self._ladder.regular(received.tries)
            log.warning("dead letter refused", reason=error.message, delay_seconds=rung.seconds)
            queue = entry_queue(received.queue)
            queue = queue if queue in WORK_QUEUES else REQUESTS_QUEUE
            headers[ATTEMPT_HEADER] = received.tries + 1
            await self._publish_copy(RETRY_EXCHANGE, retry_queue(rung, queue), headers)
        else:
            metrics.DEAD_LETTERED.labels(reason=str(reason)).inc()
        await self.ack()

    def _copy_headers(self, tries: int, waiting: Waiting | None) -> dict[str, Any]:
        key = self._received.routing_key
        return {ATTEMPT_HEADER: tries, ROUTING_KEY_HEADER: key, **_waiting_headers(waiting)}

    async def _publish_copy(
        self,
        exchange: str,
        key: str,
        headers: dict[str, Any],
        *,
        patience: float | None = None,
        gives_up_on: tuple[type[Exception], ...] = (),
    ) -> None:
        received = self._received
        kept = publisher_headers(received.headers)
        kept[MESSAGE_ID_HEADER] = received.message_id  # it may name the request

        def message() -> OutgoingMessage:
            return make_message(
                received.body,
                {**kept, **headers},
                content_type=received.content_type,
                timestamp=received.timestamp or datetime.now(UTC),
            )

        await self._publisher.send(
            exchange, key, message, until_confirmed=True, patience=patience, gives_up_on=gives_up_on
        )


class RequestConsumer:
    """Consumes each queue with the prefetch that was set for it; see amqp.ports.RequestSource."""

    def __init__(
        self,
        settings: AmqpSettings,
        publisher: ConfirmedPublisher,
        on_loss: Callable[[], None] = lambda: None,
        *,
        ladder: RetryLadder = RETRY_LADDER,
    ) -> None:
        """Create the consuming connection, which connects when its `run` starts.

        `on_loss` is called when a queue turns out to be missing. The others are still consumed.
        """
        self.claim: StateClaim | None = None
        """The claim to hold while requests are consumed; set before `run`."""
        self.missing: set[str] = set()
        """Queues that did not exist when they were last to be consumed."""
        self._on_loss = on_loss
        self._request_log = RequestLog(publisher)
        self._ladder = ladder
        self._check = SenderCheck(settings.tenant_users)
        self.connection = ManagedChannel("consume", settings, setup=self._restore, probe=self._lost_consumer)
        self._publisher = publisher
        self._prefetch: dict[str, int] = {}
        self._consumers: dict[str, tuple[AbstractQueue, str]] = {}
        self._incoming: asyncio.Queue[Delivery] = asyncio.Queue()
        self._changing = asyncio.Lock()
        self._tasks = TaskSet()

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield deliveries as they arrive, except those whose channel closed while they were queued here."""
        while True:
            delivery = await self._incoming.get()
            if not delivery.is_stale:
                yield delivery

    async def set_prefetch(self, queue: str, count: int) -> None:
        """Consume `queue` with this prefetch from now on, 0 for not at all; remembered while RabbitMQ is away."""
        self._prefetch[queue] = count
        # An AMQP call that is cancelled half-way closes the channel: it runs to its end even if the caller is cancelled.
        await asyncio.shield(self._tasks.run(self._apply_now(queue), f"prefetch of {queue}"))

    async def _apply_now(self, queue: str) -> None:
        async with self._changing:
            channel = self.connection.current()
            if channel is None:
                return
            try:
                await self._apply(channel, queue)
            except BROKEN as error:
                log.info("prefetch not changed, reconnecting", queue=queue, reason=str(error))
                self.connection.request_reconnect()

    async def _apply(self, channel: AbstractChannel, queue: str) -> None:
        if consumer := self._consumers.pop(queue, None):
            await consumer[0].cancel(consumer[1])
        count = self._prefetch.get(queue, 0)
        if not count or queue in self.missing:
            return
        # A channel's prefetch applies to the consumers that start after it was set.
        await channel.set_qos(prefetch_count=count)
        source = await channel.get_queue(queue, ensure=False)
        try:
            tag = await source.consume(partial(self._on_message, queue))
        except ChannelNotFoundEntity as error:
            if not is_down(error):
                # The answer has closed the channel: the next one is for the queues that exist.
                self.missing.add(queue)
                self._on_loss()
            raise
        self._consumers[queue] = (source, tag)

    async def take(self, queue: str) -> Delivery | None:
        """Take one message of a queue that is not consumed; None if it has none. Raises BrokerUnavailable."""
        return await asyncio.shield(self._tasks.run(self._take(queue), f"message of {queue}"))

    async def _take(self, queue: str) -> Delivery | None:
        async with self._changing:
            channel = self.connection.current()
            if queue in self.missing:
                return None
            if channel is None:
                raise BrokerUnavailable("The connection to RabbitMQ is down.")
            source = await channel.get_queue(queue, ensure=False)
            try:
                message = await source.get(fail=False, timeout=ANSWER_SECONDS)
            except BROKEN as error:
                if isinstance(error, ChannelNotFoundEntity) and not is_down(error):
                    self.missing.add(queue)
                    self._on_loss()
                self.connection.request_reconnect()
                raise BrokerUnavailable(f"RabbitMQ did not answer for {queue}: {error}") from error
        return None if message is None else self._delivery(queue, message)

    async def consume_again(self, still_missing: Collection[str]) -> None:
        """Consume the queues that exist again; `still_missing` is what a check has just not found."""
        for queue in self.missing - set(still_missing):
            self.missing.discard(queue)
            await asyncio.shield(self._tasks.run(self._apply_now(queue), f"consumer of {queue}"))

    async def _on_message(self, queue: str, message: AbstractIncomingMessage) -> None:
        # This runs in a task that ends with the channel, so the work is done elsewhere.
        self._incoming.put_nowait(self._delivery(queue, message))

    def _delivery(self, queue: str, message: AbstractIncomingMessage) -> Delivery:
        delivery = AmqpDelivery(
            message,
            queue,
            self.connection,
            self._publisher,
            self._request_log,
            self._check,
            self._ladder,
        )
        _observe_wait(delivery.received)
        return delivery

    async def _restore(self, channel: AbstractChannel) -> None:
        async with self._changing:
            self._consumers.clear()
            if self.claim is not None:
                await self.claim.hold(channel)
            for queue in self._prefetch:
                await self._apply(channel, queue)

    async def _lost_consumer(self, channel: AbstractChannel) -> str | None:
        underlay = await channel.get_underlay_channel()
        for queue, (_, tag) in self._consumers.items():
            if tag not in underlay.consumers:  # type: ignore[attr-defined]
                return f"the consumer of {queue} is gone"
        return None
