"""What is remembered of builds, from when the database is there."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import NoReturn

from rabbit2docker.errors import StoreUnavailable
from rabbit2docker_hub.store.records import (
    Allowance,
    Build,
    BuildPage,
    BuildQuery,
    BuildRecords,
    StoredLine,
)
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.requests import BuildRequest


class Remembering:
    """The records of a store that is opened when its database is there; until then StoreUnavailable."""

    def __init__(self) -> None:
        """Start without one."""
        self._open: BuildRecords | None = None

    @property
    def _records(self) -> BuildRecords:
        return self._open or self._away()

    @staticmethod
    def _away() -> NoReturn:
        raise StoreUnavailable("The database has not been there yet.")

    async def asked(self, request: BuildRequest, *, at: datetime) -> None:
        """See BuildRecords."""
        await self._records.asked(request, at=at)

    async def shared(self, request_id: str, requester: str) -> None:
        """See BuildRecords."""
        await self._records.shared(request_id, requester)

    async def put(self, events: Sequence[Event]) -> None:
        """See BuildRecords."""
        await self._records.put(events)

    async def build(self, id_: str) -> Build | None:
        """See BuildRecords."""
        return await self._records.build(id_)

    async def builds(self, query: BuildQuery) -> BuildPage:
        """See BuildRecords."""
        return await self._records.builds(query)

    def events(self, build_id: str) -> AsyncGenerator[Event, None]:
        """See BuildRecords."""
        return self._records.events(build_id)

    def lines(
        self, build_id: str, *, attempt: int | None = None, first: int = 0, last: int | None = None
    ) -> AsyncGenerator[StoredLine, None]:
        """See BuildRecords."""
        return self._records.lines(build_id, attempt=attempt, first=first, last=last)

    async def may_ask(self, who: str, *, limit: int, seconds: float, at: datetime) -> Allowance:
        """See BuildRecords."""
        return await self._records.may_ask(who, limit=limit, seconds=seconds, at=at)
