"""What a hub's own code may rely on, on a real RabbitMQ that breaks as real ones do."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.topology import as_definitions, make_topology
from rabbit2docker.client import BuildEvents, build_events
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas import ids, routing
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Completed, Gap, Log, LogLine, Phase, Progress, Rejected
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker

REQUEST = BuildRequest(provider="gh", spec="owner/repository/HEAD")
BUILD = ids.build_id_of("default", "r")


def accepted(request_id: str = "r", build_id: str = BUILD) -> Event:
    data = Accepted(
        request_id=request_id,
        build_id=build_id,
        build_name="b",
        provider="gh",
        spec=REQUEST.spec,
        resolved_ref="0",
        repo_url="https://example.org/r",
        image="i:0",
        attached=build_id != ids.build_id_of("default", request_id),
    )
    return Event(ids.request_event_id("default", request_id, "accepted"), "default", datetime.now(UTC), data)


def rejected(request_id: str = "r", reason: RejectReason = RejectReason.NOT_ALLOWED) -> Event:
    data = Rejected(request_id=request_id, reason=reason, message="No.")
    return Event(ids.request_event_id("default", request_id, "rejected"), "default", datetime.now(UTC), data)


def progress(about: str, build_id: str = BUILD) -> Event:
    data = Progress(build_id=build_id, attempt=1, phase=Phase.BUILDING, message=about)
    return Event(ids.progress_event_id(build_id, 1, about), "default", datetime.now(UTC), data)


def lines(first: int, count: int, *, build_id: str = BUILD, size: int = 0) -> Event:
    told = [
        LogLine(phase=Phase.BUILDING, text=f"line {n}".ljust(size), ts=datetime.now(UTC))
        for n in range(first, first + count)
    ]
    data = Log(build_id=build_id, attempt=1, n=first, lines=told)
    event_id = ids.lines_event_id(build_id, 1, first, first + count - 1, "log")
    return Event(event_id, "default", datetime.now(UTC), data)


def the_end(*, build_id: str = BUILD, count: int | None = None) -> Event:
    data = Completed(
        build_id=build_id, image="i:0", digest="sha256:0", resolved_ref="0", attempt=1, lines=count
    )
    return Event(ids.terminal_event_id(build_id), "default", datetime.now(UTC), data)


def numbers(events: list[Event]) -> list[int]:
    return [
        number
        for event in events
        if isinstance(event.data, Log)
        for number in range(event.data.n, event.data.n + len(event.data.lines))
    ]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind.value for event in events]


class Reader:
    """Collects events in a task of its own."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.told: list[Event] = []
        self._events = events
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._events):
            async for event in self._events:
                self.told.append(event)

    async def to_the_end(self) -> list[Event]:
        await asyncio.wait_for(self.task, PATIENCE)
        return self.told

    async def has(self, count: int) -> None:
        await eventually(lambda: self.task.done() or len(self.told) >= count)
        assert len(self.told) >= count, self.task.exception()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[ConfirmedPublisher]:
    """What the service does its publishing with."""
    await declare.declare(settings)
    async with publishing(settings, wait_seconds=60) as found:
        yield found


async def publish(publisher: ConfirmedPublisher, *events: Event) -> None:
    for event in events:
        await publisher.publish(event)


