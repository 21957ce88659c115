"""The JSON API: builds asked for, looked up, followed, ended and built again."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rabbit2docker.hub.store.models import Build, BuildQuery, BuildState, LogExtent, Record, StoredLine
from rabbit2docker.hub.web.api_stream import RETRY, ApiCursor, ApiStream, queue_frame
from rabbit2docker.hub.web.auth import HttpError
from rabbit2docker.hub.web.base import JsonHandler, Streaming
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE
from rabbit2docker.hub.web.build_form import again, read_create_request
from rabbit2docker.hub.web.repositories import check_provider
from rabbit2docker.hub.web.resume import new_request_id
from rabbit2docker.hub.web.submissions import with_keepalive
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import BuildOptions
from rabbit2docker_schemas.ids import REQUEST_ID_PATTERN, build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.validation_messages import describe

SOMEBODY: Final = "somebody"
"""Who cancels where nobody is asked who they are."""
CHUNK_BYTES: Final = 64 * 1024
"""Of a log; no more of it is in memory at once."""
CLOCKS: Final = timedelta(minutes=5)
"""By how much our clock, or that of whoever asked, may be ahead of RabbitMQ's."""
_ID = re.compile(REQUEST_ID_PATTERN)
_Q = TypeVar("_Q", bound=BaseModel)


class Query(BaseModel):
    """What stands behind the `?` of an address. What is not known is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class ListQuery(Query):
    """Which builds are wanted."""

    state: list[BuildState] = []
    """Only builds in this state; may be given several times."""
    requester: Annotated[str, Field(max_length=256)] | None = None
    """Only builds that this person asked for."""
    q: Annotated[str, Field(max_length=256)] = ""
    """Only builds in whose spec, repository address or image name this occurs."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    """Builds on a page."""
    before: Annotated[str, Field(max_length=256)] | None = None
    """`next` of the page before."""


class LogQuery(Query):
    """Which lines are wanted."""

    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Absent: the latest one."""
    first: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Number of the first line; each attempt counts from 0."""
    last: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Number of the last line; absent: to the end."""
    format: Annotated[str, Field(pattern="^(text|json)$")] = "text"
    """text: the lines as they were written; json: with number, phase and time."""
    download: Annotated[str, Field(pattern="^(0|1)$")] = "0"
    """1: browsers save it to a file."""


class LogAnswer(Record):
    """Lines of the log of one attempt."""

    build_id: str
    attempt: int | None = None
    """Absent when nothing was written yet."""
    extent: LogExtent | None = None
    """What is kept of it."""
    lines: list[StoredLine]


