"""Batches of one tenant: requests that were made together, and what became of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, func, select

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.models import Batch, BatchReport, BatchRequest, BuildState
from rabbit2docker.hub.store.projection import BuildRow, as_build
from rabbit2docker.hub.store.tables import BATCH_REQUESTS, BUILDS, REQUESTERS
from rabbit2docker_schemas.batches import kind_of

LARGEST_REPORT: Final = 10_000
_IN: Final = BATCH_REQUESTS.c


class Batches:
    """Those that the store knows. All methods raise StoreUnavailable."""

    def __init__(self, database: Database, tenant: str) -> None:
        """Take the database."""
        self._database = database
        self._tenant = tenant

    def _visible(self, visible_to: str | None) -> ColumnElement[bool]:
        mine = _IN.tenant == self._tenant
        if visible_to is None:
            return mine
        theirs = select(REQUESTERS.c.build_id).where(REQUESTERS.c.name == visible_to)
        return and_(mine, _IN.build_id.in_(theirs))

    async def listed(self, visible_to: str | None, *, limit: int) -> list[Batch]:
        """Return the latest batches, newest first, as far as their builds are visible to a user; None: all."""
        is_visible = self._visible(visible_to)
        latest = (
            select(_IN.batch)
            .where(is_visible)
            .group_by(_IN.batch)
            .order_by(func.min(_IN.answered_at).desc(), _IN.batch)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            names = list((await connection.execute(latest)).scalars())
            rows = (await connection.execute(_counts(and_(is_visible, _IN.batch.in_(names))))).all()
        found: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            found[row.batch].append(row)
        return [Batch(**_summary(name, counted)) for name, counted in found.items() if counted]

    async def exists(self, id_: str, visible_to: str | None) -> bool:
        """Return whether there is a batch of which a user may see any build."""
        wanted = select(_IN.request_id).where(self._visible(visible_to), _IN.batch == id_).limit(1)
        async with self._database.reading() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def find(self, id_: str, visible_to: str | None) -> BatchReport | None:
        """Return a batch with its requests, in the order of their answers."""
        is_it = and_(self._visible(visible_to), _IN.batch == id_)
        wanted = (
            select(_IN.request_id, _IN.answered_at, BUILDS)
            .join(BUILDS, BUILDS.c.id == _IN.build_id)
            .where(is_it)
            .order_by(_IN.answered_at, _IN.request_id)
            .limit(LARGEST_REPORT)
        )
        async with self._database.reading() as connection:
            counted = (await connection.execute(_counts(is_it))).all()
            rows = (await connection.execute(wanted)).all()
        if not counted:
            return None
        return BatchReport(**_summary(id_, counted), requests=list(_requests(rows)))


def _counts(where: ColumnElement[bool]) -> Any:
    return (
        select(
            _IN.batch,
            BUILDS.c.state,
            func.count().label("number"),
            func.max(_IN.size).label("size"),
            func.min(_IN.answered_at).label("began_at"),
        )
        .join(BUILDS, BUILDS.c.id == _IN.build_id)
        .where(where)
        .group_by(_IN.batch, BUILDS.c.state)
    )


def _summary(id_: str, counted: Sequence[Any]) -> dict[str, Any]:
    counts = {BuildState(row.state): row.number for row in counted}
    size = max((row.size for row in counted if row.size is not None), default=None)
    ended = sum(number for state, number in counts.items() if state.is_end)
    return {
        "id": id_,
        "kind": kind_of(id_),
        "size": size,
        "began_at": min(row.began_at for row in counted),
        "counts": counts,
        "answered": sum(counts.values()),
        "ended": ended,
        "over": ended >= (size or sum(counts.values())),
    }


def _requests(rows: Iterable[Any]) -> Iterable[BatchRequest]:
    names = BUILDS.c.keys()
    for row in rows:
        request_id, answered_at, *values = row
        build = as_build(BuildRow(**dict(zip(names, values, strict=True))), [], [])
        took = (build.ended_at - answered_at).total_seconds() if build.ended_at else None
        yield BatchRequest(
            request_id=request_id,
            build_id=build.id,
            state=build.state,
            provider=build.provider,
            spec=build.spec,
            image=build.image if build.state is BuildState.COMPLETED else None,
            digest=build.digest,
            message=build.problem.message if build.problem else build.message,
            reason=build.problem.reason if build.problem else None,
            seconds=None if took is None else max(0.0, took),
        )
