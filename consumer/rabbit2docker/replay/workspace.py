"""A temporary database for requests and events: however many there are, memory stays bounded."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from rabbit2docker.amqp.stream_scan import StreamMessage
from rabbit2docker.replay.logged import LoggedRequest
from rabbit2docker.replay.selection import Outcome, OutcomeKind, PastRequest
from rabbit2docker_schemas.cloudevents import UnreadableEvent, event_time, event_type
from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.ids import build_id_of

CACHE_KIB: Final = 32 * 1024
GENERATION_SECONDS: Final = 60.0
"""An end that came this long before the acceptance belongs to an earlier build of the same request."""

PRECISION_SECONDS: Final = 1.0
"""Of the time of a request in AMQP, which has no fractions."""

_TABLES: Final = """
CREATE TABLE requests(tenant TEXT, request_id TEXT, time REAL, grp BLOB, requester TEXT, replay_of TEXT);
CREATE TABLE contents(grp BLOB PRIMARY KEY, body TEXT);
CREATE TABLE answers(tenant TEXT, request_id TEXT, build_id TEXT, image TEXT, ref TEXT, repo_url TEXT, time REAL);
CREATE TABLE rejections(tenant TEXT, request_id TEXT, reason TEXT, message TEXT, time REAL);
CREATE TABLE ends(tenant TEXT, build_id TEXT, kind TEXT, reason TEXT, category TEXT, image TEXT, digest TEXT,
                  size INTEGER, ref TEXT, repo2docker TEXT, builder_image TEXT, time REAL);
