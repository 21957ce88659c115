"""Filling the workspace from RabbitMQ: the log of requests, and the events of their tenants."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.stream import Last
from rabbit2docker.amqp.stream_scan import StreamMessage, StreamScan
from rabbit2docker.client.history import CLOCK_SLACK
from rabbit2docker.client.stream_pages import ReadingConnection, StreamPages
from rabbit2docker.errors import AccessRefused, TopologyMismatch
from rabbit2docker.replay.logged import LoggedRequest, UnreadableRequest, key_of, read_logged
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import event_time
from rabbit2docker_schemas.routing import REQUEST_LOG_STREAM, tenant_index, tenant_stream

REPLAY_KEY_PREFIX: Final = "replay."
"""Routing key, with the id of the replay, of the message in the log with which a replay begins."""
NO_RIGHT: Final = (
    "{} Only an operator may read the requests of all tenants: use the URL of rabbit2docker-operator, which "
    "`rabbit2docker topology export` makes. The user of a tenant builds again with `rabbit2docker build` or "
    "`rabbit2docker prebuild`."
)
BEGINNING: Final = datetime.fromtimestamp(0, UTC)
OnProgress = Callable[[float], None]


@dataclass(slots=True)
class LogReport:
    """Numbers of a pass over the log."""

    requests: int = 0
    """Requests that were read, whether they match or not."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Messages that are no requests, by reason."""
    oldest: datetime | None = None
    """Time of the first request that was read."""
    events_unreadable: int = 0


