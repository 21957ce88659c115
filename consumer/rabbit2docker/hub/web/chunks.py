"""The newest chunks of a stream, by number and by the position of a viewer. No I/O."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Generic, TypeVar

MAX_PIECE_BYTES: Final = 64 * 1024
"""Chunks that are sent in one go; a single chunk may be larger."""
CHUNK_BYTES: Final = 500
"""Approximate memory of a chunk beside its bytes."""

CursorT = TypeVar("CursorT")


@dataclass(frozen=True)
class Piece:
    """Bytes for any number of viewers."""

    plain: bytes

    @cached_property
    def framed(self) -> bytes:
        """Return the bytes as one chunk of HTTP/1.1, made once for all."""
        return b"%x\r\n%b\r\n" % (len(self.plain), self.plain)


@dataclass(slots=True)
class _Chunk(Generic[CursorT]):
    data: bytes
    before: str
    after: CursorT

    @property
    def weight(self) -> int:
        return CHUNK_BYTES + len(self.data)


class ChunkBuffer(Generic[CursorT]):
    """The newest chunks. Each is between two positions; the str() of a position names it."""

    def __init__(self, start: CursorT) -> None:
        """Start empty, at a position."""
        self.first = 0
        """Number of the oldest chunk that is still there."""
        self._chunks: deque[_Chunk[CursorT]] = deque()
        self._weight = 0
        self._last = str(start)
        self._numbers = {self._last: 0}
        """Number of the first chunk after a position."""
        self._piece: tuple[int, int, Piece] = (0, 0, Piece(b""))

    @property
    def end(self) -> int:
        """Return the number of the next chunk."""
        return self.first + len(self._chunks)

    def number_of(self, position: str) -> int | None:
        """Return the number of the chunk that follows a position; None if it is not there."""
        return self._numbers.get(position)

    def is_full(self, limit: int) -> bool:
        """Return whether chunks have to go before another one comes."""
        return self._weight > limit

    def append(self, data: bytes, after: CursorT) -> None:
        """Append a chunk, which leads to the position `after`."""
        chunk = _Chunk(data, self._last, after)
        self._chunks.append(chunk)
        self._weight += chunk.weight
        self._last = str(after)
        self._numbers.setdefault(self._last, self.end)

    def shrink(self, limit: int, before: int) -> None:
        """Drop the oldest chunks, with numbers less than `before`, while all weigh more than `limit`."""
        while self._weight > limit and self.first < before:
            self._drop()

    def _drop(self) -> None:
        chunk = self._chunks.popleft()
        self._weight -= chunk.weight
        self.first += 1
        if str(chunk.after) == chunk.before:  # as with a place in the queue
            self._numbers[chunk.before] = self.first
        else:
            del self._numbers[chunk.before]

    def piece(self, number: int, end: int) -> tuple[Piece, int, CursorT]:
        """Return the chunks from `number` on, before `end`, as far as they fit in one go; their end and position."""
        start, stop, piece = self._piece
        if start != number or not number < stop <= end:
            stop, size = number, 0
            while stop < end and (stop == number or size + len(self._at(stop).data) <= MAX_PIECE_BYTES):
                size += len(self._at(stop).data)
                stop += 1
            piece = Piece(b"".join(self._at(each).data for each in range(number, stop)))
            self._piece = (number, stop, piece)
        return piece, stop, self._at(stop - 1).after

    def _at(self, number: int) -> _Chunk[CursorT]:
        return self._chunks[number - self.first]
