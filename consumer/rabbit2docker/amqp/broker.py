"""The connections of a consumer: to take requests, to publish, to follow two logs, and two that guard the topology.

RabbitMQ stops reading from a connection that publishes during an alarm; acknowledgements would be stuck behind.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aio_pika.abc import AbstractChannel

from rabbit2docker import metrics
from rabbit2docker.amqp.cancel_log import CancelLog
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.declare import declare_if_allowed
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.queue_age import QUEUE_AGES
from rabbit2docker.amqp.request_consumer import RequestConsumer
from rabbit2docker.amqp.sender import is_blocked
from rabbit2docker.amqp.state_claim import StateClaim
from rabbit2docker.amqp.topology import waiting_queues
from rabbit2docker.amqp.topology_keeper import TopologyKeeper
from rabbit2docker.amqp.unrouted import UnroutedRequests
from rabbit2docker.amqp.waiting_log import WaitingLog
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.logs import get_logger
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import UNROUTED_QUEUE, make_ladder

log = get_logger()

BLOCKED: Final = "RabbitMQ takes no messages: it is short of memory or disk."


class Broker:
    """The service's view of RabbitMQ: requests in, events out."""

    def __init__(self, settings: Settings) -> None:
        """Create the parts; nothing connects before `run`. Raises ConfigurationError for an invalid URL or tenant."""
        if unknown := settings.amqp.tenant_users.keys() - settings.tenants:
            raise ConfigurationError(
                f"RABBIT2DOCKER_AMQP__TENANT_USERS names {', '.join(sorted(unknown))}, which RABBIT2DOCKER_TENANTS does not: "
                "correct one of the two."
            )
        self._settings = settings
        self._was_incomplete = False
        self._is_blocked = False
        self._keeper = TopologyKeeper(settings, on_checked=self._on_topology_checked)
        on_loss = self._keeper.check_soon
        self._publishing = ManagedChannel("publish", settings.amqp, probe=self._record_blocked)
        self.publisher = ConfirmedPublisher(
            self._publishing, settings.amqp, on_loss, tenants=tuple(settings.tenants)
        )
        ladder = make_ladder(settings.topology.retry_pauses)
        self.source = RequestConsumer(settings.amqp, self.publisher, on_loss, ladder=ladder)
        self.cancels = CancelLog(settings, self.publisher, on_loss)
        QUEUE_AGES.expose(waiting_queues(settings.tenants))
        self.waiting = WaitingLog(settings, self.publisher, on_loss)
        self._unrouted = UnroutedRequests(settings.amqp, self.publisher, on_loss, ladder=ladder)

    async def run(self, state_id: str | None = None) -> None:
        """Stay connected until cancelled. Raises AccessRefused or TopologyMismatch at the start.

        With `state_id`, requests are consumed only while no consumer with other records holds the virtual host. Raises
        StateConflict once one does.
        """
        self.source.claim = StateClaim(state_id) if state_id else None
        if self._settings.amqp.declare:
            await declare_if_allowed(self._settings)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publishing.run(), name="publishing connection")
                group.create_task(self.source.connection.run(), name="consuming connection")
                group.create_task(self.cancels.run(), name="log of cancels")
                group.create_task(self.waiting.run(), name="log of waiting requests")
                group.create_task(self._unrouted.run(), name="unrouted requests")
                group.create_task(self._keeper.run(), name="topology keeper")
        finally:
            await self.publisher.close()

    async def _on_topology_checked(self) -> None:
        is_incomplete = bool(self._keeper.problems or self.source.missing)
        if is_incomplete or self._was_incomplete:
            self._unrouted.mark_explained()
        self._was_incomplete = is_incomplete
        await self.source.consume_again(self._keeper.missing_queues)

    async def _record_blocked(self, channel: AbstractChannel) -> None:
        self._is_blocked = await is_blocked(channel)
        metrics.AMQP_BLOCKED.set(self._is_blocked)

    def problems(self) -> dict[str, str]:
        """Return the reason why a connection is down or blocked, by its role; an empty text if it works."""
        problems = {
            connection.role: "" if connection.is_connected else connection.problem
            for connection in (self._publishing, self.source.connection)
        }
        if self._is_blocked and self._publishing.is_connected:
            problems[self._publishing.role] = BLOCKED
        return problems

    def topology_problems(self) -> list[str]:
        """Return what the topology lacks, one sentence each; empty while it is complete."""
        problems = list(self._keeper.problems)
        reported = self._keeper.missing_queues
        problems += [f"queue {queue} is missing" for queue in sorted(self.source.missing - reported)]
        if not problems and self._unrouted.is_recent and not self._keeper.may_restore:
            problems.append(
                f"requests reach their queues only through {UNROUTED_QUEUE}: a binding is missing"
            )
        return problems

    def topology_losses(self) -> list[str]:
        """Return the queues that were deleted with messages in them of late, one sentence each."""
        return self._keeper.losses


@asynccontextmanager
async def publishing(settings: Settings, *, wait_seconds: float) -> AsyncIterator[ConfirmedPublisher]:
    """Open a publisher on a connection of its own, for programs that do not consume.

    Raises AccessRefused, or BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`.
    """
    connection = ManagedChannel("requester", settings.amqp)
    async with connected(connection, wait_seconds):
        publisher = ConfirmedPublisher(connection, settings.amqp)
        try:
            yield publisher
        finally:
            await publisher.close()
