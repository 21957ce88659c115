"""The change feed that all executors share."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from rabbit2docker.consumer.executors.base import Attempt, Change, Changed, Removed, Synced
from rabbit2docker.consumer.executors.change_feed import ChangeFeed
from tests.support.records import an_attempt


def reading(feed: ChangeFeed) -> aclosing[AsyncGenerator[Change, None]]:
    return aclosing(cast("AsyncGenerator[Change, None]", feed.read()))


async def next_changes(changes: AsyncIterator[Change], count: int) -> list[Change]:
    return [await anext(changes) for _ in range(count)]


def a_changed_attempt(attempt: Attempt) -> Attempt:
    return attempt.model_copy(update={"waiting_for": "a node"})


async def test_a_reader_gets_every_record_then_synced_then_later_changes() -> None:
    one, two = an_attempt("build-1"), an_attempt("build-2")
    feed = ChangeFeed(lambda: [one, two])
    async with reading(feed) as changes:
        assert await next_changes(changes, 3) == [Changed(one), Changed(two), Synced()]
        feed.publish(a_changed_attempt(one))
        feed.publish_removed(two.name)
        assert await next_changes(changes, 2) == [Changed(a_changed_attempt(one)), Removed(two.name)]


async def test_a_snapshot_equal_to_the_last_one_is_not_delivered_again() -> None:
    one, two = an_attempt("build-1"), an_attempt("build-2")
    feed = ChangeFeed(lambda: [one])
    async with reading(feed) as changes:
        assert await next_changes(changes, 2) == [Changed(one), Synced()]
        feed.publish(one)
        feed.publish(two)
        feed.publish(two)
        feed.publish(a_changed_attempt(two))
        feed.publish(two)
        expected = [Changed(two), Changed(a_changed_attempt(two)), Changed(two)]
        assert await next_changes(changes, 3) == expected


async def test_a_record_created_again_after_its_removal_is_delivered_again() -> None:
    one = an_attempt("build-1")
    feed = ChangeFeed(lambda: [one])
    async with reading(feed) as changes:
        await next_changes(changes, 2)
        feed.publish_removed(one.name)
        feed.publish(one)
        assert await next_changes(changes, 2) == [Removed(one.name), Changed(one)]


async def test_changes_published_without_a_reader_are_in_the_snapshots_of_the_next_one() -> None:
    records = [an_attempt("build-1")]
    feed = ChangeFeed(lambda: records)
    feed.publish(records[0])
    feed.publish_removed(records[0].name)
    async with reading(feed) as changes:
        assert await next_changes(changes, 2) == [Changed(records[0]), Synced()]


async def test_a_second_reader_ends_the_first() -> None:
    one = an_attempt("build-1")
    feed = ChangeFeed(lambda: [one])
    async with reading(feed) as first, reading(feed) as second:
        await next_changes(first, 2)
        assert await next_changes(second, 2) == [Changed(one), Synced()]
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        feed.publish(a_changed_attempt(one))
        assert await anext(second) == Changed(a_changed_attempt(one))


async def test_closing_the_feed_ends_its_reader_after_what_was_delivered() -> None:
    feed = ChangeFeed(list)
    async with reading(feed) as changes:
        await next_changes(changes, 1)
        feed.publish(an_attempt("build-1"))
        feed.close()
        assert [change async for change in changes] == [Changed(an_attempt("build-1"))]


async def test_snapshots_are_taken_once_the_feed_is_ready() -> None:
    ready, records = asyncio.Event(), list[Attempt]()
    feed = ChangeFeed(lambda: records, ready=ready.wait)
    async with reading(feed) as changes:
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not first.done()
        records.append(an_attempt("build-1"))
        ready.set()
        assert await first == Changed(records[0])
