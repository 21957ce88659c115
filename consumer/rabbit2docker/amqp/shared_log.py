"""A stream that all replicas write and follow: each knows what the others and earlier runs have written.

A replica reads what the stream has kept, up to a mark of its own at the end, and follows it from then on.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_down
from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, MessageRefused, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff, retry_forever
from rabbit2docker.settings import AmqpSettings
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.routing import RETRY_EXCHANGE

log = get_logger()

PREFETCH: Final = 1000
ACK_EVERY: Final = 200
"""RabbitMQ sends further messages of a stream as earlier ones are acknowledged, several at once."""
PAUSE_SECONDS: Final = 10.0
"""Time without further tries to write after one that the user or the topology does not allow."""
REFUSED_PAUSES: Final = (30.0,)
MARK_PAUSES: Final = (0.5, 1.0, 2.0, 5.0)
READ_PAUSES: Final = (2.0, 5.0, 10.0, 30.0)
"""Time for a mark to be read. RabbitMQ (4.0.5) sometimes does not send the first message of a new stream to a reader that
comes at the same moment, but sends it together with the next one."""


class SharedLog:
    """Writes and follows one stream. Subclasses give the entries a meaning."""

    def __init__(
        self,
        settings: AmqpSettings,
        publisher: ConfirmedPublisher,
        *,
        stream: str,
        role: str,
        kept: timedelta,
        on_missing: Callable[[], None],
        patience: float | None = None,
    ) -> None:
        """Publish with `publisher`, connect as `role`.

        `kept`: age up to which earlier entries count; `on_missing` is called when the stream does not exist;
        `patience`: seconds after which an entry that the stream refuses is left out, None for never.
        """
        self._connection = ManagedChannel(role, settings, setup=self._consume)
        self._publisher = publisher
        self._stream = stream
        self._kept = kept
        self._on_missing = on_missing
        self._patience = patience
        self._mark = uuid.uuid4().hex
        self._next: int | datetime | None = None
        self._unacknowledged = 0
        self._paused_until = 0.0
        self._tasks = TaskSet()
        self.caught_up = asyncio.Event()
        """Set once all earlier entries are read, or turned out not to be readable."""
        self.problem = self._describe("they are not read yet")
        """The reason why entries of other replicas and earlier runs are not known; empty if they are."""

    def _apply(self, content: dict[str, Any]) -> None:
        """Take an entry in."""
        raise NotImplementedError

    def _describe(self, reason: str) -> str:
        """Return what is not known for this reason."""
        return f"entries of other replicas and earlier runs are not known: {reason}"

    async def run(self) -> None:
        """Follow the stream until cancelled. A stream that is missing or may not be read is no reason to end."""
        self._tasks.run_in_background(self._write_mark(), f"mark in {self._stream}")
        try:
            await retry_forever(
                self._connection.run,
                on=AccessRefused,
                pauses=REFUSED_PAUSES,
                report=lambda error, _: self._do_without(str(error)),
            )
        finally:
            await self._tasks.close()

    async def _write(self, content: Mapping[str, Any]) -> None:
        """Add an entry, confirmed. Raises BrokerUnavailable; where the stream takes none, it is only logged."""
        if asyncio.get_running_loop().time() < self._paused_until:
            return
        try:
            await self._publish(content)
        except (TopologyMismatch, AccessRefused, MessageRefused) as error:
            if isinstance(error, MessageRefused) and self._patience is None:
                raise
            self._paused_until = asyncio.get_running_loop().time() + PAUSE_SECONDS
            log.warning("entry not kept: only this replica knows it", stream=self._stream, reason=str(error))

    async def _publish(self, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()

        def message() -> OutgoingMessage:
            return make_message(body, {}, content_type="application/json")

        await self._publisher.send(
            RETRY_EXCHANGE,
            self._stream,
            message,
            until_confirmed=True,
            gives_up_on=(TopologyMismatch, AccessRefused),
            patience=self._patience,
        )

    async def _write_mark(self) -> None:
        """Write the mark, and again until it was read."""
        pauses = Backoff(READ_PAUSES)
        try:
            while not self.caught_up.is_set():
                await retry_forever(
                    lambda: self._publish({"mark": self._mark}), on=BrokerUnavailable, pauses=MARK_PAUSES
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout(pauses.next()):
                        await self.caught_up.wait()
        except (TopologyMismatch, AccessRefused) as error:
            self._do_without(str(error))

    def _do_without(self, reason: str) -> None:
        if not self.caught_up.is_set():
            log.warning("earlier entries not read", stream=self._stream, reason=reason)
        self.problem = self._describe(reason)
        self.caught_up.set()

    async def _consume(self, channel: AbstractChannel) -> None:
        self._unacknowledged = 0
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(self._stream, ensure=False)
        offset = datetime.now(UTC) - self._kept if self._next is None else self._next
        try:
            await queue.consume(self._on_message, arguments={"x-stream-offset": offset})
        except ChannelNotFoundEntity as error:
            if not is_down(error):
                self._on_missing()
                self._do_without(f"the stream {self._stream} is missing")
            raise
        if self.caught_up.is_set():
            self.problem = ""

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        offset = message.headers.get("x-stream-offset")
        if isinstance(offset, int):
            self._next = offset + 1
        content = _read(message.body)
        if content.get("mark") == self._mark:
            self.problem = ""
            self.caught_up.set()
        else:
            self._apply(content)
        self._unacknowledged += 1
        if self._unacknowledged >= ACK_EVERY:
            self._unacknowledged = 0
            try:
                await message.ack(multiple=True)
            except BROKEN as error:
                log.debug("stream interrupted", stream=self._stream, reason=str(error))


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
