"""Renders the lines of a stored log, as text and as JSON."""

import json
from collections.abc import AsyncGenerator

from rabbit2docker.hub.store.models import LogExtent, Record, StoredLine


class LogAnswer(Record):
    """Lines of the log of one attempt."""

    build_id: str
    attempt: int | None = None
    """Absent while the build has written nothing."""
    extent: LogExtent | None = None
    """The part of the log that is stored."""
    lines: list[StoredLine]


class LogWriter:
    """Renders the lines `first` to `last` of one attempt."""

    def __init__(
        self, build_id: str, attempt: int | None, extent: LogExtent | None, first: int, last: int | None
    ) -> None:
        """Take the requested lines, and the extent of what is stored of the attempt."""
        self._build_id = build_id
        self._attempt = attempt
        self._extent = extent
        self._first = first
        self._last = last

    async def text(self, lines: AsyncGenerator[StoredLine, None]) -> AsyncGenerator[str, None]:
        """Yield the lines as they were written, and a remark in place of missing ones."""
        following = self._first
        async for line in lines:
            if line.n > following:
                yield self._missing(following, line.n - 1)
            following = line.n + 1
            yield f"{line.text}\n"
        final = (self._extent.lines if self._extent else 0) - 1
        end = final if self._last is None else min(final, self._last)
        if end >= following:
            yield self._missing(following, end)

    def _missing(self, first: int, last: int) -> str:
        lines = f"line {first} is" if first == last else f"lines {first} to {last} are"
        extent = self._extent
        is_cut = (
            extent is not None
            and extent.cut_first is not None
            and extent.cut_last is not None
            and first <= extent.cut_last
            and last >= extent.cut_first
        )
        return f"[{lines} missing: {'the log is too long to be stored in full' if is_cut else 'lost'}]\n"

    async def json(self, lines: AsyncGenerator[StoredLine, None]) -> AsyncGenerator[str, None]:
        """Yield a LogAnswer, piece by piece."""
        head = LogAnswer(build_id=self._build_id, attempt=self._attempt, extent=self._extent, lines=[])
        yield json.dumps(head.model_dump(mode="json", exclude_none=True, exclude={"lines"}))[:-1]
        yield ', "lines": ['
        separator = ""
        async for line in lines:
            yield separator + line.model_dump_json(exclude_none=True)
            separator = ", "
        yield "]}"
