"""Following what a replay has published: answers and ends of its requests, of all tenants."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rabbit2docker.amqp.stream_scan import StreamMessage
from rabbit2docker.replay.reading import ReplayReader
from rabbit2docker.replay.workspace import Workspace

COUNT_SECONDS: Final = 0.5
"""Time between counts, each of which looks at all requests."""
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)

_ENDS: Final = """
SELECT f.tenant, f.request_id, f.replay_of, f.what, e.kind, e.reason, e.image, e.digest, j.reason, j.message
FROM followed f
LEFT JOIN answers a
  ON a.rowid = (SELECT max(rowid) FROM answers WHERE tenant = f.tenant AND request_id = f.request_id)
LEFT JOIN ends e ON e.rowid = (
  SELECT max(rowid) FROM ends
  WHERE tenant = f.tenant AND build_id = COALESCE(a.build_id, own_build(f.tenant, f.request_id)))
LEFT JOIN rejections j
  ON j.rowid = (SELECT max(rowid) FROM rejections WHERE tenant = f.tenant AND request_id = f.request_id)
ORDER BY f.rowid
"""


@dataclass(frozen=True, slots=True)
class FollowedRequest:
    """A published request and its end."""

    tenant: str
    request_id: str
    replay_of: str
    what: str
    """Provider and spec, for people."""
    state: str
    """completed, failed, cancelled, rejected, or `not ended`."""
    reason: str
    image: str
    digest: str


class Following:
    """The requests of one replay, up to their ends. Its workspace is its own."""

    def __init__(self, reader: ReplayReader, since: datetime) -> None:
        """Read events since a moment, which is before the first request."""
        self._reader = reader
        self._since = since
        self._workspace = Workspace()
        self._workspace.query("CREATE TABLE followed(tenant, request_id, replay_of, what)")
        self._workspace.query("CREATE INDEX followed_by_id ON followed(tenant, request_id)")
        self._workspace.finish()
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def add(self, tenant: str, request_id: str, replay_of: str, what: str) -> None:
        """Follow one more request."""
        self._workspace.query("INSERT INTO followed VALUES (?, ?, ?, ?)", tenant, request_id, replay_of, what)
        if tenant not in self._tails:
            self._tails[tenant] = asyncio.create_task(self._tail(tenant), name=f"events of {tenant}")

    async def _tail(self, tenant: str) -> None:
        async with aclosing(self._reader.tail(tenant, self._since)) as batches:
            async for batch in batches:
                self._keep(tenant, batch)

    def _keep(self, tenant: str, batch: Iterable[StreamMessage]) -> None:
        self._workspace.add_events(tenant, batch, END_OF_TIME)
        self._changed.set()

    def counts(self) -> Counter[str]:
        """Return the number of requests by state."""
        return Counter(found.state for found in self.requests())

    def requests(self) -> Iterable[FollowedRequest]:
        """Yield the requests in the order of their publication."""
        for (
            tenant,
            request_id,
            replay_of,
            what,
            kind,
            reason,
            image,
            digest,
            why,
            message,
        ) in self._workspace.query(_ENDS):
            if kind is None and why is not None:
                kind, reason = "rejected", f"{why}: {message}"
            yield FollowedRequest(
                tenant,
                request_id,
                replay_of,
                what,
                kind or "not ended",
                reason or "",
                image or "",
                digest or "",
            )

    async def until_ended(self, show: Callable[[Counter[str]], None]) -> None:
        """Return once all requests have ended; `show` is called with the counts whenever they may have changed.

        Raises what ends the reading: TopologyMismatch, AccessRefused, BrokerUnavailable.
        """
        while True:
            self._changed.clear()
            counts = self.counts()
            show(counts)
            if not counts["not ended"]:
                return
            changed = asyncio.create_task(self._changed.wait())
            done, _ = await asyncio.wait(
                [changed, *self._tails.values()], return_when=asyncio.FIRST_COMPLETED
            )
            changed.cancel()
            for task in done - {changed}:
                await task
            await asyncio.sleep(COUNT_SECONDS)

    async def close(self) -> None:
        """Stop reading."""
        for task in self._tails.values():
            task.cancel()
        await asyncio.gather(*self._tails.values(), return_exceptions=True)
        self._workspace.close()
