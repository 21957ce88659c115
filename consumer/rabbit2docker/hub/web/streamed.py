"""The progress that streams of this instance have reported, so that no answer from the store, which is later, lags it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cachetools import TTLCache

from rabbit2docker.hub.store.models import Build, BuildState
from rabbit2docker.hub.web.submissions import Builds
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Gap, Log, Rejected
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority

WAIT_SECONDS: Final = 10.0
"""Limit for the store to catch up. A store that is so far behind is reported as unhealthy, and its answers are late."""
LOOK_SECONDS: Final = 0.05
REMEMBERED_BUILDS: Final = 10_000
REMEMBERED_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Extent:
    """The progress of a build according to its streams."""

    lines: dict[int, int] = field(default_factory=dict)
    """Number of the next line of each attempt."""
    has_begun: bool = False
    has_ended: bool = False

    def add(self, event: Event) -> None:
        match event.data:
            case Log() as log:
                self._add_lines(log.attempt, log.n + len(log.lines))
            case Gap() as gap:
                self._add_lines(gap.attempt, gap.last + 1)
            case Accepted():
                self.has_begun = True
            case Rejected() as rejected:
                self.has_ended |= rejected.is_end
            case _:
                self.has_ended |= event.is_terminal

    def _add_lines(self, attempt: int, end: int) -> None:
        self.lines[attempt] = max(end, self.lines.get(attempt, 0))

    def is_ahead_of(self, build: Build) -> bool:
        is_queued = build.state is BuildState.QUEUED
        return not build.state.is_end and (self.has_ended or (self.has_begun and is_queued))

    def has_more_lines_than(self, build: Build) -> bool:
        stored = {extent.attempt: extent.lines for extent in build.logs}
        return any(end > stored.get(attempt, 0) for attempt, end in self.lines.items())


class Streamed:
    """Remembers for a minute what streams have said of each build."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._extents: TTLCache[str, _Extent] = TTLCache(REMEMBERED_BUILDS, REMEMBERED_SECONDS)
        self._last: Event | None = None

    def note(self, event: Event) -> None:
        """Remember that a stream is about to say this."""
        if event is self._last:  # many viewers of one build get the same event one after the other
            return
        self._last = event
        key = event.stream_filter if isinstance(event.data, Rejected) else event.subject
        extent = self._extents.get(key) or _Extent()
        extent.add(event)
        self._extents[key] = extent

    async def caught_up(
        self, build: Build, read: Callable[[], Awaitable[Build | None]], *, lines: bool = False
    ) -> Build:
        """Return the build, read again until the store has the acceptance and the end that streams have said, and the `lines`.

        After ten seconds the build is returned as it is.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + WAIT_SECONDS
        while self._is_ahead_of(build, lines=lines) and loop.time() < give_up:
            await asyncio.sleep(LOOK_SECONDS)
            build = await read() or build
        return build

    def _is_ahead_of(self, build: Build, *, lines: bool) -> bool:
        extent = self._extents.get(build.id)
        if extent is None:
            return False
        return extent.is_ahead_of(build) or (lines and extent.has_more_lines_than(build))


class StreamedBuilds:
    """Builds whose events are noted as they are streamed."""

    def __init__(self, builds: Builds, streamed: Streamed) -> None:
        """Note events of these builds there."""
        self._builds = builds
        self._streamed = streamed

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Publish a request for a build. Raises BrokerUnavailable."""
        return await self._builds.submit(request, priority)

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """Cancel a build, or withdraw a request. Raises BrokerUnavailable."""
        await self._builds.cancel(id_, by=by, spare_joined=spare_joined)

    def of_request(self, request_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a request and its build."""
        return self._noted(self._builds.of_request(request_id, since=since))

    def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a build."""
        return self._noted(self._builds.of_build(build_id, since=since))

    async def _noted(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        async with aclosing(events) as found:
            async for event in found:
                self._streamed.note(event)
                yield event