class ReplayReader:
    """Reads streams of all tenants with an operator's user."""

    def __init__(self, connection: ManagedChannel, *, reconnect_seconds: float | None) -> None:
        """Read over a connection that runs; `reconnect_seconds` limits the time for it to come back."""
        self._connection = connection
        self._reconnect_seconds = reconnect_seconds
        self.on_progress: OnProgress = lambda share: None
        """Called with the share that was read, from 0 to 1."""
        self._shared = ReadingConnection(connection, reconnect_seconds)

    async def fill(self, workspace: Workspace, selection: Selection, *, without: str) -> LogReport:
        """Read what a selection needs, `without` the requests whose ids begin so: those of the replay itself.

        Raises TopologyMismatch where there is no log, AccessRefused, BrokerUnavailable.
        """
        report = await self._read_requests(workspace, selection, without)
        tenants = workspace.tenants()
        since = BEGINNING if selection.names_builders else selection.since
        await self.fill_events(workspace, tenants, since, selection.until, report)
        return report

    async def fill_events(
        self,
        workspace: Workspace,
        tenants: Iterable[str],
        since: datetime,
        until: datetime,
        report: LogReport,
    ) -> None:
        """Read the beginnings and ends of builds of these tenants; those without streams are left out."""
        names = list(tenants)
        for number, tenant in enumerate(names):
            try:
                await self._read_events(workspace, tenant, since, until, report, (number, len(names)))
            except TopologyMismatch:
                # RabbitMQ has closed the channel. A connection that is closed while it is opened anew may hang.
                await self._shared.wait()
            except AccessRefused as error:
                raise AccessRefused(NO_RIGHT.format(error)) from error
        self.on_progress(1.0)

    async def _read_requests(self, workspace: Workspace, selection: Selection, without: str) -> LogReport:
        report, tenants = LogReport(), set(selection.tenants)
        is_asked_for = selection.is_asked_for
        async for batch in self._log_since(selection.since):
            found: list[LoggedRequest] = []
            for message in batch:
                try:
                    if tenants and key_of(message).tenant not in tenants:
                        continue
                    request = read_logged(message)
                except UnreadableRequest as error:
                    if not message.routing_key.startswith(REPLAY_KEY_PREFIX):
                        report.unreadable[str(error)] += 1
                    continue
                report.requests += 1
                report.oldest = report.oldest or request.time
                if is_asked_for(request) and not request.request_id.startswith(without):
                    found.append(request)
            workspace.add_requests(found)
        return report

    async def log_since(self, since: datetime) -> AsyncGenerator[StreamMessage, None]:
        """Yield the messages of the log that RabbitMQ received since a moment."""
        async for batch in self._log_since(since):
            for message in batch:
                yield message

    async def _log_since(self, since: datetime) -> AsyncGenerator[list[StreamMessage], None]:
        try:
            pages = StreamPages(self._shared, REQUEST_LOG_STREAM)
            last = await pages.last()
            if last is None:
                return
            offset = await _offset_at(pages, since, last)
            scan = self._scan(REQUEST_LOG_STREAM, offset, last.offset)
            async for batch in scan.batches():
                yield batch
                self._show(batch, offset, last.offset, 0.0, 0.5)
        except AccessRefused as error:
            raise AccessRefused(NO_RIGHT.format(error)) from error
        except TopologyMismatch as error:
            await self._shared.wait()
            raise TopologyMismatch(f"There is no log of requests to replay. {error}") from error

    async def _read_events(
        self,
        workspace: Workspace,
        tenant: str,
        since: datetime,
        until: datetime,
        report: LogReport,
        part: tuple[int, int],
    ) -> None:
        stream, pages = await self._events_of(tenant)
        last = await pages.last()
        workspace.beginnings[tenant] = None
        if last is None:
            return
        oldest = await pages.first()
        workspace.beginnings[tenant] = oldest.event.time.timestamp() if oldest else None
        offset = await _offset_at(pages, since, last)
        begin, share = 0.5 + 0.5 * part[0] / part[1], 0.5 / part[1]
        async for batch in self._scan(stream, offset, last.offset).batches():
            report.events_unreadable += workspace.add_events(tenant, batch, until)
            self._show(batch, offset, last.offset, begin, share)

    async def _events_of(self, tenant: str) -> tuple[str, StreamPages]:
        """Return the tenant's index, or its stream if there is no index. Raises TopologyMismatch if there is neither."""
        index = StreamPages(self._shared, tenant_index(tenant))
        try:
            await index.last()
        except TopologyMismatch:
            return tenant_stream(tenant), StreamPages(self._shared, tenant_stream(tenant))
        return tenant_index(tenant), index

    def _scan(self, stream: str, offset: int, last: int) -> StreamScan:
        return StreamScan(
            self._connection, stream, offset, last=last, reconnect_seconds=self._reconnect_seconds
        )

    def _show(self, batch: list[StreamMessage], first: int, last: int, begin: float, share: float) -> None:
        if batch:
            self.on_progress(begin + share * (batch[-1].offset + 1 - first) / (last + 1 - first))

    async def tail(self, tenant: str, since: datetime) -> AsyncGenerator[list[StreamMessage], None]:
        """Yield the events of a tenant since a moment, and those to come, until cancelled."""
        stream, pages = await self._events_of(tenant)
        last = await pages.last()
        offset = 0 if last is None else await _offset_at(pages, since, last)
        scan = StreamScan(self._connection, stream, offset, reconnect_seconds=None)
        async for batch in scan.batches():
            yield [message for message in batch if _is_since(message, since - CLOCK_SLACK)]


async def _offset_at(pages: StreamPages, since: datetime, last: Last) -> int:
    """Return the offset from which to read what came since a moment."""
    return await pages.offset_at(since - CLOCK_SLACK, last) if since > BEGINNING + CLOCK_SLACK else 0


def _is_since(message: StreamMessage, moment: datetime) -> bool:
    time = event_time(message.headers)
    return time is not None and time >= moment


@asynccontextmanager
async def replay_reader(
    amqp: AmqpSettings, *, wait_seconds: float, reconnect_seconds: float | None = None
) -> AsyncIterator[ReplayReader]:
    """Open a reader. Raises AccessRefused, or BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`."""
    connection = ManagedChannel("replay", amqp)
    async with connected(connection, wait_seconds):
        yield ReplayReader(connection, reconnect_seconds=reconnect_seconds)
