"""Publishing with confirms: a message counts as sent once RabbitMQ confirms it, and is sent again until then.

An event goes to the tenant's stream and to its hubs in one message. If RabbitMQ refuses that, the tenant's stream gets
its events apart from the hubs, and nothing waits for these: see amqp.hub_backlog.
"""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker.amqp.connection import ManagedChannel
from rabbit2docker.amqp.hub_backlog import Answer, HeldEvent, HubBacklogs
from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.ports import IsNeeded, always
from rabbit2docker.amqp.sender import MakeMessage, MessageSender, Unrouted
from rabbit2docker.errors import BrokerUnavailable, MessageRefused, StreamUnavailable, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event, event_type
from rabbit2docker_schemas.routing import (
    DEAD_LETTER_EXCHANGE,
    REQUEST_LOG_EXCHANGE,
    RESULTS_EXCHANGE,
    RESULTS_LOG_EXCHANGE,
    RETRY_EXCHANGE,
    repeated_event_key,
    tenant_stream,
)

log = get_logger()

UNROUTED_PAUSE: Final = 0.5
UNROUTED_SECONDS: Final = 30.0
"""How long events of a tenant that reach no queue are sent again: right after its start, RabbitMQ may confirm messages
that it has routed nowhere. A tenant without a stream delays no one for longer."""
UNROUTED_TENANTS: Final = 1000
KNOWN_REFUSAL_PATIENCE: Final = 1.0
"""Seconds for a stream that has refused events before, so that a tenant holds up intake once, not with each request."""
OFFER_SECONDS: Final = 3.0
"""Seconds for hubs to take an event that was refused before, or that others before it were."""
PROBLEM_NAMES: Final = {
    DEAD_LETTER_EXCHANGE: "dead letters wait",
    RETRY_EXCHANGE: "messages for the retry ladder wait",
    REQUEST_LOG_EXCHANGE: "copies for the log of requests are left out",
}


class _NoLongerNeeded(Exception):
    """An event that waited has become unnecessary."""


