"""The client library for a hub's own code: builds, requests and many readers, on a real RabbitMQ."""

from contextlib import AsyncExitStack, aclosing

import pytest

from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.client import BuildEvents, build_events, feed
from rabbit2docker.settings import Settings
from rabbit2docker_schemas import ids, routing
from rabbit2docker_schemas.events import Gap
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.client_events import (
    BUILD,
    REQUEST,
    Reader,
    accepted,
    completed,
    kinds,
    lines,
    numbers,
    progress,
    publish,
    rejected,
)
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker


class TestBuild:
    async def test_a_build_is_streamed_live_from_the_answer_to_its_one_end(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        whole = [accepted(), progress("one"), lines(0, 3), lines(3, 2), completed(count=5)]
        async with BuildEvents(settings.amqp) as events:
            of_request, of_build = Reader(events.of_request("r")), Reader(events.of_build(BUILD))
            for count, event in enumerate(whole, 1):
                await publish(publisher, event)
                await of_request.has(count)
                await of_build.has(count)
            for reader in (of_request, of_build):
                assert [event.id for event in await reader.to_the_end()] == [event.id for event in whole]

    async def test_a_reader_that_starts_in_the_middle_gets_all_from_the_beginning(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        await publish(publisher, accepted(), lines(0, 3), progress("one"), lines(3, 2))
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await reader.has(4)
            await publish(publisher, lines(5, 2), completed(count=7))
            received = await reader.to_the_end()
        assert kinds(received) == ["accepted", "log", "progress", "log", "log", "completed"]
        assert numbers(received) == list(range(7))

    async def test_a_reader_that_starts_after_the_end_gets_all_of_it(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        other = ids.build_id_of("default", "other")
        await publish(publisher, accepted(), lines(0, 3), lines(0, 9, build_id=other), completed(count=3))
        await publish(publisher, completed(build_id=other))
        async with BuildEvents(settings.amqp) as events:
            for one in (events.of_request("r"), events.of_build(BUILD), events.of(BUILD), events.of("r")):
                assert kinds(await Reader(one).to_the_end()) == ["accepted", "log", "completed"]

    async def test_repeated_and_overlapping_events_are_yielded_once(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 3), accepted(), lines(1, 4), progress("one"))
            await publish(
                publisher, lines(0, 3), progress("one"), lines(5, 1), completed(count=6), completed()
            )
            received = await reader.to_the_end()
        assert kinds(received) == ["accepted", "log", "log", "progress", "log", "completed"]
        assert numbers(received) == list(range(6))

    async def test_lines_that_overtook_others_are_yielded_in_order(
        self, settings: Settings, publisher: ConfirmedPublisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Each is confirmed before the next one, which may take longer than a reader waits for lines that are missing.
        monkeypatch.setattr(feed, "HOLE_SECONDS", PATIENCE)
        disordered = [lines(0, 2), lines(6, 2), completed(count=8), lines(4, 2), lines(2, 2)]
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, *disordered)
            live = await reader.to_the_end()
            late = await Reader(events.of_build(BUILD)).to_the_end()
        for received in (live, late):
            assert numbers(received) == list(range(8))
            assert kinds(received)[-1] == "completed"
            assert "gap" not in kinds(received)

    async def test_lines_that_are_under_way_when_a_reader_begins_are_not_taken_for_lost(
        self, settings: Settings, publisher: ConfirmedPublisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feed, "HOLE_SECONDS", PATIENCE)
        async with BuildEvents(settings.amqp) as events:
            await publish(publisher, lines(0, 2), lines(6, 2), completed(count=8))
            reader = Reader(events.of_build(BUILD))
            await eventually(lambda: numbers(reader.events) == [0, 1])
            await publish(publisher, lines(4, 2), lines(2, 2))
            received = await reader.to_the_end()
        assert numbers(received) == list(range(8))
        assert "gap" not in kinds(received)

    async def test_lost_lines_are_yielded_as_a_gap(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, lines(0, 2), lines(5, 1), completed(count=9))
            received = await reader.to_the_end()
        gaps = [(event.data.first, event.data.last) for event in received if isinstance(event.data, Gap)]
        assert gaps == [(2, 4), (6, 8)]
        assert kinds(received) == ["log", "gap", "log", "gap", "completed"]

    async def test_an_unknown_id_is_waited_for(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_request("unknown")), Reader(events.of_request("r"))]
            await publish(publisher, accepted(), completed())
            await readers[1].to_the_end()
            assert not readers[0].task.done()
            assert readers[0].events == []
            await readers[0].stop()


class TestRequests:
    async def test_a_rejection_ends_the_events_live_and_late(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await publish(publisher, rejected())
            assert kinds(await reader.to_the_end()) == ["rejected"]
            assert kinds(await Reader(events.of_request("r")).to_the_end()) == ["rejected"]

    async def test_a_request_that_joins_a_build_gets_all_of_it(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        await publish(publisher, accepted(), lines(0, 3))
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("joins"))
            await publish(publisher, accepted("joins", BUILD))
            await reader.has(3)
            await publish(publisher, lines(3, 1), completed(count=4))
            received = await reader.to_the_end()
        assert numbers(received) == list(range(4))
        assert kinds(received)[-1] == "completed"

    async def test_events_of_a_submitted_request_begin_with_its_submission(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """An earlier build with the same request id, whose end has the same event id, is another one."""
        await publish(publisher, accepted(), lines(0, 3), completed(count=3))
        async with BuildEvents(settings.amqp) as events:
            assert await events.submit(REQUEST.model_copy(update={"request_id": "r"})) == "r"
            reader = Reader(events.of_request("r"))
            await publish(publisher, rejected(reason=RejectReason.REQUEST_ID_REUSED))
            assert kinds(await reader.to_the_end()) == ["rejected"]
        await eventually(lambda: rabbitmq.depth(vhost, routing.REQUESTS_QUEUE) == 1)

    async def test_a_reader_is_not_ended_by_the_rejection_of_another_request_with_its_id(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await publish(publisher, accepted(), lines(0, 1), rejected(reason=RejectReason.REQUEST_ID_REUSED))
            await publish(publisher, lines(1, 1), completed(count=2))
            received = await reader.to_the_end()
        assert numbers(received) == [0, 1]
        assert kinds(received)[-1] == "completed"

    async def test_a_request_without_an_id_gets_one_and_a_cancel_message_is_published(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            first, second = await events.submit(REQUEST), await events.submit(REQUEST)
            assert first != second
            await events.cancel(first, by="ada")
        await eventually(lambda: rabbitmq.depth(vhost, routing.REQUESTS_QUEUE) == 2)
        await eventually(lambda: rabbitmq.depth(vhost, routing.CANCEL_QUEUE) == 1)


class TestManyReaders:
    async def test_two_hundred_readers_of_one_build_share_one_queue(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await publish(publisher, accepted(), lines(0, 5))
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_request("r")) for _ in range(200)]
            await readers[-1].has(2)
            queues = rabbitmq.api("GET", f"queues/{vhost}")
            assert len([queue for queue in queues if queue["name"].startswith("hub.")]) == 1
            await publish(publisher, *(lines(n, 5) for n in range(5, 100, 5)), completed(count=100))
            for reader in readers:
                assert numbers(await reader.to_the_end()) == list(range(100))

    async def test_many_builds_are_replayed_at_the_same_time(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        builds = {f"r{number}": ids.build_id_of("default", f"r{number}") for number in range(150)}
        for request_id, build_id in builds.items():
            await publish(publisher, accepted(request_id, build_id), lines(0, 2, build_id=build_id))
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_build(build_id)) for build_id in builds.values() for _ in range(2)]
            for build_id in builds.values():
                await publish(
                    publisher, lines(2, 2, build_id=build_id), completed(build_id=build_id, count=4)
                )
            for reader in readers:
                assert numbers(await reader.to_the_end()) == [0, 1, 2, 3]

    async def test_a_slow_reader_delays_no_other_and_misses_nothing(
        self, settings: Settings, publisher: ConfirmedPublisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The buffer holds a fraction of the log."""
        monkeypatch.setattr(build_events, "MAX_FEED_BYTES", 50_000)
        monkeypatch.setattr(build_events, "MIN_FEED_BYTES", 50_000)
        async with BuildEvents(settings.amqp) as events, AsyncExitStack() as stack:
            slow = await stack.enter_async_context(aclosing(events.of_build(BUILD)))
            quick = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            received = [await anext(slow)]
            for first in range(0, 2000, 20):
                await publish(publisher, lines(first, 20, size=100))
            await publish(publisher, completed(count=2000))
            assert numbers(await quick.to_the_end()) == list(range(2000))
            [feed] = events._feeds.values()
            assert feed._buffer.weight <= 50_000
            assert feed._buffer.first > 50
            received += [event async for event in slow]
        assert numbers(received) == list(range(2000))
        assert kinds(received)[-1] == "completed"
        assert "gap" not in kinds(received)

    async def test_a_build_without_readers_takes_no_memory(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_build(BUILD)) for _ in range(3)]
            await publish(publisher, accepted())
            for reader in readers:
                await reader.has(1)
                await reader.stop()
            assert not events._feeds
            assert not events._feeds_by_key
