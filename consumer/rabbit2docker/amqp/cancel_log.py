"""The stream `builds.cancels.log`: cancels of requests that are no builds yet, for all replicas and later runs.

A request may wait for hours on the retry ladder or behind others, longer than its cancel message. So each replica reads
the stream before it takes requests.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.shared_log import SharedLog
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import CANCEL_LOG_STREAM

OnCancel = Callable[[str, str, str], None]


class CancelLog(SharedLog):
    """Writes and reads the stream; see amqp.ports.CancelLog."""

    def __init__(
        self, settings: Settings, publisher: ConfirmedPublisher, on_loss: Callable[[], None]
    ) -> None:
        """Publish with `publisher`; `on_loss` is called when the stream is missing."""
        kept = timedelta(days=settings.topology.cancel_log_days)
        super().__init__(
            settings.amqp, publisher, stream=CANCEL_LOG_STREAM, role="cancels", kept=kept, on_missing=on_loss
        )
        self._on_cancel: OnCancel = lambda tenant, build_id, by: None

    def subscribe(self, on_cancel: OnCancel) -> None:
        """Have `on_cancel` called with tenant, build id and requester of each cancel, those of this replica included."""
        self._on_cancel = on_cancel

    async def record(self, tenant: str, build_id: str, by: str) -> None:
        """Keep a cancel, confirmed. Raises BrokerUnavailable. Without the stream, it is only logged that none is kept."""
        at = datetime.now(UTC).isoformat()
        await self._write({"tenant": tenant, "build_id": build_id, "by": by, "at": at})

    def _describe(self, reason: str) -> str:
        return f"cancels of other replicas and earlier runs are not known: {reason}"

    def _apply(self, content: dict[str, Any]) -> None:
        match content:
            case {"tenant": str(tenant), "build_id": str(build_id), "by": str(by)}:
                self._on_cancel(tenant, build_id, by)
            case _:  # the mark of another replica, or of a later version
                pass