@asynccontextmanager
async def cut_off(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> AsyncIterator[tuple[AmqpSettings, Proxy]]:
    """Settings for a connection that can be cut."""
    async with Proxy(rabbitmq.port) as proxy:
        url = rabbitmq.url(vhost, port=proxy.port)
        yield AmqpSettings.model_validate({**settings.amqp.model_dump(), "url": url}), proxy


class TestOneBuild:
    async def test_a_build_is_told_live_from_the_answer_to_its_one_end(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        whole = [accepted(), progress("one"), lines(0, 3), lines(3, 2), the_end(count=5)]
        async with BuildEvents(settings.amqp) as events:
            of_request, of_build = Reader(events.of_request("r")), Reader(events.of_build(BUILD))
            for count, event in enumerate(whole, 1):
                await publish(publisher, event)
                await of_request.has(count)
                await of_build.has(count)
            for reader in (of_request, of_build):
                assert [event.id for event in await reader.to_the_end()] == [event.id for event in whole]

    async def test_a_reader_who_comes_in_the_middle_has_all_from_the_beginning(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        await publish(publisher, accepted(), lines(0, 3), progress("one"), lines(3, 2))
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await reader.has(4)
            await publish(publisher, lines(5, 2), the_end(count=7))
            told = await reader.to_the_end()
        assert kinds(told) == ["accepted", "log", "progress", "log", "log", "completed"]
        assert numbers(told) == list(range(7))

    async def test_a_reader_who_comes_after_the_end_has_all_of_it(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        other = ids.build_id_of("default", "other")
        await publish(publisher, accepted(), lines(0, 3), lines(0, 9, build_id=other), the_end(count=3))
        await publish(publisher, the_end(build_id=other))
        async with BuildEvents(settings.amqp) as events:
            for told in (events.of_request("r"), events.of_build(BUILD), events.of(BUILD), events.of("r")):
                assert kinds(await Reader(told).to_the_end()) == ["accepted", "log", "completed"]

    async def test_repetitions_and_overlaps_are_told_once(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 3), accepted(), lines(1, 4), progress("one"))
            await publish(publisher, lines(0, 3), progress("one"), lines(5, 1), the_end(count=6), the_end())
            told = await reader.to_the_end()
        assert kinds(told) == ["accepted", "log", "log", "progress", "log", "completed"]
        assert numbers(told) == list(range(6))

    async def test_lines_that_overtook_others_are_told_in_order(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        disordered = [lines(0, 2), lines(6, 2), the_end(count=8), lines(4, 2), lines(2, 2)]
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, *disordered)
            live = await reader.to_the_end()
            late = await Reader(events.of_build(BUILD)).to_the_end()
        for told in (live, late):
            assert numbers(told) == list(range(8))
            assert kinds(told)[-1] == "completed"
            assert "gap" not in kinds(told)

    async def test_lines_that_are_nowhere_are_told_as_a_gap(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, lines(0, 2), lines(5, 1), the_end(count=9))
            told = await reader.to_the_end()
        gaps = [(event.data.first, event.data.last) for event in told if isinstance(event.data, Gap)]
        assert gaps == [(2, 4), (6, 8)]
        assert kinds(told) == ["log", "gap", "log", "gap", "completed"]

    async def test_an_unknown_id_waits(self, settings: Settings, publisher: ConfirmedPublisher) -> None:
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_request("nobody")), Reader(events.of_request("r"))]
            await publish(publisher, accepted(), the_end())
            await readers[1].to_the_end()
            assert not readers[0].task.done()
            assert readers[0].told == []
            await readers[0].stop()


class TestRequests:
    async def test_a_rejection_is_an_end_live_and_late(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await publish(publisher, rejected())
            assert kinds(await reader.to_the_end()) == ["rejected"]
            assert kinds(await Reader(events.of_request("r")).to_the_end()) == ["rejected"]

    async def test_of_a_build_that_was_joined_everything_is_told(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        await publish(publisher, accepted(), lines(0, 3))
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("joins"))
            await publish(publisher, accepted("joins", BUILD))
            await reader.has(3)
            await publish(publisher, lines(3, 1), the_end(count=4))
            told = await reader.to_the_end()
        assert numbers(told) == list(range(4))
        assert kinds(told)[-1] == "completed"

    async def test_what_was_asked_for_is_told_from_then_on(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        """An earlier build of the same request id, whose end has the same id, is not taken for this one's."""
        await publish(publisher, accepted(), lines(0, 3), the_end(count=3))
        async with BuildEvents(settings.amqp) as events:
            assert await events.submit(REQUEST.model_copy(update={"request_id": "r"})) == "r"
            reader = Reader(events.of_request("r"))
            await publish(publisher, rejected(reason=RejectReason.REQUEST_ID_REUSED))
            assert kinds(await reader.to_the_end()) == ["rejected"]
        await eventually(lambda: rabbitmq.depth(vhost, routing.REQUESTS_QUEUE) == 1)

    async def test_who_follows_a_build_is_not_sent_away_by_a_stranger_with_the_same_id(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_request("r"))
            await publish(publisher, accepted(), lines(0, 1), rejected(reason=RejectReason.REQUEST_ID_REUSED))
            await publish(publisher, lines(1, 1), the_end(count=2))
            told = await reader.to_the_end()
        assert numbers(told) == [0, 1]
        assert kinds(told)[-1] == "completed"

    async def test_a_request_without_an_id_gets_one_and_a_cancel_message_goes_out(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            first, second = await events.submit(REQUEST), await events.submit(REQUEST)
            assert first != second
            await events.cancel(first, by="ada")
        await eventually(lambda: rabbitmq.depth(vhost, routing.REQUESTS_QUEUE) == 2)
        await eventually(lambda: rabbitmq.depth(vhost, routing.CANCEL_QUEUE) == 1)


class TestBadDays:
    @pytest.mark.parametrize("name", [None, "default"])
    async def test_a_connection_that_is_lost_loses_nothing(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        rabbitmq: RabbitMQ,
        vhost: str,
        name: str | None,
    ) -> None:
        async with (
            cut_off(settings, rabbitmq, vhost) as (amqp, proxy),
            BuildEvents(amqp, name=name) as events,
        ):
            reader = Reader(events.of_request("r"))
            await publish(publisher, accepted())
            for number in range(30):
                await publish(publisher, progress(f"step {number}"), lines(number * 2, 2))
                if number in (10, 20):
                    await eventually(lambda: len(reader.told) > 5)
                    proxy.cut()
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, progress("while nobody listened"), lines(60, 1), the_end(count=61))
            proxy.refuse(False)
            told = await reader.to_the_end()
        assert numbers(told) == list(range(61))
        assert kinds(told).count("progress") == 31
        assert kinds(told)[-1] == "completed"

    async def test_the_end_is_told_although_it_came_while_nobody_listened(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with cut_off(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            await reader.has(1)
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, the_end())
            proxy.refuse(False)
            assert kinds(await reader.to_the_end()) == ["accepted", "completed"]

    async def test_a_black_hole_is_noticed_and_nothing_is_lost(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with cut_off(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 2))
            await reader.has(2)
            proxy.black_hole()
            late = Reader(events.of_build(ids.build_id_of("default", "other")))
            await publish(publisher, lines(2, 2), the_end(count=4))
            link = events.history._connection
            await eventually(lambda: not link.is_connected)
            proxy.cut()
            proxy.flow()
            assert numbers(await reader.to_the_end()) == [0, 1, 2, 3]
            await publish(publisher, the_end(build_id=ids.build_id_of("default", "other")))
            assert kinds(await late.to_the_end()) == ["completed"]

    @pytest.mark.parametrize("name", [None, "default"])
    @pytest.mark.xdist_group("mortal-rabbitmq")
    async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
        self, name: str | None, mortal_rabbitmq: RabbitMQ
    ) -> None:
        vhost = mortal_rabbitmq.new_vhost()
        amqp = AmqpSettings.model_validate(
            {
                "url": mortal_rabbitmq.url(vhost),
                "management_url": mortal_rabbitmq.management_url,
                "heartbeat": 5,
            }
        )
        settings = Settings(amqp=amqp)
        await declare.declare(settings)
        async with (
            publishing(settings, wait_seconds=60) as publisher,
            BuildEvents(amqp, name=name) as events,
        ):
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 3))
            await reader.has(2)
            await asyncio.to_thread(mortal_rabbitmq.kill)
            await asyncio.to_thread(mortal_rabbitmq.start_again)
            await asyncio.wait_for(publish(publisher, lines(3, 3), the_end(count=6)), PATIENCE)
            told = await reader.to_the_end()
        assert numbers(told) == list(range(6))
        assert kinds(told)[-1] == "completed"

    async def test_a_broker_that_starts_late_is_waited_for(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with cut_off(settings, rabbitmq, vhost) as (amqp, proxy):
            proxy.refuse(True)
            events = BuildEvents(amqp)
            entering = asyncio.create_task(events.__aenter__())
            await asyncio.sleep(1)
            assert not entering.done()
            proxy.refuse(False)
            await asyncio.wait_for(entering, PATIENCE)
            await events.__aexit__(None, None, None)

    async def test_what_makes_no_sense_to_wait_for_is_said(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        with pytest.raises(TopologyMismatch, match="topology declare"):
            async with BuildEvents(settings.amqp):
                pass
        await declare.declare(settings)
        with pytest.raises(AccessRefused, match="check user and password"):
            async with BuildEvents(rabbitmq.url(vhost, user="guest:wrong")):
                pass
        with pytest.raises(BrokerUnavailable):
            async with BuildEvents(f"amqp://127.0.0.1:{free_port()}/", wait_seconds=0.5):
                pass
        async with BuildEvents(settings.amqp, "other") as events:
            with pytest.raises(TopologyMismatch, match="topology declare"):
                await anext(events.of_request("r"))

    async def test_readers_are_told_when_the_connection_is_closed_under_them(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            await reader.has(1)
        with pytest.raises(BrokerUnavailable):
            await reader.to_the_end()


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
            await publish(publisher, *(lines(n, 5) for n in range(5, 100, 5)), the_end(count=100))
            for reader in readers:
                assert numbers(await reader.to_the_end()) == list(range(100))

    async def test_many_builds_are_caught_up_at_the_same_time(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        builds = [ids.build_id_of("default", f"r{number}") for number in range(150)]
        for build_id in builds:
            await publish(publisher, lines(0, 2, build_id=build_id))
        async with BuildEvents(settings.amqp) as events:
            readers = [Reader(events.of_build(build_id)) for build_id in builds for _ in range(2)]
            for build_id in builds:
                await publish(publisher, lines(2, 2, build_id=build_id), the_end(build_id=build_id, count=4))
            for reader in readers:
                assert numbers(await reader.to_the_end()) == [0, 1, 2, 3]

    async def test_a_slow_reader_keeps_nobody_waiting_and_misses_nothing(
        self, settings: Settings, publisher: ConfirmedPublisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is kept in memory is a fraction of the log."""
        monkeypatch.setattr(build_events, "MAX_FEED_BYTES", 50_000)
        monkeypatch.setattr(build_events, "MIN_FEED_BYTES", 50_000)
        async with BuildEvents(settings.amqp) as events, AsyncExitStack() as stack:
            slow = await stack.enter_async_context(aclosing(events.of_build(BUILD)))
            quick = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            told = [await anext(slow)]
            for first in range(0, 2000, 20):
                await publish(publisher, lines(first, 20, size=100))
            await publish(publisher, the_end(count=2000))
            assert numbers(await quick.to_the_end()) == list(range(2000))
            [story] = events._feeds.values()
            assert story._buffer.weight <= 50_000
            assert story._buffer.first > 50
            told += [event async for event in slow]
        assert numbers(told) == list(range(2000))
        assert kinds(told)[-1] == "completed"
        assert "gap" not in kinds(told)

    async def test_nothing_is_kept_of_a_build_that_nobody_reads(
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


class TestHubs:
    async def test_a_hub_that_was_away_is_told_what_happened_meanwhile(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp, name="default") as events:
            reader = Reader(events.all())
            await publish(publisher, accepted())
            await reader.has(1)
            await reader.stop()
        await publish(publisher, progress("one"), lines(0, 1))
        async with BuildEvents(settings.amqp, name="default") as events:
            reader = Reader(events.all())
            await publish(publisher, the_end())
            await eventually(lambda: "completed" in kinds(reader.told))
            await reader.stop()
        assert [kind for kind in kinds(reader.told) if kind != "accepted"] == ["progress", "log", "completed"]

    async def test_a_hub_that_was_away_for_days_finds_in_the_stream_what_its_queue_has_dropped(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with BuildEvents(settings.amqp, name="default"):
            pass
        moment = datetime.now(UTC)
        await publish(publisher, accepted(), *(lines(n, 1) for n in range(50)))
        queue = f"queues/{vhost}/{routing.hub_queue('default')}"
        # What a bounded queue drops while nobody reads it: the oldest.
        taken = rabbitmq.api(
            "POST", f"{queue}/get", {"count": 40, "ackmode": "ack_requeue_false", "encoding": "auto"}
        )
        assert len(taken) == 40
        await publish(publisher, the_end(count=50))
        async with BuildEvents(settings.amqp, name="default") as events:
            told = await Reader(events.of_request("r")).to_the_end()
            assert numbers(told) == list(range(50))
            everything = Reader(events.all(since=moment))
            await eventually(lambda: "completed" in kinds(everything.told))
            await everything.stop()
        assert sorted(set(numbers(everything.told))) == list(range(50))

    async def test_a_hubs_name_belongs_to_one_program_at_a_time(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        first = BuildEvents(settings.amqp, name="default")
        await first.__aenter__()
        second = BuildEvents(settings.amqp, name="default")
        entering = asyncio.create_task(second.__aenter__())
        await asyncio.sleep(1)
        assert not entering.done()
        await first.__aexit__(None, None, None)
        await asyncio.wait_for(entering, PATIENCE)
        await second.__aexit__(None, None, None)

    async def test_everything_of_the_tenant_is_told_and_nothing_of_others(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        both = settings.model_copy(update={"tenants": ["default", "one"]})
        await declare.declare(both)
        async with BuildEvents(settings.amqp, "one") as events:
            everything, build = Reader(events.all()), Reader(events.of_build(BUILD))
            await asyncio.sleep(0)
            for event in (accepted(), lines(0, 1), the_end(count=1)):
                await publish(publisher, event, replace(event, tenant="one"))
            told = await build.to_the_end()
            await everything.has(3)
            await everything.stop()
        assert {event.tenant for event in [*told, *everything.told]} == {"one"}
        assert kinds(everything.told) == ["accepted", "log", "completed"]

    async def test_a_reader_of_everything_misses_nothing_when_the_connection_is_lost(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with cut_off(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.all())
            await publish(publisher, accepted())
            await reader.has(1)
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, lines(0, 1), the_end(count=1))
            proxy.refuse(False)
            await reader.has(3)
            await publish(publisher, progress("later"))
            await reader.has(4)
            await reader.stop()
        assert sorted(kinds(reader.told)) == ["accepted", "completed", "log", "progress"]

    async def test_the_past_is_told_without_waiting(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            history = events.history
            assert [event async for event in history.so_far("nobody")] == []
            await publish(publisher, accepted(), lines(0, 2), lines(1, 3))
            told = [event async for event in history.so_far("r")]
            assert (kinds(told), numbers(told)) == (["accepted", "log", "log"], [0, 1, 2, 3])
            hour_ago = datetime.now(UTC) - timedelta(hours=1)
            assert len([event async for event in history.since(hour_ago)]) == 3

    async def test_the_permissions_that_are_shipped_are_enough(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        definitions = as_definitions(make_topology(["default"]), vhost=vhost)
        definitions.pop("vhosts")
        rabbitmq.api("POST", "definitions", definitions)
        rabbitmq.api("PUT", "users/hub-default", {"password": "hub-default", "tags": ""})
        url = rabbitmq.url(vhost, user="hub-default:hub-default")
        for name in (None, "default"):
            async with BuildEvents(url, name=name, wait_seconds=20) as events:
                asked = await events.submit(REQUEST)
                reader = Reader(events.of_request(asked))
                await publish(publisher, rejected(asked))
                assert kinds(await reader.to_the_end()) == ["rejected"]
                assert kinds(await Reader(events.of_request(asked)).to_the_end()) == ["rejected"]
                assert [event async for event in events.history.so_far(asked)]