class ConfirmedPublisher(MessageSender):
    """Publishes events, and sends other messages, on one connection."""

    def __init__(
        self,
        connection: ManagedChannel,
        settings: AmqpSettings,
        on_loss: Callable[[], None] = lambda: None,
        *,
        tenants: tuple[str, ...] = (),
    ) -> None:
        """Publish as a MessageSender does; `tenants`: those with metrics of their own."""
        super().__init__(connection, settings, on_loss)
        self.settings = settings
        self._unrouted_since: LRUCache[str, float] = LRUCache(UNROUTED_TENANTS)
        self._backlogs = HubBacklogs(self._offer, limit=settings.hub_backlog_bytes, tenants=tenants)
        self._numbers = itertools.count()

    @property
    def user(self) -> str | None:
        """The user that RabbitMQ knows the present connection by; None where its URL does not say."""
        url = self._connection.url
        return (url.user or None) if url.query.get("auth", "plain").lower() == "plain" else None

    async def close(self) -> None:
        """End the offers to hubs that are behind. What is being published goes on until the connection closes."""
        await self._backlogs.close()

    def problems(self) -> list[str]:
        """Return what waits while everything else goes on, one sentence each."""
        problems = [
            _backlog_text(tenant, len(backlog), backlog.missed) for tenant, backlog in self._backlogs.items()
        ]
        return problems + [
            f"{PROBLEM_NAMES.get(about, f'events and answers wait for the stream {about}')}: {reason}"
            for about, reason in self._refusing.items()
            if about != RESULTS_EXCHANGE
        ]

    async def publish(
        self, event: Event, *, patience: float | None = None, is_needed: IsNeeded = always
    ) -> bool:
        """Publish an event until it is confirmed; see amqp.ports.Publisher."""
        with suppress(_NoLongerNeeded):
            await self._publish_event(event, patience, is_needed)
            return True
        return False

    async def _publish_event(self, event: Event, patience: float | None, is_needed: IsNeeded) -> None:
        body, headers, number = event.body(), event.headers(), next(self._numbers)
        # RabbitMQ routes by it and removes it.
        index_key = {"BCC": [event.index_key]} if event.index_key is not None else {}

        def message(*, indexed: bool = False) -> OutgoingMessage:
            return make_message(
                body,
                headers | index_key if indexed else headers,
                correlation_id=event.subject,
                type_=event_type(event.kind),
                timestamp=event.time,
            )

        def indexed() -> OutgoingMessage:
            if not is_needed():
                raise _NoLongerNeeded
            return message(indexed=True)

        with metrics.EVENT_PUBLISH_SECONDS.time():
            is_apart = self._is_apart(event.tenant)
            try:
                if not is_apart and not await self._publish_whole(event, indexed):
                    return
            except MessageRefused:
                is_apart, is_refused = True, True
            else:
                is_refused = False
            if is_apart:
                held = HeldEvent(number, event.routing_key, message, len(body), may_repeat=not is_refused)
                await self._publish_apart(event.tenant, held, indexed, patience, is_refused=is_refused)
        metrics.EVENTS_PUBLISHED.labels(kind=event.kind).inc()

    def _is_apart(self, tenant: str) -> bool:
        """Return whether a hub or the stream of the tenant refuses events, so that they are published apart."""
        return tenant in self._backlogs or tenant_stream(tenant) in self._refusing

    async def _publish_whole(self, event: Event, message: MakeMessage) -> bool:
        """Publish to stream and hubs at once; return False if the tenant has neither. Raises MessageRefused."""
        while True:
            try:
                await self.send(
                    RESULTS_EXCHANGE,
                    event.routing_key,
                    message,
                    until_confirmed=True,
                    gives_up_on=(Unrouted, MessageRefused),
                )
            except Unrouted:
                if self._give_up_unrouted(event.tenant):
                    return False
                await asyncio.sleep(UNROUTED_PAUSE)
            else:
                self._unrouted_since.pop(event.tenant, None)
                return True

    async def _publish_apart(
        self,
        tenant: str,
        event: HeldEvent,
        indexed: MakeMessage,
        patience: float | None,
        *,
        is_refused: bool,
    ) -> None:
        """Publish to the stream, and leave the hubs to the tenant's backlog. Raises StreamUnavailable.

        `indexed` makes the message for stream and index. `is_refused`: stream and hubs have been offered the event at
        once, so that those which took it have it.
        """
        backlog = self._backlogs.open(tenant)
        with backlog.expecting():
            is_offered = await self._publish_to_stream(tenant, event.routing_key, indexed, patience)
            backlog.add(event, is_refused=is_refused or is_offered)

    async def _publish_to_stream(
        self, tenant: str, key: str, message: MakeMessage, patience: float | None
    ) -> bool:
        """Publish to the stream; return True if that took another offer to the hubs. Raises StreamUnavailable."""
        while True:
            try:
                await self._publish_past_hubs(tenant, key, message, patience)
            except TopologyMismatch:
                # Without its second way the stream has the first one, on which it takes what a hub refuses.
                if await self._publish_beside_hubs(tenant, key, message):
                    return True
                await asyncio.sleep(UNROUTED_PAUSE)
            else:
                return False

    async def _publish_past_hubs(
        self, tenant: str, key: str, message: MakeMessage, patience: float | None
    ) -> None:
        """Publish to the exchange that only streams are bound to. Raises StreamUnavailable, TopologyMismatch."""
        stream = tenant_stream(tenant)
        if patience is not None and stream in self._refusing:
            patience = min(patience, KNOWN_REFUSAL_PATIENCE)
        try:
            await self.send(
                RESULTS_LOG_EXCHANGE,
                key,
                message,
                until_confirmed=True,
                gives_up_on=(TopologyMismatch,),
                patience=patience,
                about=stream,
            )
        except MessageRefused as error:
            raise StreamUnavailable(
                f"The events of tenant {tenant} cannot be stored. {error.message}"
            ) from error

    async def _publish_beside_hubs(self, tenant: str, key: str, message: MakeMessage) -> bool:
        """Publish to stream and hubs once; return False if it is worth another try."""
        try:
            await self._send_once(key, message)
        except MessageRefused:
            return True  # by a hub: the stream has it
        except Unrouted:
            return self._give_up_unrouted(tenant)
        except TopologyMismatch:
            return False
        self._unrouted_since.pop(tenant, None)
        return True

    async def _offer(self, event: HeldEvent, was_refused: bool) -> Answer:
        """Publish an event to hubs alone."""
        try:
            await self._send_once(repeated_event_key(event.routing_key), event.message)
        except Unrouted:
            # A hub that selects kinds of events has no binding for repetitions, or there is no hub any more.
            return await self._offer_whole(event) if was_refused else Answer.REFUSED
        except (MessageRefused, TopologyMismatch):
            return Answer.REFUSED
        except BrokerUnavailable:
            if self._connection.is_closing:
                raise
            return Answer.REFUSED
        return Answer.TAKEN

    async def _offer_whole(self, event: HeldEvent) -> Answer:
        """Publish an event once more to stream and hubs, unless that would be the stream's third copy."""
        if not event.may_repeat:
            return Answer.MISSED
        try:
            await self._send_once(event.routing_key, event.message)
        except (MessageRefused, Unrouted):
            return Answer.MISSED
        except TopologyMismatch:  # no exchange, so there is no further copy
            return Answer.REFUSED
        return Answer.TAKEN

    async def _send_once(self, key: str, message: MakeMessage) -> None:
        """Publish an event for a tenant whose hubs refuse events, outside of the window that all messages share."""
        await self.send(
            RESULTS_EXCHANGE,
            key,
            message,
            until_confirmed=True,
            gives_up_on=(TopologyMismatch, MessageRefused),
            timeout=min(self._timeout, OFFER_SECONDS),
        )

    def _give_up_unrouted(self, tenant: str) -> bool:
        """Return whether no event of this tenant has reached a queue for UNROUTED_SECONDS."""
        metrics.EVENTS_UNROUTED.inc()
        now = asyncio.get_running_loop().time()
        if tenant not in self._unrouted_since:
            self._unrouted_since[tenant] = now
            log.warning("events unrouted, sending again", tenant=tenant)
        if now - self._unrouted_since[tenant] < UNROUTED_SECONDS:
            return False
        log.warning("event dropped: tenant has no stream, see `topology declare`", tenant=tenant)
        return True


def _backlog_text(tenant: str, held: int, missed: int) -> str:
    more = f", and it has missed {missed} older ones" if missed else ""
    return (
        f"{held} events wait for a hub of tenant {tenant}{more}: a queue that is bound to builds.results is full or has "
        "no majority; the tenant's stream has the events"
    )
