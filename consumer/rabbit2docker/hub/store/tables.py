"""The tables. A change here needs a migration; a test compares the two.

All names begin with `r2d_`, so that the database may be shared, for example with the JupyterHub. Moments are
microseconds since 1970, which SQLite and PostgreSQL store and compare in the same way.
"""

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

VERSION_TABLE: Final = "r2d_version"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Return microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(number: int) -> datetime:
    """Return the moment that is this many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=number)


def clean(text: str) -> str:
    """Return text that every database accepts: without null characters and unpaired surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def cleaned(value: Any) -> Any:
    """Return the same JSON value with all its text cleaned."""
    match value:
        case str():
            return clean(value)
        case list():
            return [cleaned(item) for item in value]
        case dict():
            return {clean(str(name)): cleaned(item) for name, item in value.items()}
        case _:
            return value


class CleanText(TypeDecorator[str]):
    """Text, cleaned on its way in."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Clean the value."""
        return None if value is None else clean(value)


class EncodedJson(str):
    """A JSON value as text already, with clean texts in it."""

    __slots__ = ()


class Json(TypeDecorator[Any]):
    """A JSON value as text; the database never looks into it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Encode the value."""
        if value is None or isinstance(value, EncodedJson):
            return value
        return json.dumps(cleaned(value), ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Decode the value."""
        return None if value is None else json.loads(value)


class Moment(TypeDecorator[datetime]):
    """A moment with its zone."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Encode the value."""
        return None if value is None else micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Decode the value."""
        return None if value is None else moment_of(value)


def row_values(row: Any) -> dict[str, Any]:
    """Return the columns of a row's dataclass with their values, of which none is copied."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


metadata: Final = MetaData()


def _of_build() -> Column[str]:
    return Column("build_id", CleanText, ForeignKey("r2d_builds.id", ondelete="CASCADE"), primary_key=True)


BUILDS: Final = Table(
    "r2d_builds",
    metadata,
    Column("id", CleanText, primary_key=True),
    Column("tenant", CleanText, nullable=False),
    Column("state", CleanText, nullable=False),
    # Null until the request or its acceptance is known: other events of a build may come first.
    Column("request_id", CleanText),
    Column("provider", CleanText),
    Column("spec", CleanText),
    Column("requester", CleanText),
    Column("options", Json),
    Column("requested_at", Moment),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    # Time of the latest event, to expire builds that never end.
    Column("last_event_at", Moment, nullable=False),
    Column("build_name", CleanText),
    Column("repo_url", CleanText),
    Column("resolved_ref", CleanText),
    Column("notice", CleanText),
    Column("image", CleanText),
    Column("digest", CleanText),
    Column("size", BigInteger),
    Column("cached", Boolean, nullable=False),
    Column("attempt", Integer, nullable=False),
    # The latest progress, and the key that orders progress events.
    Column("phase", CleanText),
    Column("message", CleanText, nullable=False),
    Column("retry_at", Moment),
    Column("progress_key", CleanText),
    # Content of the terminal event, and of the rejection of its own request.
    Column("outcome", Json),
    Column("rejection", Json),
    Index("r2d_builds_by_time", "tenant", "requested_at", "id"),
    Index("r2d_builds_by_state", "tenant", "state", "requested_at", "id"),
    Index("r2d_builds_by_end", "tenant", "ended_at"),
)

REQUESTS: Final = Table(
    "r2d_requests",
    metadata,
    Column("tenant", CleanText, primary_key=True),
    Column("id", CleanText, primary_key=True),
    # The build that the request starts unless it joins another one, and the build that it led to.
    Column("own_id", CleanText, nullable=False),
    Column("build_id", CleanText),
    Column("provider", CleanText, nullable=False),
    Column("spec", CleanText, nullable=False),
    Column("requester", CleanText),
    Column("options", Json),
    Column("requested_at", Moment),
    Column("accepted_at", Moment),
    Column("accepted", Json),
    Index("r2d_requests_by_own_id", "own_id"),
    Index("r2d_requests_by_build", "build_id"),
)

REQUESTERS: Final = Table(
    "r2d_requesters",
    metadata,
    _of_build(),
    Column("name", CleanText, primary_key=True),
    Index("r2d_requesters_by_name", "name", "build_id"),
)

BATCH_REQUESTS: Final = Table(
    "r2d_batch_requests",
    metadata,
    Column("tenant", CleanText, primary_key=True),
    Column("request_id", CleanText, primary_key=True),
    Column("batch", CleanText, nullable=False),
    Column("size", Integer),
    # The build that the request led to, or would have started if it was rejected.
    Column("build_id", CleanText, ForeignKey("r2d_builds.id", ondelete="CASCADE"), nullable=False),
    Column("answered_at", Moment, nullable=False),
    Index("r2d_batch_requests_by_batch", "tenant", "batch"),
    Index("r2d_batch_requests_by_build", "build_id"),
)
"""Answered requests that were made together with others."""

EVENTS: Final = Table(
    "r2d_events",
    metadata,
    _of_build(),
    Column("id", CleanText, primary_key=True),
    Column("kind", CleanText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("time", Moment, nullable=False),
    Column("source", CleanText, nullable=False),
    Column("data", Json, nullable=False),
)
"""All events but log lines, as they were published."""

LOGS: Final = Table(
    "r2d_logs",
    metadata,
    _of_build(),
    Column("attempt", Integer, primary_key=True),
    # Number of the last known line plus one; how many lines are stored.
    Column("lines", BigInteger, nullable=False),
    Column("kept", BigInteger, nullable=False),
    # Bytes before and after the cut; all are before it while nothing is cut.
    Column("head_bytes", BigInteger, nullable=False),
    Column("tail_bytes", BigInteger, nullable=False),
    Column("cut_first", BigInteger),
    Column("cut_last", BigInteger),
)

CHUNKS: Final = Table(
    "r2d_chunks",
    metadata,
    _of_build(),
    Column("attempt", Integer, primary_key=True),
    # The last line is part of the key: new lines follow everything, and are looked for from the end.
    Column("last", BigInteger, primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", Json, nullable=False),
)
"""Consecutive lines; no two chunks hold the same one."""

RATE_LIMIT_HITS: Final = Table(
    "r2d_rate_limit_hits",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("tenant", CleanText, nullable=False),
    Column("requester", CleanText, nullable=False),
    Column("at", Moment, nullable=False),
    # The end of the period that counts this hit.
    Column("until", Moment, nullable=False),
    Index("r2d_rate_limit_hits_by_who", "tenant", "requester", "at"),
    Index("r2d_rate_limit_hits_by_until", "until"),
)

COMMIT_STATUSES: Final = Table(
    "r2d_commit_statuses",
    metadata,
    Column("tenant", CleanText, primary_key=True),
    Column("request_id", CleanText, primary_key=True),
    Column("provider", CleanText, nullable=False),
    Column("repository", CleanText, nullable=False),
    Column("sha", CleanText, nullable=False),
    # Whether the host has the status `pending`; tries of the next status that failed so far.
    Column("announced", Boolean, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", Moment, nullable=False),
    Index("r2d_commit_statuses_by_time", "tenant", "next_at"),
)
"""Commits whose host does not know yet how their builds ended."""

POSITIONS: Final = Table(
    "r2d_positions",
    metadata,
    Column("tenant", CleanText, primary_key=True),
    Column("moment", Moment, nullable=False),
)
"""The moment up to which the events of a tenant's stream are stored."""
