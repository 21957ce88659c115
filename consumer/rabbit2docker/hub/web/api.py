"""The JSON API: request, look up, follow, cancel and rebuild."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rabbit2docker.hub.store.models import Build, BuildQuery, BuildState
from rabbit2docker.hub.web.api_stream import RETRY, ApiCursor, ApiRendering
from rabbit2docker.hub.web.base import JsonHandler
from rabbit2docker.hub.web.build_form import check_provider, read_create_request, rebuild_request
from rabbit2docker.hub.web.errors import HttpError
from rabbit2docker.hub.web.log_response import LogWriter
from rabbit2docker.hub.web.resume import new_request_id
from rabbit2docker.hub.web.shared_streams import SharedStreamHandler
from rabbit2docker_schemas.events import BuildOptions
from rabbit2docker_schemas.ids import REQUEST_ID_PATTERN, build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.validation_messages import describe

UNNAMED: Final = "an anonymous user"
"""The canceller's name without authentication."""
CHUNK_BYTES: Final = 64 * 1024
"""The part of a log that is in memory at once."""
CLOCK_SKEW: Final = timedelta(minutes=5)
"""The most that the clock of this program or of a requester may be ahead of RabbitMQ's."""
_ID = re.compile(REQUEST_ID_PATTERN)
_Q = TypeVar("_Q", bound=BaseModel)


class Query(BaseModel):
    """Parameters of a URL; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class ListQuery(Query):
    """Parameters of a list of builds."""

    state: list[BuildState] = []
    """Only builds in this state; may be given several times."""
    requester: Annotated[str, Field(max_length=256)] | None = None
    """Only builds that this user requested."""
    q: Annotated[str, Field(max_length=256)] = ""
    """Only builds whose spec, repository URL or image name contains this text."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    """Builds per page."""
    before: Annotated[str, Field(max_length=256)] | None = None
    """`next` of the previous page."""


class RebuildQuery(Query):
    """Parameters of a rebuild."""

    after: BuildState | None = None
    """State of the build that the client has seen in the events: the store may not have it yet."""


class LogQuery(Query):
    """Parameters of a log."""

    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Default: the latest attempt."""
    first: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Number of the first line; each attempt counts from 0."""
    last: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Number of the last line. Default: the end."""
    format: Annotated[str, Field(pattern="^(text|json)$")] = "text"
    """text: the lines as they were written; json: with number, phase and time."""
    download: Annotated[str, Field(pattern="^(0|1)$")] = "0"
    """1: let browsers save the log to a file."""


class ApiHandler(JsonHandler):
    """The base of the API's handlers."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode leniently: no build has an id that is not valid UTF-8, so the answer is 404."""
        return value.decode(errors="replace")

    async def find_build(self, id_: str) -> Build:
        """Return a build by its id or that of a request. Raises HttpError, also for builds that the user may not see."""
        build = await self.context.records.build(id_) if _ID.fullmatch(id_) else None
        if build is None or not self.user.can_view(build):
            raise HttpError("There is no such build.", 404)
        return build

    async def find_current_build(self, id_: str, *, lines: bool = False) -> Build:
        """Return a build as find_build does, once the store has the end, and the `lines`, that streams have said."""
        build = await self.find_build(id_)
        read = partial(self.context.records.build, build.id)
        return await self.context.streamed.caught_up(build, read, lines=lines)

    def parse_query(self, query: type[_Q]) -> _Q:
        """Parse the URL's parameters. Raises HttpError that lists everything that is wrong."""
        given: dict[str, Any] = {}
        for name, field in query.model_fields.items():
            if values := self.get_query_arguments(name):
                given[name] = values if field.annotation == list[BuildState] else values[-1]
        try:
            return query.model_validate(given)
        except ValidationError as error:
            raise HttpError(describe(error, query.model_fields), 400) from error

    def write_model(self, model: BaseModel, status: int = 200) -> None:
        """Finish the response with a model, without its absent fields."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(model.model_dump_json(exclude_none=True))

    async def submit(self, request: BuildRequest) -> None:
        """Request a build and answer 202 with the queued build. Raises HttpError and what submitting raises."""
        check_provider(request.provider)
        await self.check_rate(self.user.acting_for(request.requester))
        at = datetime.now(UTC)
        request_id = request.request_id or new_request_id(request.provider, request.spec)
        named = request.model_copy(update={"request_id": request_id})
        await self.context.submissions.submit(named, at=at)
        build = queued_build(named, tenant=self.context.settings.tenant, at=at)
        self.set_header("Location", f"{self.settings['base_url']}api/builds/{build.id}")
        self.write_model(build, 202)


def queued_build(request: BuildRequest, *, tenant: str, at: datetime) -> Build:
    """Return the build that a new request stands for until it is answered."""
    options = request.options()
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
    """The collection of builds."""

    async def get(self) -> None:
        """List the builds that the user may see, newest first."""
        wanted = self.parse_query(ListQuery)
        query = BuildQuery(
            visible_to=None if self.user.admin or self.user.acts_for_people else self.user.name,
            state=tuple(wanted.state),
            requester=wanted.requester,
            text=wanted.q,
            limit=wanted.limit,
            before=wanted.before,
        )
        try:
            self.write_model(await self.context.records.builds(query))
        except ValueError as error:
            raise HttpError("`before` must be the `next` of a page.", 400) from error

    async def post(self) -> None:
        """Request a build."""
        hosts = self.context.settings.providers.hosts
        tenant = self.context.settings.tenant
        await self.submit(read_create_request(self.request.body, user=self.user, hosts=hosts, tenant=tenant))


class SingleBuildHandler(ApiHandler):
    """One build."""

    async def get(self, id_: str) -> None:
        """Answer with the build."""
        self.write_model(await self.find_current_build(id_))

    async def delete(self, id_: str) -> None:
        """Cancel the build, unless others requested it as well."""
        build = await self.find_current_build(id_)
        self._check_cancellable(build)
        # A queued request can only be withdrawn by its own id. Until RabbitMQ delivers this, it may have joined a build
        # that others requested; only an admin cancels that one.
        id_ = build.request_id if build.state is BuildState.QUEUED else build.id
        self.context.submissions.stop_sharing(build.request_id)
        await self.context.builds.cancel(id_, by=self.user.name or UNNAMED, spare_joined=not self.user.admin)
        self.write_model(build, 202)

    def _check_cancellable(self, build: Build) -> None:
        """Raise HttpError if the build has ended or is not this user's alone."""
        if build.state.is_end:
            raise HttpError(f"This build cannot be cancelled: it is already {build.state}.", 409)
        if not self.user.can_cancel(build):
            others = ", ".join(sorted(set(build.requesters) - {self.user.name})) or "other users"
            raise HttpError(
                f"This build was also requested by {others}, so only an administrator can cancel it.", 409
            )


