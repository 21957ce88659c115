"""The client library across outages of RabbitMQ and of the hub that uses it."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import Settings
from rabbit2docker_schemas import ids, routing
from tests.behaviour.conftest import ImportUsers
from tests.support.broker import with_amqp
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
    through_proxy,
)
from tests.support.ports import free_port
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker


class TestOutages:
    @pytest.mark.parametrize("name", [None, "default"])
    async def test_a_lost_connection_loses_no_event(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        rabbitmq: RabbitMQ,
        vhost: str,
        name: str | None,
    ) -> None:
        async with (
            through_proxy(settings, rabbitmq, vhost) as (amqp, proxy),
            BuildEvents(amqp, name=name) as events,
        ):
            reader = Reader(events.of_request("r"))
            await publish(publisher, accepted())
            for number in range(30):
                await publish(publisher, progress(f"step {number}"), lines(number * 2, 2))
                if number in (10, 20):
                    await eventually(lambda: len(reader.events) > 5)
                    proxy.cut()
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, progress("while disconnected"), lines(60, 1), completed(count=61))
            proxy.refuse(False)
            received = await reader.to_the_end()
        assert numbers(received) == list(range(61))
        assert kinds(received).count("progress") == 31
        assert kinds(received)[-1] == "completed"

    async def test_an_end_published_while_disconnected_is_yielded(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with through_proxy(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            await reader.has(1)
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, completed())
            proxy.refuse(False)
            assert kinds(await reader.to_the_end()) == ["accepted", "completed"]

    async def test_a_silent_connection_is_detected_and_no_event_is_lost(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with through_proxy(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 2))
            await reader.has(2)
            proxy.black_hole()
            late = Reader(events.of_build(ids.build_id_of("default", "other")))
            await publish(publisher, lines(2, 2), completed(count=4))
            link = events.history._connection
            await eventually(lambda: not link.is_connected)
            proxy.cut()
            proxy.flow()
            assert numbers(await reader.to_the_end()) == [0, 1, 2, 3]
            await publish(publisher, completed(build_id=ids.build_id_of("default", "other")))
            assert kinds(await late.to_the_end()) == ["completed"]

    @pytest.mark.parametrize("name", [None, "default"])
    @pytest.mark.xdist_group("mortal-rabbitmq")
    async def test_a_broker_that_is_killed_and_restarted_loses_no_event(
        self, name: str | None, mortal_rabbitmq: RabbitMQ
    ) -> None:
        vhost = mortal_rabbitmq.new_vhost()
        amqp = mortal_rabbitmq.settings(vhost)
        settings = Settings(amqp=amqp)
        await declare.declare(settings)
        async with (
            publishing(settings, wait_seconds=180) as publisher,
            BuildEvents(amqp, name=name) as events,
        ):
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted(), lines(0, 3))
            await reader.has(2)
            await asyncio.to_thread(mortal_rabbitmq.kill)
            await asyncio.to_thread(mortal_rabbitmq.start_again)
            await asyncio.wait_for(publish(publisher, lines(3, 3), completed(count=6)), PATIENCE)
            received = await reader.to_the_end()
        assert numbers(received) == list(range(6))
        assert kinds(received)[-1] == "completed"

    async def test_a_broker_that_starts_late_is_waited_for(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with through_proxy(settings, rabbitmq, vhost) as (amqp, proxy):
            proxy.refuse(True)
            events = BuildEvents(amqp)
            entering = asyncio.create_task(events.__aenter__())
            await asyncio.sleep(1)
            assert not entering.done()
            proxy.refuse(False)
            await asyncio.wait_for(entering, PATIENCE)
            await events.__aexit__(None, None, None)

    async def test_permanent_errors_are_raised(
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

    async def test_closing_raises_broker_unavailable_in_readers(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, accepted())
            await reader.has(1)
        with pytest.raises(BrokerUnavailable):
            await reader.to_the_end()


class TestHub:
    async def test_a_hub_that_was_away_gets_the_events_of_that_time(
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
            await publish(publisher, completed())
            await eventually(lambda: "completed" in kinds(reader.events))
            await reader.stop()
        assert [kind for kind in kinds(reader.events) if kind != "accepted"] == [
            "progress",
            "log",
            "completed",
        ]

    async def test_a_hub_that_was_away_for_days_gets_from_the_stream_what_its_queue_dropped(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with BuildEvents(settings.amqp, name="default"):
            pass
        moment = datetime.now(UTC)
        await publish(publisher, accepted(), *(lines(n, 1) for n in range(50)))
        queue = f"queues/{vhost}/{routing.hub_queue('default')}"
        # A bounded queue without a reader drops its oldest messages.
        taken = rabbitmq.api(
            "POST", f"{queue}/get", {"count": 40, "ackmode": "ack_requeue_false", "encoding": "auto"}
        )
        assert len(taken) == 40
        await publish(publisher, completed(count=50))
        async with BuildEvents(settings.amqp, name="default") as events:
            received = await Reader(events.of_request("r")).to_the_end()
            assert numbers(received) == list(range(50))
            everything = Reader(events.all(since=moment))
            await eventually(lambda: "completed" in kinds(everything.events))
            await everything.stop()
        assert sorted(set(numbers(everything.events))) == list(range(50))

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    async def test_a_hubs_name_belongs_to_one_program_at_a_time(
        self, settings: Settings, publisher: ConfirmedPublisher, queue_type: str
    ) -> None:
        amqp = with_amqp(settings, hub_queue_type=queue_type).amqp
        first = BuildEvents(amqp, name="default")
        await first.__aenter__()
        second = BuildEvents(amqp, name="default")
        entering = asyncio.create_task(second.__aenter__())
        await asyncio.sleep(1)
        assert not entering.done()
        await first.__aexit__(None, None, None)
        await asyncio.wait_for(entering, PATIENCE)
        await second.__aexit__(None, None, None)

    async def test_all_yields_every_event_of_the_tenant_and_none_of_others(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        both = settings.model_copy(update={"tenants": ["default", "one"]})
        await declare.declare(both)
        async with BuildEvents(settings.amqp, "one") as events:
            everything, build = Reader(events.all()), Reader(events.of_build(BUILD))
            await asyncio.sleep(0)
            for event in (accepted(), lines(0, 1), completed(count=1)):
                await publish(publisher, event, replace(event, tenant="one"))
            received = await build.to_the_end()
            await everything.has(3)
            await everything.stop()
        assert {event.tenant for event in [*received, *everything.events]} == {"one"}
        assert kinds(everything.events) == ["accepted", "log", "completed"]

    async def test_a_reader_of_all_builds_misses_nothing_when_the_connection_is_lost(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with through_proxy(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            reader = Reader(events.all())
            await publish(publisher, accepted())
            await reader.has(1)
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, lines(0, 1), completed(count=1))
            proxy.refuse(False)
            await reader.has(3)
            await publish(publisher, progress("later"))
            await reader.has(4)
            await reader.stop()
        assert sorted(kinds(reader.events)) == ["accepted", "completed", "log", "progress"]

    async def test_history_ends_with_the_present(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            history = events.history
            assert [event async for event in history.so_far("unknown")] == []
            await publish(publisher, accepted(), lines(0, 2), lines(1, 3))
            received = [event async for event in history.so_far("r")]
            assert (kinds(received), numbers(received)) == (["accepted", "log", "log"], [0, 1, 2, 3])
            hour_ago = datetime.now(UTC) - timedelta(hours=1)
            assert len([event async for event in history.since(hour_ago)]) == 3

    async def test_the_shipped_permissions_are_enough(
        self, publisher: ConfirmedPublisher, import_users: ImportUsers
    ) -> None:
        url = import_users("default").url("hub-default")
        for name in (None, "default"):
            async with BuildEvents(url, name=name, wait_seconds=180) as events:
                request_id = await events.submit(REQUEST)
                reader = Reader(events.of_request(request_id))
                await publish(publisher, rejected(request_id))
                assert kinds(await reader.to_the_end()) == ["rejected"]
                assert kinds(await Reader(events.of_request(request_id)).to_the_end()) == ["rejected"]
                assert [event async for event in events.history.so_far(request_id)]
