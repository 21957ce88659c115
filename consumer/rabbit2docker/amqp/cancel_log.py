"""The stream `builds.cancels.log`: cancels of requests that are no builds yet, for all replicas and later runs.

A request may wait for hours on the retry ladder or behind others, longer than its cancel message. So each replica reads
the stream before it takes requests, up to a mark of its own at the end, and follows it from then on.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity

from rabbit2docker.amqp.connection import BROKEN, ManagedChannel, is_down
from rabbit2docker.amqp.publisher import ConfirmedPublisher, make_message
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import retry_forever
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import TaskSet
from rabbit2docker_schemas.routing import CANCEL_LOG_STREAM, RETRY_EXCHANGE

log = get_logger()

PREFETCH: Final = 1000
ACK_EVERY: Final = 200
"""RabbitMQ sends further messages of a stream as earlier ones are acknowledged, several at once."""
PAUSE_SECONDS: Final = 10.0
"""Time without further tries to write after one that the user or the topology does not allow."""
REFUSED_PAUSES: Final = (30.0,)
MARK_PAUSES: Final = (0.5, 1.0, 2.0, 5.0)

OnCancel = Callable[[str, str, str], None]


class CancelLog:
    """Writes and reads the stream; see amqp.ports.CancelLog."""

    def __init__(
        self, settings: Settings, publisher: ConfirmedPublisher, on_loss: Callable[[], None]
    ) -> None:
        """Publish with `publisher`; `on_loss` is called when the stream is missing."""
        self._connection = ManagedChannel("cancels", settings.amqp, setup=self._consume)
        self._kept = timedelta(days=settings.topology.cancel_log_days)
        self._publisher = publisher
        self._on_loss = on_loss
        self._on_cancel: OnCancel = lambda tenant, build_id, by: None
        self._mark = uuid.uuid4().hex
        self._next: int | datetime | None = None
        self._unacknowledged = 0
        self._paused_until = 0.0
        self._tasks = TaskSet()
        self.caught_up = asyncio.Event()
        """Set once all earlier cancels are read, or turned out not to be readable."""
        self.problem = "earlier cancels are not read yet"
        """The reason why cancels of other replicas and earlier runs are not known; empty if they are."""

    def subscribe(self, on_cancel: OnCancel) -> None:
        """Have `on_cancel` called with tenant, build id and requester of each cancel, those of this replica included."""
        self._on_cancel = on_cancel

    async def run(self) -> None:
        """Follow the stream until cancelled. A stream that is missing or may not be read is no reason to end."""
        self._tasks.run_in_background(self._write_mark(), "mark in the log of cancels")
        try:
            await retry_forever(
                self._connection.run,
                on=AccessRefused,
                pauses=REFUSED_PAUSES,
                report=lambda error, _: self._do_without(str(error)),
            )
        finally:
            await self._tasks.close()

    async def record(self, tenant: str, build_id: str, by: str) -> None:
        """Keep a cancel, confirmed. Raises BrokerUnavailable. Without the stream, it is only logged that none is kept."""
        if asyncio.get_running_loop().time() < self._paused_until:
            return
        at = datetime.now(UTC).isoformat()
        try:
            await self._publish({"tenant": tenant, "build_id": build_id, "by": by, "at": at})
        except (TopologyMismatch, AccessRefused) as error:
            self._paused_until = asyncio.get_running_loop().time() + PAUSE_SECONDS
            log.warning("cancel not kept: only this replica knows it", reason=str(error))

    async def _publish(self, content: dict[str, str]) -> None:
        def message() -> aio_pika.Message:
            return make_message(json.dumps(content).encode(), {}, content_type="application/json")

        await self._publisher.send(
            RETRY_EXCHANGE,
            CANCEL_LOG_STREAM,
            message,
            until_confirmed=True,
            gives_up_on=(TopologyMismatch, AccessRefused),
        )

    async def _write_mark(self) -> None:
        try:
            await retry_forever(
                lambda: self._publish({"mark": self._mark}), on=BrokerUnavailable, pauses=MARK_PAUSES
            )
        except (TopologyMismatch, AccessRefused) as error:
            self._do_without(str(error))

    def _do_without(self, reason: str) -> None:
        if not self.caught_up.is_set():
            log.warning("earlier cancels not read", reason=reason)
        self.problem = f"cancels of other replicas and earlier runs are not known: {reason}"
        self.caught_up.set()

    async def _consume(self, channel: AbstractChannel) -> None:
        self._unacknowledged = 0
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(CANCEL_LOG_STREAM, ensure=False)
        offset = datetime.now(UTC) - self._kept if self._next is None else self._next
        try:
            await queue.consume(self._on_message, arguments={"x-stream-offset": offset})
        except ChannelNotFoundEntity as error:
            if not is_down(error):
                self._on_loss()
                self._do_without(f"the stream {CANCEL_LOG_STREAM} is missing")
            raise
        if self.caught_up.is_set():
            self.problem = ""

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        offset = message.headers.get("x-stream-offset")
        if isinstance(offset, int):
            self._next = offset + 1
        self._apply(_read(message.body))
        self._unacknowledged += 1
        if self._unacknowledged >= ACK_EVERY:
            self._unacknowledged = 0
            try:
                await message.ack(multiple=True)
            except BROKEN as error:
                log.debug("log of cancels interrupted", reason=str(error))

    def _apply(self, content: dict[str, Any]) -> None:
        match content:
            case {"tenant": str(tenant), "build_id": str(build_id), "by": str(by)}:
                self._on_cancel(tenant, build_id, by)
            case {"mark": self._mark}:
                self.problem = ""
                self.caught_up.set()
            case _:  # the mark of another replica, or of a later version
                pass


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
