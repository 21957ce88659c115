"""One stream for many viewers: all get everything, one that does not read holds up none, and others get their turn."""

import asyncio
from asyncio import Future
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.hub.web.broadcast import (
    COMMENT,
    MAX_BYTES,
    SLICE,
    Broadcast,
    Broadcasts,
    End,
    Subscriber,
)
from rabbit2docker.hub.web.chunks import CHUNK_BYTES, MAX_PIECE_BYTES, ChunkBuffer, Piece
from rabbit2docker.hub.web.outlet import Outlet

pytestmark = pytest.mark.looptime


class Numbers:
    """A stream of numbered chunks; the position is the number of the next one."""

    def __init__(self, start: int = 0) -> None:
        self.result = ""
        self.given = start
        self.opened = 0
        self._waiting: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def position(self) -> int:
        return self.given

    async def chunks(self, keepalive_seconds: float | None = None) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        while (chunk := await self._waiting.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            self.given += 1
            yield chunk
        self.result = "ready"

    def say(self, *chunks: bytes | Exception | None) -> None:
        for chunk in chunks:
            self._waiting.put_nowait(chunk)


class Ear:
    """A connection: it takes everything, or nothing from when it is deaf until it hears again."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_deaf = False
        self._rest: Future[None] | None = None

    @property
    def text(self) -> bytes:
        return b"".join(self.pieces)

    def write(self, piece: Piece) -> "Future[None] | None":
        assert self._rest is None or self._rest.done(), "written to while the rest was on its way"
        self.pieces.append(piece.plain)
        self._rest = asyncio.get_running_loop().create_future() if self.is_deaf else None
        return self._rest

    def hear_again(self) -> None:
        self.is_deaf = False
        assert self._rest is not None
        self._rest.set_result(None)


class Crowd:
    """Subscribers of one broadcast."""

    def __init__(
        self, numbers: Numbers, *, stalled_seconds: float = 60, keepalive_seconds: float = 25
    ) -> None:
        self.broadcasts = Broadcasts(keepalive_seconds=keepalive_seconds, stalled_seconds=stalled_seconds)
        self.broadcast: Broadcast[int] = self.broadcasts.start("build", numbers)
        self._stack = ExitStack()

    def join(self, count: int, *, at: int = 0) -> list[tuple[Ear, Subscriber[int]]]:
        number = self.broadcast.number_of(at)
        assert number is not None
        return [self._join(Ear(), number, at) for _ in range(count)]

    def _join(self, ear: Ear, number: int, at: int) -> tuple[Ear, Subscriber[int]]:
        subscribed = self.broadcast.subscribed(cast(Outlet, ear), number, at)
        return ear, self._stack.enter_context(subscribed)

    async def leave(self) -> None:
        self._stack.close()
        await self.broadcasts.leave("build", self.broadcast)


async def test_all_viewers_get_every_chunk_and_the_end_of_a_stream_that_is_read_once() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    viewers = crowd.join(3 * SLICE + 1)
    numbers.say(b"a", b"b")
    await asyncio.sleep(1)
    numbers.say(b"c", None)
    ends = {await viewer.ended for _, viewer in viewers}
    assert {ear.text for ear, _ in viewers} == {b"abc"}
    assert (ends, crowd.broadcast.result, numbers.opened) == ({End.OVER}, "ready", 1)
    await crowd.leave()


async def test_a_viewer_that_comes_later_gets_what_follows_its_position() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    crowd.join(1)
    numbers.say(b"a", b"b", b"c")
    await asyncio.sleep(1)
    [(early, _), (late, _)] = [*crowd.join(1, at=0), *crowd.join(1, at=2)]
    numbers.say(b"d")
    await asyncio.sleep(1)
    assert (early.text, late.text) == (b"abcd", b"cd")
    assert crowd.broadcast.number_of(7) is None
    await crowd.leave()


async def test_a_viewer_that_does_not_read_holds_up_none_and_later_reads_by_itself_from_its_position() -> (
    None
):
    numbers = Numbers()
    crowd = Crowd(numbers, stalled_seconds=1e6)
    [(quick, _), (deaf, lost)] = crowd.join(2)
    deaf.is_deaf = True
    for _ in range(10):
        numbers.say(b"x" * (MAX_BYTES // 4))
        await asyncio.sleep(1)
    assert len(quick.text) == 10 * (MAX_BYTES // 4)
    deaf.hear_again()
    assert await lost.ended is End.BEHIND
    assert lost.cursor == len(deaf.pieces) == 1
    await crowd.leave()


async def test_a_viewer_that_reads_slowly_goes_on_with_what_it_has_not_got() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    [(slow, viewer)] = crowd.join(1)
    slow.is_deaf = True
    numbers.say(b"a")
    await asyncio.sleep(1)
    numbers.say(b"b", b"c", None)
    await asyncio.sleep(1)
    assert (slow.text, viewer.ended.done()) == (b"a", False)
    slow.hear_again()
    assert await viewer.ended is End.OVER
    assert slow.text == b"abc"
    await crowd.leave()


async def test_a_stream_whose_viewers_all_do_not_read_is_not_read_ahead() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers, stalled_seconds=1e6)
    viewers = crowd.join(2)
    for ear, _ in viewers:
        ear.is_deaf = True
    numbers.say(*(b"x" * 1000 for _ in range(10_000)))
    await asyncio.sleep(10)
    assert numbers.given < 2 * MAX_BYTES / 1000
    for ear, _ in viewers:
        ear.hear_again()
    await asyncio.sleep(10)
    assert [len(ear.text) for ear, _ in viewers] == [10_000_000, 10_000_000]
    await crowd.leave()


async def test_a_viewer_that_reads_nothing_for_a_minute_has_stalled() -> None:
    numbers, began = Numbers(), asyncio.get_running_loop().time()
    crowd = Crowd(numbers, stalled_seconds=60)
    [(quick, reading), (deaf, stalled)] = crowd.join(2)
    deaf.is_deaf = True
    numbers.say(b"a")
    assert await stalled.ended is End.STALLED
    assert round(asyncio.get_running_loop().time() - began) == 60
    assert (quick.text.replace(COMMENT.plain, b""), reading.ended.done()) == (b"a", False)
    await crowd.leave()


async def test_silence_is_filled_with_comments_for_all_that_have_everything() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers, keepalive_seconds=25, stalled_seconds=1e6)
    [(one, _), (other, _), (deaf, _)] = crowd.join(3)
    deaf.is_deaf = True
    await asyncio.sleep(20)
    numbers.say(b"a")
    await asyncio.sleep(24)
    assert one.text == other.text == deaf.text == b"a"
    await asyncio.sleep(52)
    assert one.text == other.text == b"a" + 3 * COMMENT.plain
    assert deaf.text == b"a"
    await crowd.leave()


async def test_others_get_their_turn_while_thousands_are_written_to() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    viewers, turns = crowd.join(5000), 0
    numbers.say(b"a")
    while not viewers[-1][0].pieces:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 5000 / SLICE
    await crowd.leave()


async def test_what_comes_during_a_round_is_sent_in_one_piece_in_the_next() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    viewers = crowd.join(5 * SLICE)
    numbers.say(b"a")
    while not viewers[0][0].pieces:  # noqa: ASYNC110 - until the round has begun, and no longer
        await asyncio.sleep(0)
    numbers.say(b"b", b"c")
    await asyncio.sleep(1)
    assert {tuple(ear.pieces) for ear, _ in viewers} == {(b"a", b"bc")}
    await crowd.leave()


async def test_the_error_that_ends_a_stream_reaches_all_viewers_and_the_next_one_starts_anew() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    viewers = crowd.join(3)
    numbers.say(b"a", BrokerUnavailable("gone"))
    assert {await viewer.ended for _, viewer in viewers} == {End.OVER}
    assert {ear.text for ear, _ in viewers} == {b"a"}
    for _ in viewers:
        with pytest.raises(BrokerUnavailable):
            crowd.broadcast.raise_error()
    assert crowd.broadcasts.find("build") is None
    assert crowd.broadcast.number_of(1) is None
    await crowd.leave()


async def test_a_broadcast_ends_with_its_last_viewer() -> None:
    numbers = Numbers()
    crowd = Crowd(numbers)
    crowd.join(2)
    await crowd.broadcasts.leave("build", crowd.broadcast)
    assert crowd.broadcasts.find("build") is crowd.broadcast
    await crowd.leave()
    assert crowd.broadcasts.find("build") is None


class TestChunkBuffer:
    def test_a_position_is_known_as_long_as_the_chunk_after_it_is_there(self) -> None:
        buffer = ChunkBuffer(0)
        for number in range(4):
            buffer.append(b"x", number + 1)
        buffer.shrink(2 * (CHUNK_BYTES + 1), before=4)
        assert [buffer.number_of(str(position)) for position in range(5)] == [None, None, 2, 3, 4]

    def test_chunks_that_not_a_single_viewer_has_got_are_not_dropped(self) -> None:
        buffer = ChunkBuffer(0)
        for number in range(4):
            buffer.append(b"x", number + 1)
        buffer.shrink(0, before=1)
        assert (buffer.first, buffer.end, buffer.is_full(0)) == (1, 4, True)

    def test_chunks_that_do_not_move_the_position_follow_it(self) -> None:
        buffer = ChunkBuffer("p")
        for text, position in ((b"1", "p"), (b"2", "p"), (b"3", "q")):
            buffer.append(text, position)
        assert buffer.number_of("p") == 0
        buffer.shrink(2 * (CHUNK_BYTES + 1), before=3)
        assert buffer.number_of("p") == 1
        buffer.shrink(0, before=3)
        assert (buffer.number_of("p"), buffer.number_of("q")) == (None, 3)

    def test_a_piece_is_as_much_as_is_sent_at_once_and_made_once(self) -> None:
        buffer: ChunkBuffer[int] = ChunkBuffer(0)
        for number in range(4):
            buffer.append(b"x" * (MAX_PIECE_BYTES // 2), number + 1)
        piece, end, position = buffer.piece(0, 4)
        assert (len(piece.plain), end, position) == (MAX_PIECE_BYTES, 2, 2)
        assert buffer.piece(0, 4)[0] is piece
        assert buffer.piece(0, 1)[1:] == (1, 1)
        assert buffer.piece(3, 4)[1:] == (4, 4)

    def test_a_piece_has_the_frame_of_a_chunk_in_http(self) -> None:
        piece: Any = Piece(b"x" * 26)
        assert piece.framed == b"1a\r\n" + b"x" * 26 + b"\r\n"
        assert piece.framed is piece.framed
