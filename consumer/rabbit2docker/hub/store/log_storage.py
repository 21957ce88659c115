"""Storage of log lines: each line once, and head and tail of a log that is too long.

The result depends on the lines alone, not on the order in which they arrive. While all lines of an attempt fit into the
limit, all are kept. Otherwise the head is the longest beginning that fits into half of it, and the tail the longest end
that does. Lines between them are cut, also when they arrive (again) later.
"""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import RowMapping, and_, bindparam, delete, insert, select, update

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.sqlite_thread import Statements
from rabbit2docker.hub.store.tables import CHUNKS, LOGS, EncodedJson, clean, row_values
from rabbit2docker_schemas.events import Gap, Log, LogLine

PAGE_CHUNKS: Final = 32
"""Chunks read at once; a chunk holds at most the lines of one event."""
Line = str
"""JSON array of phase, time and text; after them `CLIPPED`, where the engine dropped lines."""
CLIPPED: Final = "clipped"
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


_UPDATE_LOG: Final = (
    update(LOGS)
    .where(LOGS.c.build_id == bindparam("_build_id"), LOGS.c.attempt == bindparam("_attempt"))
    .values({column.name: bindparam(f"_{column.name}") for column in LOGS.c})
)
_LOAD_LOGS: Final = select(LOGS).where(LOGS.c.build_id.in_(bindparam("_builds", expanding=True)))


