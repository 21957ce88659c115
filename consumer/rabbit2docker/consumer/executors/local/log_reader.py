"""Reading of a builder's log, whose i-th line of text is the line numbered i unless the file is damaged."""

import os
from pathlib import Path
from typing import Final

from rabbit2docker.consumer.executors.base import BuilderLine, Lines, MissingLines
from rabbit2docker.consumer.executors.builder_io import parse_line

BATCH_LINES: Final = 1000
BATCH_BYTES: Final = 256 * 1024
"""Limits of one read, so that a backlog of any length takes little memory and delays no other reader."""
_CHUNK: Final = 1 << 20


class LogReader:
    """A position in one log. Methods block and are called in threads, one at a time."""

    def __init__(self, path: Path, *, after: int) -> None:
        """Start after the line numbered `after`."""
        self._path = path
        self._next = after + 1
        self._offset = 0
        # Line `after` itself is read: its number proves that counting led to the right offset.
        self._to_skip = max(0, after)
        self._checked = after < 0
        self._damaged = 0

    def read(self) -> list[Lines]:
        """Return the next lines; an empty list only if there are none yet.

        A line without its newline is not complete. Raises FileNotFoundError if the log is gone.
        """
        # Opened anew each time: a cancelled reader leaves no file open, and idle readers hold none.
        file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not self._skip(file):
                return []
            while True:
                raw = self._read_whole_lines(file)
                if not raw:
                    return []
                if found := self._parse(raw):
                    return found
        finally:
            os.close(file)

    def missing_at_end(self, count: int | None) -> MissingLines | None:
        """Return the lines missing at the end of a finished log, None if it is complete.

        `count` is the number of lines that the builder counted, None if it wrote no result.
        """
        last = (count if count is not None else self._next + self._damaged) - 1
        return MissingLines(self._next, last) if last >= self._next else None

    def _skip(self, file: int) -> bool:
        """Go to the first wanted line by counting newlines; False if it has not been written yet."""
        while self._to_skip:
            chunk = os.pread(file, _CHUNK, self._offset)
            count = chunk.count(b"\n")
            if count == 0 and len(chunk) < _CHUNK:
                return False
            if count <= self._to_skip:
                # An incomplete line at the end is read again later.
                self._offset += chunk.rfind(b"\n") + 1 if count else len(chunk)
                self._to_skip -= count
                continue
            end = -1
            for _ in range(self._to_skip):
                end = chunk.index(b"\n", end + 1)
            self._offset += end + 1
            self._to_skip = 0
        return True

    def _read_whole_lines(self, file: int) -> list[bytes]:
        """Return complete lines and move past them."""
        size = BATCH_BYTES
        while True:
            chunk = os.pread(file, size, self._offset)
            end = chunk.rfind(b"\n")
            if end >= 0:
                break
            if len(chunk) < size:
                return []
            size *= 2  # a damaged file: the builder's lines are far shorter
        raw = chunk[: end + 1].split(b"\n", BATCH_LINES)
        rest = raw.pop()
        self._offset += end + 1 - len(rest)
        return raw

    def _parse(self, raw: list[bytes]) -> list[Lines]:
        found: list[Lines] = []
        batch: list[BuilderLine] = []
        for data in raw:
            line = parse_line(data)
            if line is None:
                self._damaged += 1
                continue
            if line.n > self._next:
                if not self._checked:
                    # Lines are missing before this one, so that counting led too far: read all from the start.
                    self._offset, self._checked, self._damaged = 0, True, 0
                    return []
                if batch:
                    found.append(batch)
                    batch = []
                found.append(MissingLines(self._next, line.n - 1))
            self._checked = True
            if line.n >= self._next:
                batch.append(line)
                self._next, self._damaged = line.n + 1, 0
        if batch:
            found.append(batch)
        return found