class RebuildHandler(ApiHandler):
    """The repetition of one build."""

    async def post(self, id_: str) -> None:
        """Request the same build again; if it completed, even though its image exists."""
        build = await self.find_build(id_)
        if self.request.body.strip() not in (b"", b"{}"):
            raise HttpError("A rebuild repeats the options of the build. Send no body.", 400)
        state = self.parse_query(RebuildQuery).after or build.state
        await self.submit(rebuild_request(build, state, requester=self.user.name))


class LogHandler(ApiHandler):
    """The log of one build, as far as it is stored."""

    async def get(self, id_: str) -> None:
        """Answer with the lines, as text or as JSON."""
        build, query = await self.find_current_build(id_, lines=True), self.parse_query(LogQuery)
        if query.last is not None and query.last < query.first:
            raise HttpError("`last` must not be less than `first`.", 400)
        extents = {extent.attempt: extent for extent in build.logs}
        attempt = query.attempt or max(extents, default=None)
        if query.attempt is not None and query.attempt not in extents:
            raise HttpError(f"Attempt {query.attempt} has no log.", 404)
        self._set_headers(build, query)
        writer = LogWriter(build.id, attempt, extents.get(attempt or 0), query.first, query.last)
        lines = self.context.records.lines(build.id, attempt=attempt, first=query.first, last=query.last)
        pieces = writer.text(lines) if query.format == "text" else writer.json(lines)
        async with aclosing(lines), aclosing(pieces):
            await self._send_all(pieces)

    def _set_headers(self, build: Build, query: LogQuery) -> None:
        if query.download == "1":
            suffix = {"text": "log", "json": "json"}[query.format]
            self.set_header("Content-Disposition", f'attachment; filename="build-{build.id}.{suffix}"')
        is_text = query.format == "text"
        self.set_header("Content-Type", "text/plain; charset=utf-8" if is_text else "application/json")

    async def _send_all(self, pieces: AsyncGenerator[str, None]) -> None:
        pending: list[str] = []
        size = 0
        async for piece in pieces:
            pending.append(piece)
            size += len(piece)
            if size > CHUNK_BYTES:
                if not await self.send("".join(pending).encode(errors="replace")):
                    return
                pending, size = [], 0
        await self.finish("".join(pending).encode(errors="replace"))


class EventsHandler(SharedStreamHandler, ApiHandler):
    """The events of one build."""

    async def get(self, id_: str) -> None:
        """Stream the events, from the reader's position to the end."""
        build = await self.find_build(id_)
        cursor = ApiCursor.parse(self.request.headers.get("Last-Event-ID"))
        if cursor.ended:
            self.set_status(204)
            return
        self.take_slot(self.user)
        await self.stream(self._send(build, cursor))

    async def _send(self, build: Build, cursor: ApiCursor) -> str:
        """Send the events of an ended build from the store, and those of another one from RabbitMQ."""
        if not await self.send(RETRY):
            return "stalled"
        if build.state.is_end:
            stored = ApiRendering(partial(self.context.records.events, build.id), cursor)
            sent = await self.send_all(stored.chunks(self.context.settings.hub.keepalive_seconds))
            return stored.result or sent
        is_queued = build.state is BuildState.QUEUED
        of, id_ = (
            (self.context.builds.of_request, build.request_id)
            if is_queued
            else (self.context.builds.of_build, build.id)
        )
        events = partial(of, id_, since=build.requested_at - CLOCK_SKEW)
        return await self.send_build(("api", is_queued, id_), partial(ApiRendering, events), cursor)


API_ROUTES: Final[list[tuple[str, type[JsonHandler]]]] = [
    (r"api/builds", BuildsHandler),
    (r"api/builds/([^/]+)", SingleBuildHandler),
    (r"api/builds/([^/]+)/log", LogHandler),
    (r"api/builds/([^/]+)/events", EventsHandler),
    (r"api/builds/([^/]+)/rebuild", RebuildHandler),
]
