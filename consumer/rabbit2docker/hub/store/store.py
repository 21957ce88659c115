"""The store: requests, events and logs of a tenant's builds, in SQLite or PostgreSQL."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog
from pydantic import SecretStr
from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, insert, or_, select, update

from rabbit2docker.errors import StoreFull, StoreUnavailable
from rabbit2docker.hub.store.batches import Batches
from rabbit2docker.hub.store.binderhub_metrics import BinderHubMetrics
from rabbit2docker.hub.store.commit_statuses import CommitStatuses
from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.event_replay import replay
from rabbit2docker.hub.store.log_storage import kept_lines
from rabbit2docker.hub.store.models import (
    Allowance,
    Build,
    BuildPage,
    BuildQuery,
    BuildState,
    CommitStatus,
    LogExtent,
    StoredLine,
)
from rabbit2docker.hub.store.projection import BuildRow, as_build
from rabbit2docker.hub.store.prune import PrunePlan, Pruner
from rabbit2docker.hub.store.sqlite_thread import Statements, Work
from rabbit2docker.hub.store.tables import (
    BUILDS,
    EVENTS,
    LOGS,
    POSITIONS,
    RATE_LIMIT_HITS,
    REQUESTERS,
    REQUESTS,
    micros,
    moment_of,
)
from rabbit2docker.hub.store.writer import EventWriter
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.requests import BuildRequest

log = structlog.get_logger()
T = TypeVar("T")

DEFAULT_LOG_BYTES: Final = 4 * 1024 * 1024
PUT_BATCH: Final = 500


def _known(tenant: Any) -> ColumnElement[bool]:
    """Return the condition for the builds of a tenant of which more is known than some event."""
    return and_(BUILDS.c.tenant == tenant, BUILDS.c.requested_at.is_not(None))


# Made once: SQLAlchemy takes longer to compose a statement than SQLite to execute it.
_KNOWN_BUILDS: Final = select(BUILDS).where(_known(bindparam("_tenant")))
_BUILD: Final = _KNOWN_BUILDS.where(BUILDS.c.id == bindparam("_id"))
_BUILD_OF_REQUEST: Final = _KNOWN_BUILDS.where(
    BUILDS.c.id.in_(
        select(func.coalesce(REQUESTS.c.build_id, REQUESTS.c.own_id)).where(
            REQUESTS.c.tenant == bindparam("_tenant"),
            or_(REQUESTS.c.id == bindparam("_id"), REQUESTS.c.own_id == bindparam("_id")),
        )
    )
)
_NAMES: Final = select(REQUESTERS.c.build_id, REQUESTERS.c.name).where(
    REQUESTERS.c.build_id.in_(bindparam("_builds", expanding=True))
)
_EXTENTS: Final = select(LOGS).where(LOGS.c.build_id == bindparam("_build")).order_by(LOGS.c.attempt)
_POSITION: Final = select(POSITIONS.c.moment).where(POSITIONS.c.tenant == bindparam("_tenant"))
_MOVE_POSITION: Final = (
    update(POSITIONS)
    .where(POSITIONS.c.tenant == bindparam("_tenant"), POSITIONS.c.moment < bindparam("_moment"))
    .values(moment=bindparam("_moment"))
)


class Store:
    """The builds of one tenant, in a database that several programs may share. An asynchronous context manager.

    All methods raise StoreUnavailable while the database is away; they work again when it is back.
    """

    def __init__(self, url: SecretStr | str, tenant: str, *, log_bytes: int = DEFAULT_LOG_BYTES) -> None:
        """Take the database's URL, and how many bytes to keep of an attempt's log. Raises ConfigurationError."""
        self._database = Database(url)
        self._tenant = tenant
        self._log_bytes = log_bytes
        self._pruner = Pruner(self._database, tenant)
        self.batches = Batches(self._database, tenant)
        """The requests that were made together."""
        self.commit_statuses = CommitStatuses(self._database, tenant)
        self.metrics = BinderHubMetrics()
        """Counts the builds whose end this program writes."""

    async def __aenter__(self) -> Self:
        """Create or migrate the tables; if the database is away, with the first transaction after it is back."""
        try:
            await self._database.prepare()
        except StoreUnavailable as error:
            log.warning("store unavailable", reason=str(error))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._database.close()

    @property
    def address(self) -> str:
        """Address of the database without user and password, as text for people."""
        return self._database.address

    async def check(self) -> None:
        """Query the database. Raises StoreUnavailable unless it answers, StoreFull if the last write found its disk full."""
        async with self._database.reading() as connection:
            await connection.execute(select(1))
        if self._database.is_full:
            # Reading works nevertheless. Events that could not be stored are tried again, which shows whether there is space.
            raise StoreFull(f"The disk of the database {self.address} is full.")

    def _writer(self, connection: Statements) -> EventWriter:
        return EventWriter(connection, self._tenant, log_bytes=self._log_bytes)

    async def record_request(self, request: BuildRequest, *, at: datetime) -> None:
        """Store a request that is about to be published, under its request_id and requester. Safe to repeat."""
        await self._write_builds(lambda connection: self._writer(connection).record_request(request, at))

    async def record_share(self, request_id: str, requester: str) -> None:
        """Store a further requester of a request. Safe to repeat."""
        await self._write_builds(
            lambda connection: self._writer(connection).record_share(request_id, requester)
        )

    async def _write_builds(self, work: Work[T]) -> T:
        return await self._database.write("builds", self._tenant, work=work)

    async def add_commit_status(self, status: CommitStatus, *, at: datetime) -> None:
        """Store a commit status that is to be written. Safe to repeat."""
        await self.commit_statuses.add(status, at=at)

    async def put(self, events: Sequence[Event], *, position: datetime | None = None) -> None:
        """Store events in one transaction; repeats change nothing.

        `position`: all of the tenant's events before this moment are stored then.
        Raises StoreRefused when the database will never accept one of them.
        """
        self.metrics.ended(await self._write_builds(partial(self._put, events, position)))

    async def _put(
        self, events: Sequence[Event], position: datetime | None, connection: Statements
    ) -> list[BuildRow]:
        ended: list[BuildRow] = []
        for start in range(0, len(events), PUT_BATCH):
            ended += await self._writer(connection).put(events[start : start + PUT_BATCH])
        if position is not None:
            await self._set_position(connection, position)
        return ended

    async def _set_position(self, connection: Statements, position: datetime) -> None:
        values = {"_tenant": self._tenant, "_moment": position}
        if (await connection.execute(_MOVE_POSITION, values)).rowcount:
            return
        if (await connection.execute(_POSITION, {"_tenant": self._tenant})).first() is None:
            await connection.execute(insert(POSITIONS), {"tenant": self._tenant, "moment": position})

    async def position(self) -> datetime | None:
        """Return the moment before which all of the tenant's events are stored; None for an empty store."""
        async with self._database.reading() as connection:
            found = await connection.execute(_POSITION, {"_tenant": self._tenant})
            return found.scalar_one_or_none()

    async def running_count(self) -> int:
        """Return how many builds have begun and not ended."""
        states = [state.value for state in BuildState if not state.is_end and state is not BuildState.QUEUED]
        wanted = (
            select(func.count())
            .select_from(BUILDS)
            .where(_known(self._tenant), BUILDS.c.state.in_(states), BUILDS.c.cached.is_(False))
        )

        async def count(connection: Statements) -> int:
            return int((await connection.execute(wanted)).scalar_one())

        return await self._database.read(count)

    async def build(self, id_: str) -> Build | None:
        """Return a build by its id, the id of a request that led to it, or the id that the request's own build would have."""
        return await self._database.read(partial(self._find, id_))

    async def _find(self, id_: str, connection: Statements) -> Build | None:
        values = {"_tenant": self._tenant, "_id": id_}
        for statement in (_BUILD, _BUILD_OF_REQUEST):
            found = (await connection.execute(statement, values)).mappings().first()
            if found is not None:
                break
        else:
            return None
        row = BuildRow(**found)
        names = await self._names(connection, [row.id])
        return as_build(row, names.get(row.id, []), await self._extents(connection, row.id))

    async def _names(self, connection: Statements, builds: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for build_id, name in await connection.execute(_NAMES, {"_builds": list(builds)}):
            found.setdefault(build_id, []).append(name)
        return found

    async def _extents(self, connection: Statements, build_id: str) -> list[LogExtent]:
        rows = (await connection.execute(_EXTENTS, {"_build": build_id})).mappings()
        return [LogExtent(**{name: row[name] for name in LogExtent.model_fields}) for row in rows]

    async def builds(self, query: BuildQuery) -> BuildPage:
        """Return builds, newest first. Raises ValueError when `before` is not from a page."""
        wanted = self._matching(query).order_by(BUILDS.c.requested_at.desc(), BUILDS.c.id.desc())
        async with self._database.reading() as connection:
            found = (await connection.execute(wanted.limit(query.limit + 1))).mappings().all()
            rows = [BuildRow(**row) for row in found[: query.limit]]
            names = await self._names(connection, [row.id for row in rows])
        builds = [as_build(row, names.get(row.id, []), []) for row in rows]
        has_more = len(found) > query.limit
        return BuildPage(
            builds=builds, next=f"{micros(builds[-1].requested_at)}.{builds[-1].id}" if has_more else None
        )

    def _matching(self, query: BuildQuery) -> Select[Any]:
        wanted = select(BUILDS).where(_known(self._tenant))
        for name in {query.visible_to, query.requester} - {None}:
            theirs = select(REQUESTERS.c.build_id).where(REQUESTERS.c.name == name)
            wanted = wanted.where(BUILDS.c.id.in_(theirs))
        if query.state:
            wanted = wanted.where(BUILDS.c.state.in_([state.value for state in query.state]))
        if query.text:
            texts = (BUILDS.c.spec, BUILDS.c.repo_url, BUILDS.c.image)
            wanted = wanted.where(or_(*(text.icontains(query.text, autoescape=True) for text in texts)))
        if query.before is not None:
            number, separator, id_ = query.before.partition(".")
            if not separator or not number.isdecimal() or len(number) > 17:
                raise ValueError("`before` is not from a page of builds")
            at = moment_of(int(number))
            earlier = and_(BUILDS.c.requested_at == at, BUILDS.c.id < id_)
            wanted = wanted.where(BUILDS.c.requested_at <= at, or_(BUILDS.c.requested_at < at, earlier))
        return wanted

    async def events(self, build_id: str) -> AsyncGenerator[Event, None]:
        """Yield the events of a build in order: accepted, progress, lines, gaps (also for cut lines), the end."""
        events = replay(self._database, self._tenant, build_id)
        async with aclosing(events):
            async for event in events:
                yield event

    async def answers_and_ends(
        self, *, since: datetime
    ) -> AsyncGenerator[list[tuple[str, datetime, Any]], None]:
        """Yield kind, time and data of all stored answers and ends since a moment, in order, many at a time."""
        wanted = (
            select(EVENTS.c.kind, EVENTS.c.time, EVENTS.c.data)
            .join(BUILDS, BUILDS.c.id == EVENTS.c.build_id)
            .where(BUILDS.c.tenant == self._tenant, EVENTS.c.kind != "progress", EVENTS.c.time >= since)
            .order_by(EVENTS.c.time)
        )
        async with self._database.reading() as connection:
            rows = await connection.stream(wanted)
            async for part in rows.partitions(PUT_BATCH):
                yield [(kind, time, data) for kind, time, data in part]

    async def lines(
        self, build_id: str, *, attempt: int | None = None, first: int = 0, last: int | None = None
    ) -> AsyncGenerator[StoredLine, None]:
        """Yield the stored lines `first` to `last`, both included, of an attempt, by default the latest."""
        async with self._database.reading() as connection:
            here = and_(BUILDS.c.tenant == self._tenant, BUILDS.c.id == build_id)
            latest = (await connection.execute(select(BUILDS.c.attempt).where(here))).scalar_one_or_none()
        if latest is None:
            return
        number = latest if attempt is None else attempt
        chunks = kept_lines(self._database, build_id, number, first=first, last=last)
        async with aclosing(chunks):
            async for chunk in chunks:
                for number, line in enumerate(chunk.lines, chunk.first):
                    yield StoredLine(n=number, **dict(line))

    async def check_rate(self, requester: str, *, limit: int, seconds: float, at: datetime) -> Allowance:
        """Count a request against a limit of `limit` in any `seconds`, and return whether it is allowed.

        A request over the limit is not counted.
        """
        period = timedelta(seconds=seconds)
        here = and_(RATE_LIMIT_HITS.c.tenant == self._tenant, RATE_LIMIT_HITS.c.requester == requester)
        async with self._database.writing("rate-limits", self._tenant, requester) as connection:
            await connection.execute(delete(RATE_LIMIT_HITS).where(here, RATE_LIMIT_HITS.c.until < at))
            wanted = (
                select(RATE_LIMIT_HITS.c.at)
                .where(here, RATE_LIMIT_HITS.c.at > at - period)
                .order_by(RATE_LIMIT_HITS.c.at)
            )
            made = list((await connection.execute(wanted)).scalars())
            if allowed := len(made) < limit:
                hit = {"tenant": self._tenant, "requester": requester, "at": at, "until": at + period}
                await connection.execute(insert(RATE_LIMIT_HITS), hit)
                made = sorted([*made, at])
        remaining = max(0, limit - len(made))
        if remaining or not made:
            reset = max([*made, at - period])
        else:
            reset = made[len(made) - limit] if limit > 0 else made[-1]
        return Allowance(allowed=allowed, limit=limit, remaining=remaining, reset_at=reset + period)

    async def delete_expired(self, *, ended_before: datetime, now: datetime) -> int:
        """Delete builds that ended before a moment or never reported an end. Return how many they were.

        `now`: rate-limit hits that no period counts any more are deleted, too.
        """
        await self._pruner.delete_rate_limit_hits(now)
        await self.commit_statuses.delete_before(ended_before)
        return len((await self._pruner.prune(ended_before=ended_before, max_log_bytes=0)).builds)

    async def limit_logs(self, max_bytes: int) -> PrunePlan:
        """Delete the logs of the builds that ended first, until all logs together take at most `max_bytes`."""
        return await self._pruner.prune(ended_before=None, max_log_bytes=max_bytes)

    async def prune(
        self, *, ended_before: datetime | None, max_log_bytes: int, dry_run: bool = False
    ) -> PrunePlan:
        """Delete builds that ended before a moment, and logs beyond `max_log_bytes`; only say which with `dry_run`."""
        work = self._pruner.plan if dry_run else self._pruner.prune
        return await work(ended_before=ended_before, max_log_bytes=max_log_bytes)

    def compact(self) -> None:
        """Give the space of what was deleted back to the disk, where the database does not do so itself. Blocks."""
        self._database.compact()
