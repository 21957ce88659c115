"""The stream `builds.waiting.log`: which requests began to wait, which were taken, and what was announced, for all replicas."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.shared_log import SharedLog
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import WAITING_LOG_STREAM

KEPT: Final = timedelta(days=2)
WRITE_PATIENCE: Final = 2.0
"""Requests do not wait longer for a stream that only says where to look first."""

Listener = Callable[[Mapping[str, Any]], None]


class WaitingLog(SharedLog):
    """Writes and reads the stream; see amqp.ports.WaitingLog."""

    def __init__(
        self, settings: Settings, publisher: ConfirmedPublisher, on_loss: Callable[[], None]
    ) -> None:
        """Publish with `publisher`; `on_loss` is called when the stream is missing."""
        super().__init__(
            settings.amqp,
            publisher,
            stream=WAITING_LOG_STREAM,
            role="waiting",
            kept=KEPT,
            on_missing=on_loss,
            patience=WRITE_PATIENCE,
        )
        self._listener: Listener = lambda content: None

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called with each entry, those of this replica included."""
        self._listener = listener

    async def record(self, content: Mapping[str, Any]) -> None:
        """Add an entry, confirmed. Raises BrokerUnavailable. Without the stream, it is only logged that there is none."""
        await self._write(content)

    def _describe(self, reason: str) -> str:
        return f"what other replicas do with waiting requests is not known, so places may be wrong: {reason}"

    def _apply(self, content: dict[str, Any]) -> None:
        self._listener(content)
