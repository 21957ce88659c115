"""Deletion of what the store keeps no longer: old builds, and logs of the oldest builds once all logs are too large."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.tables import BUILDS, CHUNKS, LOGS, RATE_LIMIT_HITS, REQUESTS

DELETE_BATCH: Final = 20
"""Builds deleted in one transaction: their logs may be megabytes each."""
LONGEST_BUILD: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class StoredBuild:
    """A build as far as pruning is concerned."""

    id: str
    ended_at: datetime | None
    last_event_at: datetime
    log_bytes: int = 0

    def has_expired(self, ended_before: datetime) -> bool:
        """Return whether it ended before a moment, or has long stopped to report anything."""
        if self.ended_at is not None:
            return self.ended_at < ended_before
        return self.last_event_at < ended_before - LONGEST_BUILD


@dataclass(slots=True)
class PrunePlan:
    """Builds and logs to delete."""

    builds: list[StoredBuild] = field(default_factory=list)
    """Builds, with everything that belongs to them."""
    logs: list[StoredBuild] = field(default_factory=list)
    """Builds of which only the logs are deleted."""

    @property
    def log_bytes(self) -> int:
        """Return the bytes of logs that are deleted."""
        return sum(build.log_bytes for build in (*self.builds, *self.logs))


def plan_prune(
    stored: Iterable[StoredBuild], *, ended_before: datetime | None, max_log_bytes: int
) -> PrunePlan:
    """Return what to delete of these builds; without `ended_before` no build, with 0 for `max_log_bytes` no log."""
    plan, kept = PrunePlan(), list[StoredBuild]()
    for build in stored:
        is_expired = ended_before is not None and build.has_expired(ended_before)
        (plan.builds if is_expired else kept).append(build)
    excess = sum(build.log_bytes for build in kept) - max_log_bytes if max_log_bytes else 0
    ended = [build for build in kept if build.ended_at is not None and build.log_bytes]
    for build in sorted(ended, key=lambda build: (build.ended_at, build.id)):
        if excess <= 0:
            break
        plan.logs.append(build)
        excess -= build.log_bytes
    return plan


class Pruner:
    """Deletes builds and logs of one tenant."""

    def __init__(self, database: Database, tenant: str) -> None:
        """Take the database."""
        self._database = database
        self._tenant = tenant

    async def plan(self, *, ended_before: datetime | None, max_log_bytes: int) -> PrunePlan:
        """Return what `prune` deletes. Raises StoreUnavailable."""
        size = func.coalesce(func.sum(LOGS.c.head_bytes + LOGS.c.tail_bytes), 0)
        source = BUILDS.outerjoin(LOGS, LOGS.c.build_id == BUILDS.c.id)
        mine = BUILDS.c.tenant == self._tenant
        wanted = (
            select(BUILDS.c.id, BUILDS.c.ended_at, BUILDS.c.last_event_at, size)
            .select_from(source)
            .where(mine)
            .group_by(BUILDS.c.id, BUILDS.c.ended_at, BUILDS.c.last_event_at)
        )
        if ended_before is not None and not max_log_bytes:
            # Then no other build matters, and an index finds these.
            wanted = wanted.where(or_(BUILDS.c.ended_at.is_(None), BUILDS.c.ended_at < ended_before))
        async with self._database.reading() as connection:
            if ended_before is None:
                # Looked at every minute, and there is seldom anything to delete: the database adds it up.
                total = (await connection.execute(select(size).select_from(source).where(mine))).scalar_one()
                if total <= max_log_bytes or not max_log_bytes:
                    return PrunePlan()
            rows = (await connection.execute(wanted)).all()
        stored = [StoredBuild(id_, ended, last, int(size)) for id_, ended, last, size in rows]
        return plan_prune(stored, ended_before=ended_before, max_log_bytes=max_log_bytes)

    async def prune(self, *, ended_before: datetime | None, max_log_bytes: int) -> PrunePlan:
        """Delete what the plan names and return the plan. Raises StoreUnavailable; repeating it continues."""
        plan = await self.plan(ended_before=ended_before, max_log_bytes=max_log_bytes)
        for builds, remove in ((plan.builds, _delete_builds), (plan.logs, _delete_logs)):
            for start in range(0, len(builds), DELETE_BATCH):
                batch = [build.id for build in builds[start : start + DELETE_BATCH]]
                async with self._database.writing("builds", self._tenant) as connection:
                    await remove(connection, batch)
        return plan

    async def delete_rate_limit_hits(self, now: datetime) -> None:
        """Delete rate-limit hits that no period counts any more. Raises StoreUnavailable."""
        async with self._database.writing("rate-limits", self._tenant, "all") as connection:
            await connection.execute(delete(RATE_LIMIT_HITS).where(RATE_LIMIT_HITS.c.until < now))


async def _delete_builds(connection: AsyncConnection, builds: Sequence[str]) -> None:
    own = and_(REQUESTS.c.own_id.in_(builds), REQUESTS.c.build_id.is_(None))
    await connection.execute(delete(REQUESTS).where(or_(REQUESTS.c.build_id.in_(builds), own)))
    # Cascades to requesters, events and logs.
    await connection.execute(delete(BUILDS).where(BUILDS.c.id.in_(builds)))


async def _delete_logs(connection: AsyncConnection, builds: Sequence[str]) -> None:
    """Delete the lines of builds; readers see them as a gap, and lines that arrive again stay deleted."""
    await connection.execute(delete(CHUNKS).where(CHUNKS.c.build_id.in_(builds)))
    cut = {"kept": 0, "head_bytes": 0, "tail_bytes": 0, "cut_first": 0, "cut_last": LOGS.c.lines - 1}
    await connection.execute(update(LOGS).where(LOGS.c.build_id.in_(builds), LOGS.c.lines > 0).values(**cut))
