"""Batches in the JSON API: requests that were made together, with their progress and a report."""

import csv
import io
from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field

from rabbit2docker.hub.store.models import Batch, BatchReport, BatchRequest, Record
from rabbit2docker.hub.web.api import ApiHandler, Query
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.errors import HttpError

NO_SUCH_BATCH: Final = "There is no such batch, or you do not have access to it."
REPORT_COLUMNS: Final = tuple(BatchRequest.model_fields)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of what spreadsheets calculate."""


class BatchesPage(Record):
    """The latest batches."""

    batches: list[Batch]


class BatchesQuery(Query):
    """Parameters of a list of batches."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Most batches that are returned."""


def viewer_of(user: User) -> str | None:
    """Return the name whose builds a user may see; None for all."""
    return None if user.admin or user.acts_for_people else user.name or ""


class BatchesHandler(ApiHandler):
    """The batches."""

    async def get(self) -> None:
        """List the latest ones, newest first."""
        limit = self.parse_query(BatchesQuery).limit
        batches = await self.context.records.batches.listed(viewer_of(self.user), limit=limit)
        self.write_model(BatchesPage(batches=batches))


class BatchHandler(ApiHandler):
    """One batch."""

    async def get(self, id_: str) -> None:
        """Answer with the batch and all its answered requests."""
        self.write_model(await self.find_batch(id_))

    async def find_batch(self, id_: str) -> BatchReport:
        """Return a batch as far as the user may see its builds. Raises HttpError."""
        found = await self.context.records.batches.find(id_, viewer_of(self.user))
        if found is None:
            raise HttpError(NO_SUCH_BATCH, 404)
        return found


class BatchReportHandler(BatchHandler):
    """The report of one batch, for spreadsheets."""

    async def get(self, id_: str) -> None:
        """Answer with one line for each request, as CSV."""
        batch = await self.find_batch(id_)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{batch.id}.csv"')
        self.finish(as_csv(batch.requests))


def as_csv(requests: Iterable[BatchRequest]) -> str:
    """Return the requests as CSV that no spreadsheet takes for formulas."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(REPORT_COLUMNS)
    for request in requests:
        values = request.model_dump(mode="json")
        writer.writerow([_harmless(values[name]) for name in REPORT_COLUMNS])
    return text.getvalue()


def _harmless(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


BATCH_ROUTES: Final[list[tuple[str, type[ApiHandler]]]] = [
    (r"api/batches", BatchesHandler),
    (r"api/batches/([^/]+)", BatchHandler),
    (r"api/batches/([^/]+)/report", BatchReportHandler),
]
