"""Write requests and events, in a transaction that excludes other writers of the tenant's builds."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from rabbit2docker.hub.store import projection
from rabbit2docker.hub.store.log_storage import write_logs
from rabbit2docker.hub.store.projection import NAME_CHARACTERS, BuildRow, RequestRow, attempt_of
from rabbit2docker.hub.store.sqlite_thread import Statements
from rabbit2docker.hub.store.tables import (
    BATCH_REQUESTS,
    BUILDS,
    EVENTS,
    REQUESTERS,
    REQUESTS,
    clean,
    row_values,
)
from rabbit2docker_schemas.batches import batch_of
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Gap, Log, Progress, Rejected
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest


def _update_by_id(table: Table) -> Update:
    values: dict[str, Any] = {column.name: bindparam(f"_{column.name}") for column in table.c}
    this = and_(table.c.id == bindparam("_id"), table.c.tenant == bindparam("_tenant"))
    return update(table).where(this).values(values)


# Made once: SQLAlchemy takes longer to compose a statement than SQLite to execute it.
_UPDATES: Final = {table.name: _update_by_id(table) for table in (BUILDS, REQUESTS)}
_IDS: Final[BindParameter[Any]] = bindparam("_ids", expanding=True)
_LOAD_REQUESTS: Final = select(REQUESTS).where(
    REQUESTS.c.tenant == bindparam("_tenant"), REQUESTS.c.id.in_(_IDS)
)
_LOAD_BUILDS: Final = select(BUILDS).where(BUILDS.c.tenant == bindparam("_tenant"), BUILDS.c.id.in_(_IDS))
_KNOWN_EVENTS: Final = select(EVENTS.c.build_id, EVENTS.c.id).where(
    EVENTS.c.build_id.in_(bindparam("_builds", expanding=True)), EVENTS.c.id.in_(_IDS)
)


class EventWriter:
    """Builds and requests as one transaction sees them, and the changes to write."""

    def __init__(self, connection: Statements, tenant: str, *, log_bytes: int) -> None:
        """Take the transaction, and how many bytes to keep of an attempt's log."""
        self._connection = connection
        self._tenant = tenant
        self._log_bytes = log_bytes
        self._builds: dict[str, BuildRow] = {}
        self._requests: dict[str, RequestRow] = {}
        self._before: dict[str, BuildRow | RequestRow] = {}
        self._names: set[tuple[str, str]] = set()

    async def record_request(self, request: BuildRequest, at: datetime) -> None:
        """Enter a request that is about to be published."""
        if request.request_id is None:
            raise ValueError("a request without an id cannot be found again")
        await self._load_requests([request.request_id])
        row = self._request(request.request_id, request.provider, request.spec)
        projection.apply_request(row, request, at)
        await self._load_builds([row.leads_to])
        build = self._build(row.leads_to, at)
        self._add_name(build.id, row.requester)
        if build.id in self._before:
            await self._begin([build.id])
        else:
            projection.apply_requests(build, [row])
        await self._write()

    async def record_share(self, request_id: str, requester: str) -> None:
        """Enter a further requester of a request."""
        await self._load_requests([request_id])
        row = self._requests.get(request_id)
        build_id = row.leads_to if row else build_id_of(self._tenant, request_id)
        await self._load_builds([build_id])
        if build_id in self._builds:  # else it has been deleted in the meantime
            self._add_name(build_id, requester)
        await self._write()

    async def put(self, events: Sequence[Event]) -> list[BuildRow]:
        """Enter events. Return the builds whose beginning and end are both known only since now."""
        mine = [event for event in events if event.tenant == self._tenant and not _is_passing(event)]
        own_ids = {
            request_id: build_id_of(self._tenant, request_id)
            for event in mine
            if isinstance(event.data, Accepted | Rejected)
            for request_id in [event.data.request_id]
        }
        await self._load_requests(own_ids)
        places = {self._place(event) for event in mine}
        await self._load_builds(places | set(own_ids.values()))
        new = await self._new(mine, places)
        for event in new:
            if isinstance(event.data, Accepted):
                await self._accept(event, event.data)
        kept = self._apply(new)
        logs: dict[tuple[str, int], list[Log | Gap]] = {}
        for event in mine:
            if isinstance(event.data, Log | Gap):
                row = self._build(event.data.build_id, event.time)
                row.attempt = max(row.attempt, event.data.attempt)
                projection.update_state(row)
                logs.setdefault((row.id, event.data.attempt), []).append(event.data)
        await self._begin({event.data.build_id for event in new if isinstance(event.data, Accepted)})
        await self._write()
        await self._insert_events(kept)
        await self._write_batches(kept)
        await write_logs(self._connection, logs, limit=self._log_bytes)
        return [row for row in self._builds.values() if row.is_whole and not self._was_whole(row)]

    def _was_whole(self, row: BuildRow) -> bool:
        before = self._before.get(row.id)
        return isinstance(before, BuildRow) and before.is_whole

    def _place(self, event: Event) -> str:
        """Return the id of the build that an event belongs to, or that its request would have started."""
        if isinstance(event.data, Rejected):
            return build_id_of(self._tenant, event.data.request_id)
        return clean(event.subject)

    async def _new(self, events: Iterable[Event], places: Iterable[str]) -> list[Event]:
        """Return the events that are not stored yet; log lines are left out."""
        unique = {
            (self._place(event), clean(event.id)): event
            for event in events
            if not isinstance(event.data, Log)
        }
        if not unique:
            return []
        values = {"_builds": list(places), "_ids": list({id_ for _, id_ in unique})}
        for build_id, id_ in await self._connection.execute(_KNOWN_EVENTS, values):
            unique.pop((build_id, id_), None)
        return list(unique.values())

    async def _accept(self, event: Event, accepted: Accepted) -> None:
        """Enter an acceptance. The requesters of the request move to the build that it joined."""
        request = self._request(accepted.request_id, accepted.provider, accepted.spec)
        projection.apply_accepted(request, accepted, event.time)
        target = self._build(accepted.build_id, event.time)
        self._add_name(target.id, request.requester)
        waiting = self._builds.get(request.own_id)
        if waiting is None or waiting.id == target.id or waiting.has_begun:
            return
        moved = await self._connection.execute(
            select(REQUESTERS.c.name).where(REQUESTERS.c.build_id == waiting.id)
        )
        for name in [*moved.scalars(), *(name for build_id, name in self._names if build_id == waiting.id)]:
            self._add_name(target.id, name)
        self._names = {(build_id, name) for build_id, name in self._names if build_id != waiting.id}
        del self._builds[waiting.id]
        if self._before.pop(waiting.id, None) is not None:
            await self._connection.execute(delete(BUILDS).where(BUILDS.c.id == waiting.id))

    def _apply(self, events: Iterable[Event]) -> list[Event]:
        """Apply all events but log lines; return those to store as they are."""
        kept = []
        for event in events:
            if isinstance(event.data, Rejected):
                request = self._requests.get(event.data.request_id)
                if request is not None and request.leads_to != request.own_id:
                    continue  # it has led to a build: this rejects another request with the same id
            projection.apply_event(self._build(self._place(event), event.time), event)
            kept.append(event)
        return kept

    async def _begin(self, builds: Iterable[str]) -> None:
        """Apply the requests that led to these builds."""
        wanted = {id_ for id_ in builds if id_ in self._builds}
        if not wanted:
            return
        leads_here = or_(
            REQUESTS.c.build_id.in_(wanted),
            and_(REQUESTS.c.build_id.is_(None), REQUESTS.c.own_id.in_(wanted)),
        )
        found = await self._connection.execute(
            select(REQUESTS).where(REQUESTS.c.tenant == self._tenant, leads_here)
        )
        all_requests = {row["id"]: RequestRow(**row) for row in found.mappings()} | self._requests
        for id_ in wanted:
            projection.apply_requests(
                self._builds[id_], [request for request in all_requests.values() if request.leads_to == id_]
            )

    async def _load_requests(self, ids: Collection[str]) -> None:
        if not ids:
            return
        for row in await self._load(_LOAD_REQUESTS, ids):
            self._requests[row["id"]] = request = RequestRow(**row)
            self._before[f"request {request.id}"] = replace(request)

    async def _load_builds(self, ids: Collection[str]) -> None:
        if not ids:
            return
        for row in await self._load(_LOAD_BUILDS, ids):
            self._builds[row["id"]] = build = BuildRow(**row)
            self._before[build.id] = replace(build)

    async def _load(self, statement: Select[Any], ids: Collection[str]) -> Iterable[Any]:
        values = {"_tenant": self._tenant, "_ids": list(set(ids))}
        found: Iterable[Any] = (await self._connection.execute(statement, values)).mappings()
        return found

    def _request(self, id_: str, provider: str, spec: str) -> RequestRow:
        if id_ not in self._requests:
            own_id = build_id_of(self._tenant, id_)
            self._requests[id_] = RequestRow(self._tenant, id_, own_id, provider, spec)
        return self._requests[id_]

    def _build(self, id_: str, at: datetime) -> BuildRow:
        id_ = clean(id_)
        if id_ not in self._builds:
            self._builds[id_] = BuildRow(id_, self._tenant, at)
        return self._builds[id_]

    def _add_name(self, build_id: str, name: str | None) -> None:
        if name:
            self._names.add((build_id, clean(name)[:NAME_CHARACTERS]))

    async def _write(self) -> None:
        """Write the rows that have changed."""
        for table, rows in ((BUILDS, self._builds), (REQUESTS, self._requests)):
            new, changed = [], []
            for row in rows.values():
                before = self._before.get(row.id if isinstance(row, BuildRow) else f"request {row.id}")
                if before is None:
                    new.append(row_values(row))
                elif before != row:
                    changed.append({f"_{name}": value for name, value in row_values(row).items()})
            if new:
                await self._connection.execute(insert(table), new)
            if changed:
                await self._connection.execute(_UPDATES[table.name], changed)
        await self._write_names()

    async def _write_names(self) -> None:
        if not self._names:
            return
        builds = {build_id for build_id, _ in self._names if build_id in self._before}
        wanted = select(REQUESTERS.c.build_id, REQUESTERS.c.name).where(REQUESTERS.c.build_id.in_(builds))
        # A build that is new in this transaction has no names yet.
        known = {tuple(row) for row in await self._connection.execute(wanted)} if builds else set()
        if new := self._names - known:
            rows = [{"build_id": build_id, "name": name} for build_id, name in sorted(new)]
            await self._connection.execute(insert(REQUESTERS), rows)

    async def _insert_events(self, events: Iterable[Event]) -> None:
        rows = [
            {
                "build_id": self._place(event),
                "id": event.id,
                "kind": event.kind.value,
                "attempt": attempt_of(event),
                "time": event.time,
                "source": event.source,
                "data": event.data.model_dump(mode="json", exclude_none=True),
            }
            for event in events
        ]
        if rows:
            await self._connection.execute(insert(EVENTS), rows)

    async def _write_batches(self, events: Iterable[Event]) -> None:
        """Enter the requests among these answers that belong to a batch; the latest answer of each counts."""
        rows = {}
        for event in events:
            if not isinstance(event.data, Accepted | Rejected):
                continue
            if (batch := batch_of(event.data.request_id)) is not None:
                rows[event.data.request_id] = {
                    "tenant": self._tenant,
                    "request_id": event.data.request_id,
                    "batch": batch.id,
                    "size": batch.size,
                    "build_id": self._place(event),
                    "answered_at": event.time,
                }
        if rows:
            here = and_(BATCH_REQUESTS.c.tenant == self._tenant, BATCH_REQUESTS.c.request_id.in_(rows))
            await self._connection.execute(delete(BATCH_REQUESTS).where(here))
            await self._connection.execute(insert(BATCH_REQUESTS), list(rows.values()))


def _is_passing(event: Event) -> bool:
    """Return whether an event is true for a moment only, and not worth a row."""
    return isinstance(event.data, Progress) and event.data.is_place
