"""The claim of a consumer's records to a virtual host, so that no consumer with other records works on it.

Two consumers that do not share their records know nothing of each other's builds: a request that is delivered to both,
one after the other, would be built twice and end twice. RabbitMQ decides: `builds.state` cannot be declared with
arguments that name other records. It is held on the connection that takes requests, so that none is taken without it.
"""

import re
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from rabbit2docker.amqp.connection import is_down, open_connection, translated
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.topology import STATE_EXPIRES_MS, state_queue
from rabbit2docker.errors import BrokerUnavailable, StateConflict
from rabbit2docker.logs import get_logger
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import STATE_QUEUE

log = get_logger()

NOT_CLAIMED: Final = f"the user may not configure and read {STATE_QUEUE}: a second consumer with another state would not be noticed"
# RabbitMQ cuts its replies at 255 bytes.
_HOLDER: Final = re.compile(r"but current is '(.*?)(?:'|\.\.\.)$")


class StateClaim:
    """Holds the virtual host for the records `state_id`."""

    def __init__(self, state_id: str) -> None:
        """Claim nothing yet."""
        self._state_id = state_id
        self._spec = state_queue(state_id)
        self.is_refused = False
        """True once RabbitMQ has denied the user the queue: then nothing prevents a second consumer."""

    async def hold(self, channel: AbstractChannel) -> None:
        """Hold the claim for as long as the channel is open. Raises StateConflict if others hold the virtual host."""
        if self.is_refused:
            return
        try:
            queue = await channel.declare_queue(self._spec.name, durable=True, arguments=self._spec.arguments)
            await queue.consume(_ignore)  # a queue that has a consumer does not expire
        except ChannelPreconditionFailed as error:
            raise self._conflict(str(error.args[-1])) from error
        except ChannelAccessRefused as error:
            self.is_refused = True
            log.warning("virtual host not claimed", reason=NOT_CLAIMED)
            # The answer has closed the channel: the next one does without.
            raise BrokerUnavailable(f"RabbitMQ does not allow this user to declare {STATE_QUEUE}.") from error

    def _conflict(self, reply: str) -> StateConflict:
        found = _HOLDER.search(reply)
        holder = found.group(1) if found else reply
        return StateConflict(
            f"Consumers with another state work on this virtual host: {holder}. This one has the state "
            f"{self._state_id}. Consumers that do not share their records would end the same builds differently. "
            "Give this one the same state, or a virtual host of its own. If it replaces the others, stop them, let "
            "their builds end first, then run `rabbit2docker topology release` or wait "
            f"{STATE_EXPIRES_MS // 60_000} minutes."
        )


async def _ignore(message: AbstractIncomingMessage) -> None:
    """Leave it unacknowledged: no one publishes to this queue."""


async def release(settings: AmqpSettings) -> bool:
    """Give up the claim on the virtual host at once; return False if there is none.

    Raises StateConflict while a consumer holds it, BrokerUnavailable, AccessRefused.
    """
    connection = await open_connection(Endpoint(settings, "topology"))
    try:
        with translated(connection.url):
            channel = await connection.channel()
            try:
                found = await channel.declare_queue(STATE_QUEUE, passive=True)
            except ChannelNotFoundEntity as error:
                if is_down(error):
                    raise
                return False
            if count := found.declaration_result.consumer_count:
                raise StateConflict(
                    f"Consumers of this virtual host are running: {count}. Stop them first, then release it."
                )
            await channel.queue_delete(STATE_QUEUE)
            return True
    finally:
        await connection.close()
