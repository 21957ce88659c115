"""Readers who join builds that go on: it costs what the build weighs, however much else the tenant's stream holds."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.client import BuildEvents, build_events
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.routing import tenant_index, tenant_stream
from tests.support.client_events import (
    BUILD,
    Reader,
    accepted,
    completed,
    lines,
    numbers,
    publish,
    through_proxy,
)
from tests.support.histories import build_events as events_of
from tests.support.histories import build_of, interleaved, name_of, publish_all
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

STREAM, INDEX = tenant_stream("default"), tenant_index("default")
BUILDS = 30


async def arrival(events: BuildEvents, last: Event) -> None:
    """Wait until an event has arrived, and until the index has its build."""
    await eventually(lambda: events._recent.arrival_of(last) is not None)

    async def is_indexed() -> bool:
        return (await events.history.look_up([last.stream_filter])).entries is not None

    await eventually(is_indexed)


class TestCost:
    @pytest.fixture
    async def trickling(
        self, settings: Settings, publisher: ConfirmedPublisher
    ) -> tuple[list[list[Event]], list[Event]]:
        """All builds, and the events in the order in which builds that go on at the same time publish them."""
        builds = [list(events_of(number)) for number in range(BUILDS)]
        return builds, list(interleaved((iter(build[:-1]) for build in builds), at_once=BUILDS))

    @pytest.mark.parametrize("since", ["unknown", "known"])
    async def test_joining_reads_nothing_of_the_stream_if_the_build_began_in_this_connection(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        trickling: tuple[list[list[Event]], list[Event]],
        looked_through: Counter[str],
        since: str,
    ) -> None:
        builds, so_far = trickling
        async with BuildEvents(settings.amqp) as events:
            # As if the connection were an hour old.
            events._recent.mark_gap_possible(events._recent._gap_at - 3600)
            await publish_all(settings.amqp, so_far)
            await arrival(events, so_far[-1])
            looked_through.clear()
            moment = datetime.now(UTC) - timedelta(minutes=5) if since == "known" else None
            readers = [Reader(events.of_build(build_of(n), since=moment)) for n in range(BUILDS)]
            readers += [Reader(events.of_request(name_of(n), since=moment)) for n in range(BUILDS)]
            for reader in readers:
                await reader.has(len(so_far) // BUILDS)
            assert looked_through[STREAM] == 0
            assert (looked_through[INDEX] == 0) == (since == "known")
            await publish_all(settings.amqp, [build[-1] for build in builds])
            for reader, build in zip(readers, builds * 2, strict=True):
                assert [event.id for event in await reader.to_the_end()] == [event.id for event in build]
            assert looked_through[STREAM] == 0

    async def test_a_reader_that_the_buffer_has_left_behind_reads_nothing_of_the_stream(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        monkeypatch: pytest.MonkeyPatch,
        looked_through: Counter[str],
    ) -> None:
        """The buffer holds a fraction of the log."""
        monkeypatch.setattr(build_events, "MAX_FEED_BYTES", 50_000)
        monkeypatch.setattr(build_events, "MIN_FEED_BYTES", 50_000)
        whole = [accepted(), *(lines(first, 20, size=100) for first in range(0, 2000, 20))]
        async with BuildEvents(settings.amqp) as events:
            await publish_all(settings.amqp, whole)
            await arrival(events, whole[-1])
            looked_through.clear()
            readers = [Reader(events.of_build(BUILD)) for _ in range(3)]
            for reader in readers:
                await reader.has(len(whole))
            await publish(publisher, completed(count=2000))
            for reader in readers:
                assert numbers(await reader.to_the_end()) == list(range(2000))
        assert looked_through[STREAM] == 0


class TestCompleteness:
    async def test_a_reader_who_joins_after_a_lost_connection_gets_what_was_missed(
        self, settings: Settings, publisher: ConfirmedPublisher, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with through_proxy(settings, rabbitmq, vhost) as (amqp, proxy), BuildEvents(amqp) as events:
            await publish(publisher, accepted(), begun := lines(0, 2))
            await arrival(events, begun)
            proxy.refuse(True)
            proxy.cut()
            await publish(publisher, lines(2, 2))
            proxy.refuse(False)
            await eventually(lambda: not events.problem)
            await publish(publisher, lines(4, 2), completed(count=6))
            assert numbers(await Reader(events.of_build(BUILD)).to_the_end()) == list(range(6))

    async def test_a_reader_who_joins_what_memory_has_dropped_gets_all_of_it(
        self, settings: Settings, publisher: ConfirmedPublisher, looked_through: Counter[str]
    ) -> None:
        whole = [accepted(), *(lines(first, 20, size=100) for first in range(0, 400, 20))]
        async with BuildEvents(settings.amqp, recent_bytes=20_000) as events:
            await publish_all(settings.amqp, whole)
            await arrival(events, whole[-1])
            reader = Reader(events.of_build(BUILD))
            await publish(publisher, completed(count=400))
            assert numbers(await reader.to_the_end()) == list(range(400))
        assert looked_through[STREAM] > 0

    async def test_a_hole_in_what_is_in_memory_is_filled_from_the_stream(
        self, settings: Settings, publisher: ConfirmedPublisher, looked_through: Counter[str]
    ) -> None:
        async with BuildEvents(settings.amqp) as events:
            await publish(publisher, accepted(), lines(0, 2), missed := lines(2, 2), newest := lines(4, 2))
            await arrival(events, newest)
            held = events._recent._builds[BUILD].events
            held.remove(next(event for event in held if event.id == missed.id))
            reader = Reader(events.of_build(BUILD))
            await reader.has(4)
            await publish(publisher, completed(count=6))
            received = await reader.to_the_end()
        assert numbers(received) == list(range(6))
        assert "gap" not in [event.kind.value for event in received]
