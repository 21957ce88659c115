"""A stream yields every item and a sign of life during silence; a slow reader holds its source up."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.hub.web.keepalive import AHEAD, with_keepalive

pytestmark = pytest.mark.looptime


class Source:
    """Items with pauses before them."""

    def __init__(self, *items: tuple[float, int], error: Exception | None = None) -> None:
        self._items = items
        self._error = error
        self.given = 0
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for pause, item in self._items:
                await asyncio.sleep(pause)
                self.given += 1
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


async def test_every_item_comes_once_and_in_order() -> None:
    source = Source(*((n % 3, n) for n in range(50)))
    assert [item async for item in with_keepalive(source.items(), 10.0)] == list(range(50))
    assert source.is_closed


async def test_none_comes_whenever_nothing_has_for_that_long() -> None:
    now = asyncio.get_running_loop().time
    came = [(now(), item) async for item in with_keepalive(Source((4, 1), (7, 2), (25, 3)).items(), 10.0)]
    assert [item for _, item in came] == [1, 2, None, None, 3]
    assert [round(at) for at, _ in came] == [4, 11, 21, 31, 36]


async def test_the_items_before_an_error_come_before_it() -> None:
    source, came = Source((0, 1), (0, 2), error=BrokerUnavailable("gone")), []

    async def read() -> None:
        async for item in with_keepalive(source.items(), 10.0):
            await asyncio.sleep(1)
            came.append(item)

    with pytest.raises(BrokerUnavailable):
        await read()
    assert came == [1, 2]


async def test_a_reader_that_stops_reading_is_not_read_for() -> None:
    source = Source(*((0, n) for n in range(1000)))
    items = with_keepalive(source.items(), 10.0)
    await anext(items)
    await asyncio.sleep(100)
    assert source.given <= AHEAD + 1
    assert [item async for item in items] == list(range(1, 1000))


async def test_a_reader_that_leaves_closes_the_source() -> None:
    source = Source((0, 1), (1000, 2))
    items = with_keepalive(source.items(), 10.0)
    assert await anext(items) == 1
    await items.aclose()
    assert source.is_closed
