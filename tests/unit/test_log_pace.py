"""A lone line leaves at once; batches grow with the rate of messages and with the time that RabbitMQ takes."""

import asyncio

import pytest

from rabbit2docker.consumer.following.pace import LONGEST_SECONDS, SHORTEST_SECONDS, LogPace

pytestmark = pytest.mark.looptime


async def pauses_of(builds: int, *, seconds: float = 10.0, publishing: float = 0.001) -> list[float]:
    """Return the pauses of builds that always have another line, once the rate is settled."""
    pace, found = LogPace(), []

    async def write() -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while loop.time() < ends:
            await asyncio.sleep(publishing)
            pause = pace.pause_after(publishing)
            if loop.time() > ends - seconds / 2:
                found.append(pause)
            await asyncio.sleep(pause)

    await asyncio.gather(*(write() for _ in range(builds)))
    return found


async def test_one_busy_build_waits_as_briefly_as_possible() -> None:
    assert max(await pauses_of(1)) < 2 * SHORTEST_SECONDS


async def test_the_more_builds_write_the_longer_each_waits_for_others() -> None:
    few, more, many = [max(await pauses_of(builds)) for builds in (1, 10, 100)]
    assert few < more < many <= LONGEST_SECONDS


async def test_messages_grow_slower_than_the_builds_that_write() -> None:
    one, sixteen = len(await pauses_of(1)), len(await pauses_of(16))
    assert sixteen < 10 * one


async def test_a_build_waits_as_long_as_rabbitmq_takes() -> None:
    assert min(await pauses_of(1, publishing=0.1)) == 0.1
    assert max(await pauses_of(1, publishing=5.0, seconds=100)) == LONGEST_SECONDS


async def test_after_silence_the_pause_is_short_again() -> None:
    pace = LogPace()
    for _ in range(1000):
        pace.pause_after(0.001)
    assert pace.pause_after(0.001) == LONGEST_SECONDS
    await asyncio.sleep(30)
    assert pace.pause_after(0.001) == SHORTEST_SECONDS