@dataclass(slots=True)
class LogRow:
    """A row of `r2d_logs`."""

    build_id: str
    attempt: int
    lines: int = 0
    kept: int = 0
    head_bytes: int = 0
    tail_bytes: int = 0
    cut_first: int | None = None
    cut_last: int | None = None

    def is_cut(self, number: int) -> bool:
        """Return whether a line is among those that were cut."""
        return self.cut_first is not None and self.cut_first <= number <= (self.cut_last or 0)

    def count(self, chunk: "Chunk", sign: int) -> None:
        """Add a chunk to the counts (`sign` 1), or subtract it (-1)."""
        self.kept += sign * len(chunk.lines)
        if self.cut_first is None or chunk.first < self.cut_first:
            self.head_bytes += sign * chunk.bytes
        else:
            self.tail_bytes += sign * chunk.bytes


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines."""

    first: int
    lines: list[Line]

    @property
    def last(self) -> int:
        """Return the number of the last line."""
        return self.first + len(self.lines) - 1

    @cached_property
    def bytes(self) -> int:
        """Return the bytes that its lines take."""
        return sum(map(weight, self.lines))


def as_line(line: LogLine) -> Line:
    """Return a line as it is stored."""
    # Two of the texts have nothing to escape, and there are many lines.
    more = f',"{CLIPPED}"' if line.clipped else ""
    return f'["{line.phase}","{line.ts.isoformat()}",{_encode(clean(line.text))}{more}]'


def weight(line: Line) -> int:
    """Return the bytes that a line takes in the database."""
    return (len(line) if line.isascii() else len(line.encode())) + 1


def runs(lines: Iterable[tuple[int, Line]]) -> list[Chunk]:
    """Return numbered lines as chunks of consecutive lines."""
    ordered = sorted(lines, key=itemgetter(0))
    grouped = groupby(enumerate(ordered), key=lambda item: item[1][0] - item[0])
    found = ([numbered for _, numbered in group] for _, group in grouped)
    return [Chunk(run[0][0], [line for _, line in run]) for run in found]


class LogWriter:
    """Writes the lines of one attempt, within a transaction."""

    def __init__(self, connection: Statements, log: LogRow, *, limit: int) -> None:
        """Take the log's row, and how many bytes of it to keep."""
        self._connection = connection
        self._log = log
        self._half = limit // 2
        self._limit = limit
        self._here = and_(CHUNKS.c.build_id == log.build_id, CHUNKS.c.attempt == log.attempt)

    async def new_chunks(self, events: Sequence[Log | Gap]) -> list[Chunk]:
        """Return the lines that are not stored yet."""
        log = self._log
        new: dict[int, Line] = {}
        for event in events:
            if isinstance(event, Gap):
                log.lines = max(log.lines, event.last + 1)
                continue
            for number, line in enumerate(event.lines, event.n):
                if number not in new and not log.is_cut(number):
                    new[number] = as_line(line)
        if new:
            await self._drop_known(new)
        return [piece for run in runs(new.items()) for piece in self._pieces(run)]

    async def count(self, chunks: list[Chunk]) -> None:
        """Count chunks that have been inserted, then cut what exceeds the limit."""
        for chunk in chunks:
            self._log.lines = max(self._log.lines, chunk.last + 1)
            self._log.count(chunk, 1)
        if chunks:
            await self._cut()

    def _pieces(self, run: Chunk) -> list[Chunk]:
        """Split a run into chunks small enough to be read and cut one at a time."""
        size = 500
        return [
            Chunk(run.first + start, run.lines[start : start + size])
            for start in range(0, len(run.lines), size)
        ]

    async def _drop_known(self, new: dict[int, Line]) -> None:
        lowest, highest = min(new), max(new)
        if lowest >= self._log.lines:
            return  # the usual case: they follow everything that is stored
        overlapping = select(CHUNKS.c.first, CHUNKS.c.last).where(
            self._here, CHUNKS.c.last >= lowest, CHUNKS.c.first <= highest
        )
        for first, last in await self._connection.execute(overlapping):
            for number in range(max(first, lowest), min(last, highest) + 1):
                new.pop(number, None)

    def rows(self, chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
        """Return chunks as rows."""
        return [
            {
                "build_id": self._log.build_id,
                "attempt": self._log.attempt,
                "first": chunk.first,
                "last": chunk.last,
                "bytes": chunk.bytes,
                "lines": EncodedJson(f"[{','.join(chunk.lines)}]"),
            }
            for chunk in chunks
        ]

    async def _cut(self) -> None:
        log = self._log
        if log.cut_first is None:
            if log.head_bytes <= self._limit:
                return
            await self._begin_cut()
        while log.head_bytes > self._half and (chunk := await self._next_to("head")):
            await self._shorten(chunk, "head")
        while log.tail_bytes > self._half and (chunk := await self._next_to("tail")):
            await self._shorten(chunk, "tail")

    async def _begin_cut(self) -> None:
        """Fix the end of the head. Everything after it becomes the tail, of which nothing is cut yet."""
        log, room = self._log, self._half
        index = select(CHUNKS.c.last, CHUNKS.c.bytes).where(self._here).order_by(CHUNKS.c.last)
        for last, size in (await self._connection.execute(index)).all():
            if size > room:
                chunk = await self._load(last)
                break
            room -= size
        else:
            raise AssertionError("more than all is no more than half")
        fitting = _fitting(chunk.lines, room)
        log.cut_first, log.cut_last = chunk.first + fitting, chunk.first + fitting - 1
        await self._replace(chunk, *_split(chunk, fitting))
        total, log.head_bytes = log.head_bytes, self._half - room + sum(map(weight, chunk.lines[:fitting]))
        log.tail_bytes = total - log.head_bytes

    async def _load(self, last: int) -> Chunk:
        found = select(CHUNKS.c.first, CHUNKS.c.lines).where(self._here, CHUNKS.c.last == last)
        return _stored((await self._connection.execute(found)).one())

    async def _next_to(self, side: str) -> Chunk | None:
        """Return the chunk that borders the cut on that side."""
        found = select(CHUNKS.c.first, CHUNKS.c.lines).where(self._here).limit(1)
        if side == "head":
            found = found.where(CHUNKS.c.last < self._log.cut_first).order_by(CHUNKS.c.last.desc())
        else:
            found = found.where(CHUNKS.c.last > self._log.cut_last).order_by(CHUNKS.c.last)
        row = (await self._connection.execute(found)).first()
        return None if row is None else _stored(row)

    async def _shorten(self, chunk: Chunk, side: str) -> None:
        """Remove the lines of a chunk that exceed the limit, all of them if need be."""
        log = self._log
        log.count(chunk, -1)
        if side == "head":
            kept, _ = _split(chunk, _fitting(chunk.lines, self._half - log.head_bytes))
            await self._replace(chunk, kept)
            log.count(kept, 1)
            log.cut_first = kept.last + 1
        else:
            fitting = _fitting(chunk.lines[::-1], self._half - log.tail_bytes)
            _, kept = _split(chunk, len(chunk.lines) - fitting)
            await self._replace(chunk, kept)
            log.cut_last = kept.first - 1
            log.count(kept, 1)

    async def _replace(self, chunk: Chunk, *others: Chunk) -> None:
        await self._connection.execute(delete(CHUNKS).where(self._here, CHUNKS.c.last == chunk.last))
        if rows := self.rows(other for other in others if other.lines):
            await self._connection.execute(insert(CHUNKS), rows)


def _stored(row: Any) -> Chunk:
    first, lines = row
    return Chunk(first, [_encode(line) for line in lines])


def _fitting(lines: Iterable[Line], room: int) -> int:
    """Return how many lines, counted from the first, fit into `room` bytes."""
    number = 0
    for line in lines:
        room -= weight(line)
        if room < 0:
            break
        number += 1
    return number


def _split(chunk: Chunk, number: int) -> tuple[Chunk, Chunk]:
    return Chunk(chunk.first, chunk.lines[:number]), Chunk(chunk.first + number, chunk.lines[number:])


async def write_logs(
    connection: Statements, events_by_log: dict[tuple[str, int], list[Log | Gap]], *, limit: int
) -> None:
    """Store lines, given by build and attempt, with one statement for each table. Their builds must exist."""
    if not events_by_log:
        return
    builds = {build_id for build_id, _ in events_by_log}
    rows = await connection.execute(_LOAD_LOGS, {"_builds": list(builds)})
    known = {(row["build_id"], row["attempt"]): dict(row) for row in rows.mappings()}
    logs = [LogRow(**known[key]) if key in known else LogRow(*key) for key in events_by_log]
    writers = [LogWriter(connection, log, limit=limit) for log in logs]
    chunks = [
        await writer.new_chunks(events)
        for writer, events in zip(writers, events_by_log.values(), strict=True)
    ]
    if new := [row for writer, found in zip(writers, chunks, strict=True) for row in writer.rows(found)]:
        await connection.execute(insert(CHUNKS), new)
    for writer, found in zip(writers, chunks, strict=True):
        await writer.count(found)
    await _write_rows(connection, logs, known)


async def _write_rows(
    connection: Statements, logs: Iterable[LogRow], known: dict[tuple[str, int], dict[str, Any]]
) -> None:
    rows = {(log.build_id, log.attempt): row_values(log) for log in logs}
    if new := [row for key, row in rows.items() if key not in known]:
        await connection.execute(insert(LOGS), new)
    if changed := [row for key, row in rows.items() if key in known and row != known[key]]:
        await connection.execute(
            _UPDATE_LOG, [{f"_{name}": value for name, value in row.items()} for row in changed]
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """Consecutive stored lines."""

    first: int
    lines: list[LogLine]

    @property
    def last(self) -> int:
        """Return the number of the last line."""
        return self.first + len(self.lines) - 1


async def kept_lines(
    database: Database, build_id: str, attempt: int, *, first: int = 0, last: int | None = None
) -> AsyncGenerator[Kept, None]:
    """Yield the stored lines `first` to `last`. No transaction stays open while a slow reader takes its time."""
    after = first - 1
    while True:
        page = await _page(database, build_id, attempt, after=after, last=last)
        for row in page:
            chunk = _within(row, first, last)
            if chunk.lines:
                yield chunk
        if len(page) < PAGE_CHUNKS:
            return
        after = page[-1]["last"]


async def _page(
    database: Database, build_id: str, attempt: int, *, after: int, last: int | None
) -> Sequence[RowMapping]:
    wanted = (
        select(CHUNKS.c.first, CHUNKS.c.last, CHUNKS.c.lines)
        .where(CHUNKS.c.build_id == build_id, CHUNKS.c.attempt == attempt, CHUNKS.c.last > after)
        .order_by(CHUNKS.c.last)
        .limit(PAGE_CHUNKS)
    )
    if last is not None:
        wanted = wanted.where(CHUNKS.c.first <= last)
    async with database.reading() as connection:
        return (await connection.execute(wanted)).mappings().all()


def _within(row: RowMapping, first: int, last: int | None) -> Kept:
    start = max(first - row["first"], 0)
    end = len(row["lines"]) if last is None else last + 1 - row["first"]
    lines: list[Any] = row["lines"][start:end]
    read = [
        LogLine(phase=phase, ts=datetime.fromisoformat(ts), text=text, clipped=CLIPPED in more or None)
        for phase, ts, text, *more in lines
    ]
    return Kept(row["first"] + start, read)
