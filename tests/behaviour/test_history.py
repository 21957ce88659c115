"""The past of builds in streams of any size, on a real RabbitMQ: silence is never the end."""

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import AsyncMock

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.stream import StreamReader
from rabbit2docker.cli.overview import BuildRow, newest_rows, rows, rows_of
from rabbit2docker.client import BuildEvents, History
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Phase, Progress
from rabbit2docker_schemas.ids import EventId
from rabbit2docker_schemas.routing import tenant_index, tenant_stream
from tests.support.client_events import (
    BUILD,
    Reader,
    accepted,
    completed,
    kinds,
    lines,
    numbers,
    progress,
    publish,
    through_proxy,
)
from tests.support.histories import build_events, build_of, interleaved, name_of, publish_all
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

DAY = timedelta(days=1)


async def past(history: History, id_: str) -> list[Event]:
    return [event async for event in history.so_far(id_)]


async def listed(history: History, limit: int = 50) -> list[BuildRow]:
    return await newest_rows(history, datetime.now(UTC) - DAY, lambda row: True, limit)


class TestRunning:
    async def test_the_state_of_a_running_build_costs_the_same_however_long_the_stream_is(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, looked_through: Counter[str]
    ) -> None:
        """One that has been silent since before 2,600 events of others, one of which the newest events are."""
        monkeypatch.setattr("rabbit2docker.client.history.LATEST_WINDOWS", (50, 400))
        await declare.declare(settings)
        silent, talking = build_of(1000), build_of(1001)
        await publish_all(settings.amqp, [*list(build_events(1000))[:6], *list(build_events(1001))[:2]])
        await publish_all(settings.amqp, [progress("pushing", silent, phase=Phase.PUSHING)])
        others = await publish_all(settings.amqp, interleaved(map(build_events, range(200))))
        await publish_all(settings.amqp, [lines(0, 7, build_id=talking), progress("4/5", talking, step=4)])
        async with History(settings.amqp, "default") as history:
            [row] = await rows_of(history.state_of(name_of(1000)))
            assert (row.state, row.message, row.end) == ("pushing", "pushing", None)
            assert looked_through[tenant_stream("default")] <= 450 < others
            looked_through.clear()
            [row] = await rows_of(history.state_of(name_of(1001)))
            assert (row.state, row.message, row.lines) == ("building", "4/5", 7)
            assert looked_through[tenant_stream("default")] <= 50
            looked_through.clear()
            running = [row for row in await listed(history, 300) if row.end is None]
            assert {(row.id, row.state) for row in running} == {(silent, "pushing"), (talking, "building")}
            assert looked_through[tenant_stream("default")] == 0

    async def test_a_build_that_ends_while_its_state_is_read_has_ended(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with History(settings.amqp, "default") as history:
            await publish(publisher, *list(build_events(0))[:5])
            async with aclosing(history.state_of(name_of(0))) as events:
                found = [await anext(events)]
                await publish(publisher, *list(build_events(0))[5:])
                found += [event async for event in events]
        assert rows(found)[0].state == "completed"


class TestLongStream:
    async def test_each_build_is_read_whole_at_the_cost_of_that_build(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """3,900 events of 300 builds, five at a time. Besides the build, a few batches of its neighbours are sent."""
        await declare.declare(settings)
        count = await publish_all(settings.amqp, interleaved(map(build_events, range(300))))
        async with (
            through_proxy(settings, rabbitmq, vhost) as (amqp, proxy),
            History(amqp, "default") as history,
        ):
            for number in (0, 150, 299):
                before = proxy.received_bytes
                events = await past(history, build_of(number))
                assert [event.id for event in events] == [event.id for event in build_events(number)]
                assert proxy.received_bytes - before < 600_000
                before = proxy.received_bytes
                [row] = await rows_of(history.state_of(name_of(number)))
                assert (row.state, row.lines, row.attempt) == ("completed", 20, 1)
                assert proxy.received_bytes - before < 400_000
            before = proxy.received_bytes
            assert [row.id for row in await listed(history)][-3:] == [build_of(n) for n in (297, 298, 299)]
            assert proxy.received_bytes - before < 1_200_000
            before = proxy.received_bytes
            assert len([event async for event in history.since(datetime.now(UTC) - DAY)]) == count
            assert proxy.received_bytes - before > 3_000_000

    async def test_a_late_reader_gets_one_build_out_of_many_live_and_past(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        running = list(build_events(100))
        await publish_all(settings.amqp, interleaved(map(build_events, range(80))))
        await publish_all(settings.amqp, running[:6])
        await publish_all(settings.amqp, interleaved(map(build_events, range(80, 100))))
        async with BuildEvents(settings.amqp) as events:
            late, ended = Reader(events.of_request(name_of(100))), Reader(events.of_build(build_of(7)))
            await late.has(6)
            await publish(publisher, *running[6:])
            assert [event.id for event in await late.to_the_end()] == [event.id for event in running]
            assert [event.id for event in await ended.to_the_end()] == [event.id for event in build_events(7)]

    async def test_the_last_offset_is_exact_however_messages_came(self, settings: Settings) -> None:
        await declare.declare(settings)
        connection = ManagedChannel("test", settings.amqp)
        reader = StreamReader(connection, tenant_stream("default"))
        count = 0
        async with connected(connection, 180):
            assert await reader.last() is None
            for number in range(30):
                count += await publish_all(settings.amqp, build_events(number, logs=1 + 40 * (number % 3)))
                last = await reader.last()
                assert last is not None
                assert last.offset == count - 1
                assert last.filter_value == build_of(number)

    async def test_a_stream_whose_messages_come_late_is_not_taken_for_empty(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await declare.declare(settings)
        connection = ManagedChannel("test", settings.amqp)
        stream = tenant_stream("default")
        reader = StreamReader(connection, stream)
        await publish_all(settings.amqp, build_events(0))
        monkeypatch.setattr("rabbit2docker.amqp.stream.EMPTY_SECONDS", 0.0)
        monkeypatch.setattr("rabbit2docker.amqp.stream.SILENT_SECONDS", 180.0)
        # The channel answers before the stream does, as on a busy machine.
        monkeypatch.setattr("rabbit2docker.amqp.stream._wait_for_answer", AsyncMock())

        async def is_counted() -> bool:
            async with connection.further_channel() as channel:
                queue = await channel.declare_queue(stream, passive=True)
            return bool(queue.declaration_result.message_count)

        async with connected(connection, 180):
            await eventually(is_counted)
            for _ in range(20):
                assert await reader.last() is not None

    async def test_the_last_offset_is_found_while_messages_pour_in(self, settings: Settings) -> None:
        await declare.declare(settings)
        connection = ManagedChannel("test", settings.amqp)
        reader = StreamReader(connection, tenant_stream("default"))
        published = await publish_all(settings.amqp, build_events(0))
        pouring = asyncio.create_task(
            publish_all(settings.amqp, interleaved(map(build_events, range(1, 120))))
        )
        async with connected(connection, 180):
            while not pouring.done():
                last = await reader.last()
                assert last is not None
                assert last.offset >= published - 1
                published = last.offset + 1
            total = 13 + await pouring
            last = await reader.last()
            assert last is not None
            assert last.offset == total - 1


class TestSilence:
    @pytest.mark.parametrize("published", [0, 4])
    async def test_a_pause_of_the_broker_is_waited_out(
        self,
        published: int,
        settings: Settings,
        publisher: ConfirmedPublisher,
        rabbitmq: RabbitMQ,
        vhost: str,
    ) -> None:
        """For longer than a stream may take to answer when it is empty, before reading and in the middle of it."""
        count = await publish_all(settings.amqp, interleaved(map(build_events, range(60))))
        async with (
            through_proxy(settings, rabbitmq, vhost) as (amqp, proxy),
            History(amqp, "default") as history,
        ):
            received = []
            async with aclosing(history.since(datetime.now(UTC) - DAY)) as events:
                if not published:
                    pause(proxy)
                async for event in events:
                    received.append(event)
                    if len(received) == published:
                        pause(proxy)
            assert len(received) == count
            pause(proxy)
            assert len(await past(history, build_of(30))) == 13

    async def test_a_connection_that_is_cut_is_restored_and_nothing_is_missing_or_repeated(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        count = await publish_all(settings.amqp, interleaved(map(build_events, range(120))))
        async with (
            through_proxy(settings, rabbitmq, vhost) as (amqp, proxy),
            History(amqp, "default") as history,
        ):
            received = []
            async with aclosing(history.since(datetime.now(UTC) - DAY)) as events:
                async for event in events:
                    received.append(event.id)
                    if len(received) in (1, 500, 1200):
                        proxy.cut()
            assert len(received) == len(set(received)) == count

    async def test_a_connection_that_does_not_come_back_is_an_error(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        await publish_all(settings.amqp, interleaved(map(build_events, range(30))))
        async with (
            through_proxy(settings, rabbitmq, vhost) as (amqp, proxy),
            History(amqp, "default", reconnect_seconds=0.5) as history,
            aclosing(history.since(datetime.now(UTC) - DAY)) as events,
        ):
            await anext(events)
            proxy.refuse(True)
            proxy.cut()
            with pytest.raises(BrokerUnavailable, match="lost"):
                async for _ in events:
                    pass


def pause(proxy: Proxy) -> None:
    proxy.black_hole()
    asyncio.get_running_loop().call_later(2.5, proxy.flow)


class TestIncomplete:
    async def test_an_empty_stream_has_no_past(self, settings: Settings) -> None:
        await declare.declare(settings)
        async with History(settings.amqp, "default") as history:
            assert await past(history, "r") == []
            assert await listed(history) == []

    async def test_without_an_index_the_stream_is_searched(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("DELETE", f"queues/{vhost}/{tenant_index('default')}")
        await publish_all(settings.amqp, interleaved(map(build_events, range(30))))
        async with History(settings.amqp, "default") as history:
            assert len(await past(history, build_of(11))) == 13
            assert len(await listed(history, 7)) == 7

    async def test_an_index_that_is_younger_than_the_stream_is_not_trusted(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("DELETE", f"queues/{vhost}/{tenant_index('default')}")
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        old = [aged(event, hour_ago) for event in build_events(1)]
        await publish_all(settings.amqp, old)
        await declare.declare(settings)
        await publish_all(settings.amqp, build_events(2))
        async with History(settings.amqp, "default") as history:
            assert len(await past(history, name_of(1))) == 13
            assert {row.id for row in await listed(history)} == {build_of(1), build_of(2)}

    async def test_what_a_stream_has_dropped_is_known_from_the_index(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        small = {
            "x-queue-type": "stream",
            "x-stream-max-segment-size-bytes": 50_000,
            "x-max-length-bytes": 200_000,
            "x-stream-filter-size-bytes": 64,
        }
        path = f"queues/{vhost}/{tenant_stream('default')}"
        rabbitmq.api("PUT", path, {"durable": True, "arguments": small})
        await declare.declare(settings)
        await publish_all(settings.amqp, build_events(1))
        # One after the other: a busy RabbitMQ would put all into one chunk, and drop all of them or nothing.
        async with publishing(settings, wait_seconds=180) as publisher:
            await publish(publisher, *build_events(0, logs=200, size=2000))
        async with History(settings.amqp, "default") as history:
            [row] = await rows_of(history.state_of(build_of(1)))
            assert (row.state, row.lines) == ("completed", 20)
            assert kinds(await past(history, build_of(1))) == ["accepted", "completed"]

            async def beginning_is_dropped() -> list[Event]:  # RabbitMQ removes segments in its own time
                found = await past(history, build_of(0))
                return found if kinds(found)[0] == "gap" else []

            rest = await eventually(beginning_is_dropped)
        assert numbers(rest)[-1] == 399
        assert len(numbers(rest)) < 200


def aged(event: Event, time: datetime) -> Event:
    return replace(event, time=time)


class TestGenerations:
    async def test_a_request_that_waits_is_listed_before_it_is_accepted(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        waiting = Progress(build_id=BUILD, attempt=0, phase=Phase.WAITING, message="GitHub is away.")
        event = Event(EventId("waits"), "default", datetime.now(UTC), waiting)
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.all())
            await publish(publisher, event, progress("a step", step=1))
            await reader.has(2)
            await reader.stop()
            assert reader.events[0].id == "waits"
            [row] = await listed(events.history)
            assert (row.id, row.state) == (BUILD, "waiting")
            await publish(publisher, progress("a phase"))
            [row] = await listed(events.history)
            assert (row.id, row.state) == (BUILD, "building")
            await publish(publisher, accepted(), completed())
            [row] = await listed(events.history)
            assert (row.state, row.requests) == ("completed", ["r"])

    async def test_the_newest_generation_is_shown(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        await publish(publisher, accepted(), lines(0, 9), completed(count=9))
        again = [renamed(accepted(), "2"), renamed(lines(0, 3), "2"), renamed(completed(count=3), "2")]
        await publish(publisher, *again[:2])
        async with History(settings.amqp, "default") as history:
            [row] = await rows_of(history.state_of("r"))
            assert (row.state, row.lines) == ("waiting", 3)
            await publish(publisher, again[2])
            assert [event.id for event in await past(history, "r")] == [event.id for event in again]


def renamed(event: Event, suffix: str) -> Event:
    return replace(event, id=EventId(event.id + suffix))
