"""The commit statuses that are still to be written, beside the builds that they report."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.models import ENDS, CommitStatus
from rabbit2docker.hub.store.tables import BUILDS, COMMIT_STATUSES, REQUESTS

_TABLE: Final = COMMIT_STATUSES


class CommitStatuses:
    """Those of one tenant. All methods raise StoreUnavailable."""

    def __init__(self, database: Database, tenant: str) -> None:
        """Take the database."""
        self._database = database
        self._tenant = tenant

    async def add(self, status: CommitStatus, *, at: datetime) -> None:
        """Enter a status, unless the same request has one already."""
        here = self._of(status.request_id)
        async with self._database.writing("commit-statuses", self._tenant) as connection:
            if (await connection.execute(select(_TABLE.c.request_id).where(here))).first() is None:
                row = {**status.model_dump(), "tenant": self._tenant, "next_at": at}
                await connection.execute(insert(_TABLE), row)

    async def due(self, now: datetime, *, limit: int) -> Sequence[CommitStatus]:
        """Return those that are to be written now: not announced yet, or of a build that has ended."""
        leads_to = func.coalesce(REQUESTS.c.build_id, REQUESTS.c.own_id)
        of_request = and_(REQUESTS.c.tenant == _TABLE.c.tenant, REQUESTS.c.id == _TABLE.c.request_id)
        source = _TABLE.outerjoin(REQUESTS, of_request).outerjoin(BUILDS, BUILDS.c.id == leads_to)
        ends = [state.value for state in ENDS]
        is_due = or_(_TABLE.c.announced.is_(False), BUILDS.c.state.in_(ends))
        wanted = (
            select(*(_TABLE.c[name] for name in CommitStatus.model_fields))
            .select_from(source)
            .where(_TABLE.c.tenant == self._tenant, _TABLE.c.next_at <= now, is_due)
            .order_by(_TABLE.c.next_at)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return [CommitStatus(**row) for row in (await connection.execute(wanted)).mappings()]

    async def change(self, status: CommitStatus, *, next_at: datetime) -> None:
        """Store the changed `announced` and `tries`, and when it is due again."""
        values = {"announced": status.announced, "tries": status.tries, "next_at": next_at}
        async with self._database.writing("commit-statuses", self._tenant) as connection:
            await connection.execute(update(_TABLE).where(self._of(status.request_id)).values(values))

    async def remove(self, request_id: str) -> None:
        """Remove one that has nothing left to be written."""
        async with self._database.writing("commit-statuses", self._tenant) as connection:
            await connection.execute(delete(_TABLE).where(self._of(request_id)))

    async def delete_before(self, moment: datetime) -> None:
        """Delete those that were due last before a moment: their builds have never ended."""
        async with self._database.writing("commit-statuses", self._tenant) as connection:
            old = and_(_TABLE.c.tenant == self._tenant, _TABLE.c.next_at < moment)
            await connection.execute(delete(_TABLE).where(old))

    def _of(self, request_id: str) -> ColumnElement[bool]:
        return and_(_TABLE.c.tenant == self._tenant, _TABLE.c.request_id == request_id)