CREATE TABLE published(request_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_INDEXES: Final = """
CREATE INDEX IF NOT EXISTS answers_by_request ON answers(tenant, request_id);
CREATE INDEX IF NOT EXISTS answers_by_image ON answers(image, time);
CREATE INDEX IF NOT EXISTS rejections_by_request ON rejections(tenant, request_id);
CREATE INDEX IF NOT EXISTS ends_by_build ON ends(tenant, build_id);
CREATE INDEX IF NOT EXISTS ends_by_image ON ends(image, time) WHERE repo2docker <> '' OR builder_image <> '';
"""
_PAST: Final = """
WITH answered AS (
  SELECT r.*, a.image, a.ref, a.time AS accepted, COALESCE(a.build_id, own_build(r.tenant, r.request_id)) AS build_id
  FROM requests r LEFT JOIN answers a
    ON a.rowid = (SELECT max(rowid) FROM answers WHERE tenant = r.tenant AND request_id = r.request_id)
)
SELECT r.tenant, {key} AS key, r.request_id, r.time, r.requester, r.replay_of, r.build_id, r.image, r.ref, r.accepted,
       e.kind, e.reason, e.category, e.image, e.digest, e.time, j.reason, r.grp
FROM answered r
LEFT JOIN ends e ON e.rowid = (SELECT max(rowid) FROM ends WHERE tenant = r.tenant AND build_id = r.build_id)
LEFT JOIN rejections j
  ON j.rowid = (SELECT max(rowid) FROM rejections WHERE tenant = r.tenant AND request_id = r.request_id)
ORDER BY r.tenant, key, r.time, r.request_id
"""
_BUILDER: Final = """
SELECT repo2docker, builder_image FROM ends
WHERE image = ? AND (repo2docker <> '' OR builder_image <> '') ORDER BY time DESC LIMIT 1
"""
_KIND_OF_TYPE: Final = {event_type(kind): kind for kind in Kind}

Key = bytes | str | None

ReadEvent = tuple[Kind, datetime, dict[str, Any]]
"""Kind, time and data."""


class Workspace:
    """Requests, events, and what follows from both. Closed, it leaves nothing behind."""

    def __init__(self) -> None:
        """Create the database; SQLite keeps it in memory as long as it is small."""
        # Without a name, it is a file that no other program sees.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA temp_store = FILE")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.executescript(_TABLES)
        self._db.create_function("own_build", 2, build_id_of, deterministic=True)
        self.beginnings: dict[str, float | None] = {}
        """Time of the oldest event of each tenant that has a stream; None if the stream is empty."""

    def close(self) -> None:
        """Delete the database."""
        self._db.close()

    def add_requests(self, requests: Iterable[LoggedRequest]) -> None:
        """Add requests in the order of the log."""
        rows, contents = [], {}
        for request in requests:
            group = request.group
            rows.append(
                (
                    request.tenant,
                    request.request_id,
                    request.time.timestamp(),
                    group,
                    request.requester or "",
                    request.replay_of or "",
                )
            )
            contents[group] = json.dumps(dict(request.content))
        if not rows:
            return
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._db.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?)", contents.items())
        self._db.execute("COMMIT")

    def tenants(self) -> list[str]:
        """Return the tenants of the requests."""
        return [tenant for (tenant,) in self._db.execute("SELECT DISTINCT tenant FROM requests ORDER BY 1")]

    def content_of(self, group: bytes) -> dict[str, Any]:
        """Return the newest content of a group."""
        (body,) = self._db.execute("SELECT body FROM contents WHERE grp = ?", (group,)).fetchone()
        content: dict[str, Any] = json.loads(body)
        return content

    def add_events(self, tenant: str, messages: Iterable[StreamMessage], until: datetime) -> int:
        """Add events of a tenant's index up to a moment, in order; return the number of unreadable ones."""
        found, unreadable = [], 0
        for message in messages:
            try:
                found.append(_read_event(message))
            except UnreadableEvent:
                unreadable += 1
        self.add_read_events(tenant, (event for event in found if event[1] <= until))
        return unreadable

    def add_read_events(self, tenant: str, events: Iterable[ReadEvent]) -> None:
        """Add events of a tenant, in order."""
        answers, rejections, ends = [], [], []
        for kind, time, data in events:
            match kind:
                case Kind.ACCEPTED:
                    answers.append(_answer(tenant, data, time.timestamp()))
                case Kind.REJECTED:
                    rejections.append(_rejection(tenant, data, time.timestamp()))
                case Kind.COMPLETED | Kind.FAILED | Kind.CANCELLED:
                    ends.append(_end(tenant, kind, data, time.timestamp()))
                case _:
                    pass
        if not (answers or rejections or ends):
            return
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", answers)
        self._db.executemany("INSERT INTO rejections VALUES (?, ?, ?, ?, ?)", rejections)
        self._db.executemany("INSERT INTO ends VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", ends)
        self._db.execute("COMMIT")

    def finish(self) -> None:
        """Make the indexes, once everything is in; blocks for seconds where that is much."""
        self._db.executescript(_INDEXES)

    def past(self, *, same_commit: bool) -> Iterator[tuple[Key, PastRequest]]:
        """Yield requests with their outcomes, each once; equal ones follow each other, the newest last."""
        key = "r.image" if same_commit else "r.grp"
        previous: tuple[str, str] | None = None
        for row in self._db.execute(_PAST.format(key=key)):
            if (row[0], row[2]) != previous:
                previous = (row[0], row[2])
                yield row[1], PastRequest(*_identity(row), self._outcome(row))

    def _outcome(self, row: tuple[Any, ...]) -> Outcome:
        tenant, _, _, time, _, _, build_id, image, ref, accepted = row[:10]
        kind, reason, category, ended_image, digest, ended, rejected = row[10:17]
        if kind is not None and accepted is not None and ended < accepted - GENERATION_SECONDS:
            kind = None
        if kind is None:
            is_open = accepted is not None or self._reaches_back_to(tenant, time)
            open_kind = OutcomeKind.NEVER_ENDED if is_open else OutcomeKind.UNKNOWN
            if rejected is not None and accepted is None:
                return Outcome(OutcomeKind.REJECTED, reason=rejected, build_id=build_id)
            return Outcome(open_kind, build_id=build_id, image=image or "", ref=ref or "")
        name = image or ended_image
        repo2docker, builder_image = self.builder_of(name)
        return Outcome(
            OutcomeKind(kind),
            reason=reason,
            category=category,
            build_id=build_id,
            image=name,
            digest=digest,
            ref=ref or "",
            repo2docker=repo2docker,
            builder_image=builder_image,
        )

    def _reaches_back_to(self, tenant: str, time: float) -> bool:
        beginning = self.beginnings.get(tenant)
        return beginning is not None and beginning <= time + PRECISION_SECONDS

    def builder_of(self, image: str) -> tuple[str, str]:
        """Return the version of repo2docker and the image of the pod that built an image last; empty if unknown."""
        return self._db.execute(_BUILDER, (image,)).fetchone() or ("", "") if image else ("", "")

    def add_published(self, request_id: str) -> None:
        """Remember the id of a request that a replay has published."""
        self._db.execute("INSERT OR IGNORE INTO published VALUES (?)", (request_id,))

    def is_published(self, request_id: str) -> bool:
        """Return whether the id is remembered."""
        found = self._db.execute("SELECT 1 FROM published WHERE request_id = ?", (request_id,))
        return found.fetchone() is not None

    def query(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        """Run a query for another module of this package."""
        return self._db.execute(sql, parameters)


def _identity(row: tuple[Any, ...]) -> tuple[str, str, float, str, str, bytes]:
    return row[0], row[2], row[3], row[4], row[5], row[17]


def _read_event(message: StreamMessage) -> ReadEvent:
    """Return kind, time and data of an event, without the checks of its model, which take long."""
    kind, time = _KIND_OF_TYPE.get(str(message.headers.get("ce-type"))), event_time(message.headers)
    if kind is None or time is None:
        raise UnreadableEvent(f"unknown ce-type {message.headers.get('ce-type')!r}")
    try:
        data = json.loads(message.body)
        key = data["request_id" if kind in (Kind.ACCEPTED, Kind.REJECTED) else "build_id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableEvent(f"{kind} event cannot be read: {error}") from error
    if not isinstance(key, str):
        raise UnreadableEvent(f"{kind} event has no id")
    return kind, time, data


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def tag_of(image: str) -> str:
    """Return the name and tag of an image, without the digest."""
    return image.partition("@")[0]


def _answer(tenant: str, data: dict[str, Any], time: float) -> tuple[object, ...]:
    texts = [_text(data, name) for name in ("request_id", "build_id", "image", "resolved_ref", "repo_url")]
    return (tenant, *texts, time)


def _rejection(tenant: str, data: dict[str, Any], time: float) -> tuple[object, ...]:
    return (tenant, *[_text(data, name) for name in ("request_id", "reason", "message")], time)


def _end(tenant: str, kind: Kind, data: dict[str, Any], time: float) -> tuple[object, ...]:
    size = data.get("size")
    return (
        tenant,
        data["build_id"],
        kind.value,
        _text(data, "reason"),
        _text(data, "category"),
        tag_of(_text(data, "image")),
        _text(data, "digest"),
        size if isinstance(size, int) else None,
        _text(data, "resolved_ref"),
        _text(data, "repo2docker_version"),
        _text(data, "builder_image"),
        time,
    )