class ApiHandler(JsonHandler):
    """What needs builds."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Return an argument as text, and garbage as garbage: there is no build of such a name."""
        return value.decode(errors="replace")

    async def build(self, id_: str) -> Build:
        """Return a build by its id or that of a request. Raises Refusal: what is somebody else's does not exist."""
        build = await self.parts.records.build(id_) if _ID.fullmatch(id_) else None
        if build is None or not self.user.can_view(build):
            raise HttpError("There is no such build.", 404)
        return build

    def asked_for(self, query: type[_Q]) -> _Q:
        """Return what stands behind the `?`. Raises Refusal that says what is wrong."""
        given: dict[str, Any] = {}
        for name, field in query.model_fields.items():
            if values := self.get_query_arguments(name):
                given[name] = values if field.annotation == list[BuildState] else values[-1]
        try:
            return query.model_validate(given)
        except ValidationError as error:
            raise HttpError(describe(error, query.model_fields), 400) from error

    def tell(self, what: BaseModel, status: int = 200) -> None:
        """Answer with what is known; what is absent is not there."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(what.model_dump_json(exclude_none=True))

    def address_of(self, build: Build) -> str:
        """Return where a build is told about."""
        return f"{self.settings['base_url']}api/builds/{build.id}"

    async def ask(self, request: BuildRequest) -> None:
        """Ask for a build and answer with how it stands: it waits. Raises Refusal, TooMany and what asking raises."""
        check_provider(request.provider)
        await self.check_rate(self.user)
        at = datetime.now(UTC)
        request_id = new_request_id(request.provider, request.spec)
        named = request.model_copy(update={"request_id": request_id})
        await self.parts.submissions.submit(named, at=at)
        build = queued(named, tenant=self.parts.settings.tenant, at=at)
        self.set_header("Location", self.address_of(build))
        self.tell(build, 202)


def queued(request: BuildRequest, *, tenant: str, at: datetime) -> Build:
    """Return the build that a request will be, if nothing else becomes of it."""
    options = BuildOptions.model_validate(request.model_dump(include=set(BuildOptions.model_fields)))
    return Build(
        id=build_id_of(tenant, str(request.request_id)),
        state=BuildState.QUEUED,
        provider=request.provider,
        spec=request.spec,
        requester=request.requester,
        requesters=[request.requester] if request.requester else [],
        request_id=str(request.request_id),
        requested_at=at,
        options=None if options == BuildOptions() else options,
    )


class BuildsHandler(ApiHandler):
    """All builds."""

    async def get(self) -> None:
        """List those that one may see, newest first."""
        wanted = self.asked_for(ListQuery)
        query = BuildQuery(
            visible_to=None if self.user.admin else self.user.name,
            state=tuple(wanted.state),
            requester=wanted.requester,
            text=wanted.q,
            limit=wanted.limit,
            before=wanted.before,
        )
        try:
            self.tell(await self.parts.records.builds(query))
        except ValueError as error:
            raise HttpError("`before` must be the `next` of a page.", 400) from error

    async def post(self) -> None:
        """Ask for a build."""
        hostname = self.parts.settings.providers.github_hostname
        await self.ask(
            read_create_request(self.request.body, requester=self.user.name, github_hostname=hostname)
        )


class OneHandler(ApiHandler):
    """One build."""

    async def get(self, id_: str) -> None:
        """Tell where it stands."""
        self.tell(await self.build(id_))

    async def delete(self, id_: str) -> None:
        """End it, if nobody else waits for it."""
        build = await self.build(id_)
        if build.state.is_end:
            raise HttpError(f"This build has ended already: it is {build.state}.", 409)
        if not self.user.can_cancel(build):
            others = ", ".join(sorted(set(build.requesters) - {self.user.name})) or "others"
            raise HttpError(
                f"Not only you wait for this build ({others}): only an administrator may end it.", 409
            )
        # What is no build yet can only be taken back by the id of the request; and by the time this is heard of, the
        # request may have joined a build that others wait for.
        id_ = build.request_id if build.state is BuildState.QUEUED else build.id
        self.parts.submissions.forget(build.request_id)
        await self.parts.builds.cancel(id_, by=self.user.name or SOMEBODY, spare_joined=not self.user.admin)
        self.tell(build, 202)


class RebuildHandler(ApiHandler):
    """One build once more."""

    async def post(self, id_: str) -> None:
        """Ask for the same, whether its image exists or not."""
        build = await self.build(id_)
        if self.request.body.strip() not in (b"", b"{}"):
            raise HttpError("To build once more takes no wishes: send no body.", 400)
        await self.ask(again(build, requester=self.user.name))


class LogHandler(ApiHandler):
    """The log of one build, as far as it is known."""

    async def get(self, id_: str) -> None:
        """Tell it, as text or as JSON."""
        build, wanted = await self.build(id_), self.asked_for(LogQuery)
        if wanted.last is not None and wanted.last < wanted.first:
            raise HttpError("`last` must not be before `first`.", 400)
        extents = {extent.attempt: extent for extent in build.logs}
        attempt = wanted.attempt or max(extents, default=None)
        if wanted.attempt is not None and wanted.attempt not in extents:
            raise HttpError(f"Of attempt {wanted.attempt} there is no log.", 404)
        if wanted.download == "1":
            suffix = {"text": "log", "json": "json"}[wanted.format]
            self.set_header("Content-Disposition", f'attachment; filename="build-{build.id}.{suffix}"')
        told = _Lines(build.id, attempt, extents.get(attempt or 0), wanted)
        is_text = wanted.format == "text"
        self.set_header("Content-Type", "text/plain; charset=utf-8" if is_text else "application/json")
        lines = self.parts.records.lines(build.id, attempt=attempt, first=wanted.first, last=wanted.last)
        async with aclosing(lines), aclosing(told.text(lines) if is_text else told.json(lines)) as pieces:
            await self._send_all(pieces)

    async def _send_all(self, pieces: AsyncGenerator[str, None]) -> None:
        waiting: list[str] = []
        size = 0
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size > CHUNK_BYTES:
                if not await self.send("".join(waiting).encode(errors="replace")):
                    return
                waiting, size = [], 0
        await self.finish("".join(waiting).encode(errors="replace"))


class _Lines:
    """Writes the lines of a log."""

    def __init__(
        self, build_id: str, attempt: int | None, extent: LogExtent | None, wanted: LogQuery
    ) -> None:
        self._build_id = build_id
        self._attempt = attempt
        self._extent = extent
        self._wanted = wanted

    async def text(self, lines: AsyncGenerator[StoredLine, None]) -> AsyncGenerator[str, None]:
        """Yield them as they were written, and what is missing between them."""
        following = self._wanted.first
        async for line in lines:
            if line.n > following:
                yield self._missing(following, line.n - 1)
            following = line.n + 1
            yield f"{line.text}\n"
        known = (self._extent.lines if self._extent else 0) - 1
        end = known if self._wanted.last is None else min(known, self._wanted.last)
        if end >= following:
            yield self._missing(following, end)

    def _missing(self, first: int, last: int) -> str:
        lines = f"line {first} is" if first == last else f"lines {first} to {last} are"
        cut = self._extent
        is_cut = (
            cut is not None
            and cut.cut_first is not None
            and cut.cut_last is not None
            and first <= cut.cut_last
            and last >= cut.cut_first
        )
        return f"[{lines} missing: {'the log is too long to be kept whole' if is_cut else 'lost'}]\n"

    async def json(self, lines: AsyncGenerator[StoredLine, None]) -> AsyncGenerator[str, None]:
        """Yield a LogAnswer, piece by piece."""
        head = LogAnswer(build_id=self._build_id, attempt=self._attempt, extent=self._extent, lines=[])
        yield json.dumps(head.model_dump(mode="json", exclude_none=True, exclude={"lines"}))[:-1]
        yield ', "lines": ['
        separator = ""
        async for line in lines:
            yield separator + line.model_dump_json()
            separator = ", "
        yield "]}"


class EventsHandler(Streaming, ApiHandler):
    """What happens to one build."""

    _events_told: ApiStream | None = None

    async def get(self, id_: str) -> None:
        """Tell it as it happens, or as it happened, from where the reader has come to."""
        build = await self.build(id_)
        place = ApiCursor.read(self.request.headers.get("Last-Event-ID"))
        if place.ended:
            self.set_status(204)
            return
        self.check_room(more=1)
        self._events_told = ApiStream(place)
        await self.stream(self._chunks(build, self._events_told))

    def result(self) -> str:
        """Return the kind of the event that ended it."""
        return (self._events_told and self._events_told.result) or "interrupted"

    async def _chunks(self, build: Build, telling: ApiStream) -> AsyncGenerator[bytes, None]:
        yield RETRY
        keepalive = self.parts.settings.hub.keepalive_seconds
        since = build.requested_at.timestamp() if build.state is BuildState.QUEUED else None
        with self.parts.submissions.queueing.watching(build.request_id, since) as waiting:
            items = with_keepalive(self._events(build), lambda: keepalive, waiting.news)
            async with aclosing(items) as events:
                async for event in events:
                    if event is not None:
                        waiting.answered()
                        chunk = telling.tell(event)
                    else:
                        ahead = waiting.take()
                        chunk = KEEPALIVE if ahead is None else queue_frame(ahead)
                    if chunk:
                        yield chunk
                    if telling.result:
                        return

    def _events(self, build: Build) -> AsyncGenerator[Event, None]:
        """Return what happened to a build that has ended, or what happens to one that has not."""
        if build.state.is_end:
            return self.parts.records.events(build.id)
        since = build.requested_at - CLOCKS
        if build.state is BuildState.QUEUED:
            return self.parts.builds.of_request(build.request_id, since=since)
        return self.parts.builds.of_build(build.id, since=since)


API_ROUTES: Final[list[tuple[str, type[JsonHandler]]]] = [
    (r"api/builds", BuildsHandler),
    (r"api/builds/([^/]+)", OneHandler),
    (r"api/builds/([^/]+)/log", LogHandler),
    (r"api/builds/([^/]+)/events", EventsHandler),
    (r"api/builds/([^/]+)/rebuild", RebuildHandler),
]
