"""The past events of a tenant, read from its stream page by page, so that a slow reader holds up no other."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.stream import Last, Offset, Page, report_missing_index
from rabbit2docker.client.build_index import (
    BuildEntries,
    BuildIndex,
    IndexLookup,
    IndexWindow,
    Located,
    is_beginning,
)
from rabbit2docker.client.resequencer import Resequencer
from rabbit2docker.client.stream_pages import ReadingConnection, StreamPages
from rabbit2docker.errors import AccessRefused, TopologyMismatch
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted
from rabbit2docker_schemas.ids import BuildId, build_id_of
from rabbit2docker_schemas.routing import tenant_index, tenant_phases, tenant_stream

CLOCK_SLACK: Final = timedelta(seconds=10)
"""Difference allowed between the clocks of machines; a stream seeks by time only roughly anyway."""
MAX_BUILD_AGE: Final = timedelta(hours=25)
"""A build began at most this long before its end: no build may run longer than a day."""
LATEST_WINDOWS: Final = (1_000, 8_000)
"""Numbers of newest events of a tenant among which those of a running build are looked for."""
PHASES_WINDOWS: Final = (1_000, 8_000, 64_000)
"""The same for its phases, of which a build has a few."""
INDEX_LAG: Final = timedelta(minutes=1)
"""An event is in the stream at most this long before it is in the index."""


class History:
    """The past events of a tenant, over one connection that is restored indefinitely.

    Methods raise TopologyMismatch when the tenant has no stream, and AccessRefused when RabbitMQ denies access.
    """

    def __init__(
        self,
        amqp: AmqpSettings,
        tenant: str,
        *,
        wait_seconds: float | None = None,
        reconnect_seconds: float | None = None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Take the connection's settings; raises ConfigurationError for an invalid URL.

        `wait_seconds` limits the first connection. `reconnect_seconds` limits each further one, after which methods
        raise BrokerUnavailable. `on_progress` is called with the share of a stream that has been read, from 0 to 1.
        """
        self._connection = ManagedChannel("history", amqp)
        shared = ReadingConnection(self._connection, reconnect_seconds, on_progress)
        self._stream = StreamPages(shared, tenant_stream(tenant))
        self._index_pages = StreamPages(shared, tenant_index(tenant))
        self._index = BuildIndex(self._index_pages)
        self._phases = StreamPages(shared, tenant_phases(tenant))
        self._lacks_index = self._is_wholly_indexed = False
        self._tenant = tenant
        self._wait_seconds = wait_seconds
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect. Raises AccessRefused; BrokerUnavailable when RabbitMQ does not answer within `wait_seconds`."""
        await self._closing.enter_async_context(connected(self._connection, self._wait_seconds))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._closing.aclose()

    async def pages(
        self,
        *,
        offset: Offset,
        only: Sequence[str] = (),
        small: bool = False,
        located: Located | None = None,
    ) -> AsyncGenerator[Page, None]:
        """Yield the present content of the stream from `offset` on.

        `only`: filter values; most events of other builds are left out. `small`: pages for slow and numerous readers.
        `located`: reading ends with the last event of that build if it has ended.
        """
        here = located or Located(offset)
        found = self._stream.pages(
            offset=offset,
            only=[*only, *here.fillers] if only else (),
            small=small,
            prefetch=here.prefetch,
            end=here.end.id if here.end else None,
            last=here.last,
        )
        async with aclosing(found) as pages:
            async for page in pages:
                yield page

    async def look_up(self, keys: Sequence[str]) -> IndexLookup:
        """Return what the index has of the build with these filter values."""
        last_entry = await self._last_of_index()
        return IndexLookup(await self._index.search(keys, last_entry) if last_entry else None, last_entry)

    async def locate(self, keys: Sequence[str], known: IndexLookup | None = None) -> Located:
        """Return from where on the events with these filter values can be read; `known`: what the index has of them."""
        if known is not None:
            return await self._locate(keys, known, await self._stream.last())
        found, last = await asyncio.gather(self.look_up(keys), self._stream.last())
        return await self._locate(keys, found, last)

    async def _locate(self, keys: Sequence[str], known: IndexLookup, last: Last | None) -> Located:
        entries, last_entry = known.entries, known.last_entry
        if last_entry is None:
            return Located("first", is_empty=last is None)
        if entries is None:
            return Located(datetime.now(UTC) - INDEX_LAG if await self._is_indexed(last) else "first")
        begin = entries.begin
        if last is None:
            return Located("first", entries, is_empty=True)
        if not is_beginning(begin):
            return Located(begin.time - MAX_BUILD_AGE, entries)
        fillers, offset = await asyncio.gather(
            self._index.fillers(entries, last_entry),
            self._stream.offset_at(begin.time - CLOCK_SLACK, last, before=begin.time),
        )
        if entries.is_repetition:
            offset = await self._offset_of(begin, offset, last, only=[*keys, *fillers])
        end = entries.end
        is_past = end is not None and last.time is not None and last.time > end.time + INDEX_LAG
        return Located(offset, entries, fillers, last=last if is_past else None)

    async def _offset_of(self, event: Event, offset: int, last: Last, *, only: Sequence[str]) -> int:
        """Return the offset of an event that comes after an offset; that offset if it is not there."""
        pages = self._stream.pages(offset=offset, only=only, last=last, end=event.id)
        async with aclosing(pages) as found:
            async for page in found:
                if page.stored and page.stored[-1].event.id == event.id:
                    return page.stored[-1].offset
        return offset

    async def _last_of_index(self) -> Last | None:
        """Return the last entry of the index; None if it is empty or there is none."""
        if self._lacks_index:
            return None
        try:
            return await self._index_pages.last()
        except (TopologyMismatch, AccessRefused) as error:
            self._lacks_index = True
            report_missing_index(error)
            return None

    async def _is_indexed(self, last: Last | None, since: datetime | None = None) -> bool:
        """Return whether the index, which must not be empty, has everything since a moment that the stream has.

        The index may have been declared later than the stream, whose last message is `last`.
        """
        if self._is_wholly_indexed or last is None:
            return True
        first = await self._stream.first()
        if first is None or (since is not None and since > first.event.time):
            return since is not None and await self._index.reaches_back_to(since + INDEX_LAG)
        self._is_wholly_indexed = await self._index.reaches_back_to(first.event.time + INDEX_LAG)
        return self._is_wholly_indexed

    async def so_far(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield the events so far of a build, or of a request and its build, by the id of either."""
        async with aclosing(self._follow_joined(id_, self._events_of)) as events:
            async for event in events:
                yield event

    async def state_of(self, id_: str) -> AsyncGenerator[Event, None]:
        """Yield the events of `so_far` that make up the state, at the same cost however long the build has run.

        Of what has not ended these are its latest phases and newest events, some of which may come twice.
        """
        async with aclosing(self._follow_joined(id_, self._state_events_of)) as events:
            async for event in events:
                yield event

    async def _follow_joined(
        self, id_: str, events_of: Callable[[list[str]], AsyncGenerator[Event, None]]
    ) -> AsyncGenerator[Event, None]:
        own = build_id_of(self._tenant, id_)
        joined: str | None = None
        async with aclosing(events_of([id_, own])) as events:
            async for event in events:
                joined = _joined_build(event, id_, own) or joined
                yield event
        if joined is not None:
            async with aclosing(events_of([joined])) as events:
                async for event in events:
                    yield event

    async def _state_events_of(self, keys: list[str]) -> AsyncGenerator[Event, None]:
        known, last = await asyncio.gather(self.look_up(keys), self._stream.last())
        if (entries := known.entries) is None:
            events = self._read(await self._locate(keys, known, last), keys)
        else:
            for event in entries.events:
                yield event
            if entries.end is not None:
                return
            events = self._present(entries)
        async with aclosing(events) as found:
            async for event in found:
                yield event

    async def _present(self, entries: BuildEntries) -> AsyncGenerator[Event, None]:
        """Yield the latest phases of a build, then what it has among the newest events of the tenant."""
        build_id = entries.begin.stream_filter
        found = [event async for event in self.phases_of([build_id])]
        found += await self._newest(self._stream, [build_id], LATEST_WINDOWS)
        for event in found:
            # The events of an earlier generation are as near.
            if not entries.is_repetition or event.time >= entries.begin.time:
                yield event

    async def phases_of(self, build_ids: Sequence[str]) -> AsyncGenerator[Event, None]:
        """Yield the latest phases and waits of running builds, repetitions included."""
        try:
            found = await self._newest(self._phases, build_ids, PHASES_WINDOWS)
        except (TopologyMismatch, AccessRefused):
            return  # declared by an earlier version
        for event in found:
            yield event

    async def _newest(self, pages: StreamPages, keys: Sequence[str], windows: Sequence[int]) -> list[Event]:
        """Return events with each of these filter values, as far as there are some among the newest of a stream."""
        found: list[Event] = []
        last = await pages.last()
        if last is None:
            return found
        for size in windows:
            start = max(0, last.offset + 1 - size)
            async with aclosing(pages.pages(offset=start, only=keys, last=last)) as window:
                found = [e async for page in window for e in page.events if e.stream_filter in keys]
            if start == 0 or {event.stream_filter for event in found}.issuperset(keys):
                break
        return found

    async def _events_of(self, keys: list[str]) -> AsyncGenerator[Event, None]:
        async with aclosing(self._read(await self.locate(keys), keys)) as events:
            async for event in events:
                yield event

    async def _read(self, located: Located, keys: list[str]) -> AsyncGenerator[Event, None]:
        """Yield events in order, up to the last one that the index has or to the end of the stream."""
        order = Resequencer()
        is_empty = True
        if not located.is_empty:
            async with aclosing(self._raw(located, keys)) as events:
                async for event in events:
                    is_empty = False
                    for new in order.push(event):
                        yield new
        for new in order.flush():
            yield new
        if is_empty and located.entries is not None:  # the stream does not reach back as far as the index
            for event in located.entries.events:
                yield event

    async def _raw(self, located: Located, keys: list[str]) -> AsyncGenerator[Event, None]:
        async with aclosing(self.pages(offset=located.offset, only=keys, located=located)) as found:
            async for page in found:
                for event in page.events:
                    if event.stream_filter in keys:
                        yield event

    async def since(self, moment: datetime) -> AsyncGenerator[Event, None]:
        """Yield all events of the tenant from `moment` until now, repetitions included."""
        async with aclosing(self.pages(offset=moment)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.time >= moment - CLOCK_SLACK:
                        yield event

    async def windows(self, moment: datetime, *, newest: int) -> AsyncGenerator[IndexWindow, None]:
        """Yield the `newest` entries of the index, then more of them at a time until all since `moment`.

        If the index does not reach back that far, all events of the tenant since `moment` are one window.
        """
        last_entry, last = await asyncio.gather(self._last_of_index(), self._stream.last())
        if last_entry is None and last is None:
            return
        if last_entry is None or not await self._is_indexed(last, moment):
            yield IndexWindow(self.since(moment), is_whole=True)
            return
        async with aclosing(self._index.windows(moment - CLOCK_SLACK, last_entry, newest=newest)) as windows:
            async for window in windows:
                yield window


def _joined_build(event: Event, request_id: str, own: BuildId) -> str | None:
    """Return the id of the build that the request has joined, if the event says so."""
    data = event.data
    if isinstance(data, Accepted) and data.request_id == request_id and data.build_id != own:
        return data.build_id
    return None
