"""The content of a hub's store after crashes and long absences, with a real RabbitMQ."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.errors import AccessRefused, StoreRefused
from rabbit2docker.hub import ingest
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.models import BuildQuery, BuildState
from rabbit2docker.hub.store.store import Store
from rabbit2docker.settings import AmqpSettings, HubSettings, Settings
from rabbit2docker_schemas import ids, routing
from rabbit2docker_schemas.cloudevents import Event
from tests.support.client_events import BUILD, accepted, completed, lines, progress, publish
from tests.support.postgresql import PostgreSQL
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.docker]

QUEUE = routing.hub_queue("default.service")
MONSTER = ids.build_id_of("default", "monster")
PROGRAM = """
import asyncio, sys
from rabbit2docker.settings import Settings
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.store import Store

async def main():
    settings = Settings()
    async with Store(settings.hub.store_url, settings.tenant) as store:
        await Ingester(store, settings).run()

asyncio.run(main())
"""


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[ConfirmedPublisher]:
    """A publisher such as the consumer has."""
    await declare.declare(settings)
    async with publishing(settings, wait_seconds=180) as found:
        yield found


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store that is empty."""
    async with Store(f"sqlite:///{tmp_path / 'store.sqlite'}", "default") as found:
        yield found


@asynccontextmanager
async def fed(store: Store, settings: Settings) -> AsyncIterator[Ingester]:
    """Feed the store for a time."""
    feeder = Ingester(store, settings)
    running = asyncio.create_task(feeder.run())
    try:
        yield feeder
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def has_ended(store: Store, build_id: str = BUILD) -> bool:
    build = await store.build(build_id)
    return build is not None and build.state.is_end


async def numbers(store: Store, build_id: str = BUILD) -> list[int]:
    return [line.n async for line in store.lines(build_id)]


async def count(store: Store) -> int:
    return len(await numbers(store))


def story(request_id: str, number: int = 5) -> list[Event]:
    build_id = ids.build_id_of("default", request_id)
    return [
        accepted(request_id, build_id),
        progress("one", build_id),
        lines(0, number, build_id=build_id),
        completed(build_id=build_id, count=number),
    ]


class TestCrashes:
    async def test_a_service_killed_again_and_again_in_mid_build_stores_every_event(
        self, settings: Settings, publisher: ConfirmedPublisher, tmp_path: Path
    ) -> None:
        url = f"sqlite:///{tmp_path / 'store.sqlite'}"
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBIT2DOCKER_")},
            "RABBIT2DOCKER_AMQP__URL": settings.amqp.url.get_secret_value(),
            "RABBIT2DOCKER_HUB__STORE_URL": url,
        }
        total = 0

        async def write_until(stop: asyncio.Event) -> None:
            nonlocal total
            while not stop.is_set():
                await publish(publisher, lines(total, 3), progress(f"line {total}"))
                total += 3
                await asyncio.sleep(0.01)

        @contextmanager
        def running() -> Iterator[None]:
            process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=variables)
            try:
                yield
            finally:
                process.kill()
                process.wait()

        await publish(publisher, accepted())
        stop = asyncio.Event()
        async with Store(url, "default") as store:
            writing = asyncio.create_task(write_until(stop))
            for _ in range(3):
                before = await count(store)
                with running():
                    await eventually(lambda before=before: _is_more(store, before))  # type: ignore[misc]
            stop.set()
            await writing
            await publish(publisher, completed(count=total))
            with running():
                await eventually(lambda: has_ended(store))
                await eventually(lambda: _has(store, total))
            assert await numbers(store) == list(range(total))
            events = [event async for event in store.events(BUILD)]
        assert sum(event.kind == "progress" for event in events) == total // 3
        assert not [event for event in events if event.kind == "gap"]

    async def test_events_acknowledged_but_not_stored_are_read_again_from_the_stream(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        store: Store,
        rabbitmq: RabbitMQ,
        vhost: str,
        tmp_path: Path,
    ) -> None:
        """The transaction in which the events are is never committed."""
        held = Holding(f"sqlite:///{tmp_path / 'store.sqlite'}", "default")
        async with held:
            async with fed(held, settings):
                await publish(publisher, accepted(), lines(0, 2))
                await eventually(lambda: count(store))
                held.holds = True
                await publish(publisher, lines(2, 2), completed(count=4))
                await eventually(lambda: held.has_some)
                await eventually(lambda: rabbitmq.depth(vhost, QUEUE) == 0)
            assert await numbers(store) == [0, 1]
        async with fed(store, settings):
            await eventually(lambda: has_ended(store))
            assert await numbers(store) == [0, 1, 2, 3]

    async def test_an_event_that_no_database_accepts_does_not_hold_up_the_others(
        self, settings: Settings, publisher: ConfirmedPublisher, tmp_path: Path
    ) -> None:
        monstrous = completed(build_id=MONSTER)
        picky = Picky(f"sqlite:///{tmp_path / 'store.sqlite'}", "default")
        with structlog.testing.capture_logs() as logs:
            await publish(publisher, accepted(), monstrous, lines(0, 1), completed(count=1))
            async with picky as store, fed(store, settings):
                await eventually(lambda: has_ended(store))
                await publish(publisher, *story("next"))
                await eventually(lambda: has_ended(store, ids.build_id_of("default", "next")))
        assert [entry["event_id"] for entry in logs if entry["event"] == "event skipped"]


async def _is_more(store: Store, before: int) -> bool:
    return await count(store) > before


async def _has(store: Store, number: int) -> bool:
    return await count(store) >= number


class Picky(Store):
    """A store that refuses the events of one build, as a database does with a value that it cannot hold."""

    async def put(self, events: Sequence[Event], *, position: datetime | None = None) -> None:
        if any(event.subject == MONSTER for event in events):
            raise StoreRefused("It is too large.")
        await super().put(events, position=position)


class Holding(Store):
    """A store that, on demand, accepts events and never finishes writing them."""

    holds = False
    has_some = False

    async def put(self, events: Sequence[Event], *, position: datetime | None = None) -> None:
        if self.holds:
            self.has_some = True
            await asyncio.get_running_loop().create_future()
        await super().put(events, position=position)


class TestAbsences:
    async def test_an_empty_store_ingests_everything_that_the_stream_has(
        self, settings: Settings, publisher: ConfirmedPublisher, store: Store
    ) -> None:
        names = [f"r{number}" for number in range(30)]
        for name in names:
            await publish(publisher, *story(name))
        async with fed(store, settings):
            await eventually(lambda: has_ended(store, ids.build_id_of("default", names[-1])))
        builds = (await store.builds(BuildQuery(state=(BuildState.COMPLETED,)))).builds
        assert {build.request_id for build in builds} == set(names)
        assert await store.position() is not None

    async def test_after_an_absence_longer_than_its_queue_lives_missed_events_come_from_the_stream(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        store: Store,
        rabbitmq: RabbitMQ,
        vhost: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(ingest, "SLACK", timedelta(0))
        async with fed(store, settings):
            await publish(publisher, *story("before"))
            await eventually(lambda: has_ended(store, ids.build_id_of("default", "before")))
        rabbitmq.api("DELETE", f"queues/{vhost}/{QUEUE}")
        await publish(
            publisher, accepted(), *(lines(n, 10) for n in range(0, 3000, 10)), completed(count=3000)
        )
        async with fed(store, settings):
            await eventually(lambda: has_ended(store))
            assert await numbers(store) == list(range(3000))

    async def test_events_that_waited_in_the_queue_and_live_events_are_stored(
        self, settings: Settings, publisher: ConfirmedPublisher, store: Store
    ) -> None:
        async with fed(store, settings):
            await publish(publisher, accepted())
            await eventually(lambda: store.build("r"))
        await publish(publisher, lines(0, 3))
        async with fed(store, settings) as feeder:
            await publish(publisher, lines(3, 3), completed(count=6))
            await eventually(lambda: has_ended(store))
            await eventually(lambda: feeder.behind_seconds == 0)
            assert feeder.problem == ""
        assert await numbers(store) == list(range(6))

    async def test_a_lost_connection_to_rabbitmq_loses_no_event(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        store: Store,
        rabbitmq: RabbitMQ,
        vhost: str,
    ) -> None:
        async with Proxy(rabbitmq.port) as proxy:
            url = rabbitmq.url(vhost, port=proxy.port)
            amqp = AmqpSettings.model_validate({**settings.amqp.model_dump(), "url": url})
            async with fed(store, settings.model_copy(update={"amqp": amqp})) as feeder:
                await publish(publisher, accepted(), lines(0, 3))
                await eventually(lambda: count(store))
                proxy.refuse(True)
                proxy.cut()
                await eventually(lambda: feeder.problem)
                await publish(publisher, lines(3, 3))
                proxy.refuse(False)
                await publish(publisher, lines(6, 3), completed(count=9))
                await eventually(lambda: has_ended(store))
                await eventually(lambda: _has(store, 9))
                await eventually(lambda: not feeder.problem)

    async def test_an_outage_of_the_database_loses_no_event(
        self,
        settings: Settings,
        publisher: ConfirmedPublisher,
        postgresql_server: PostgreSQL,
        postgresql_url: str,
    ) -> None:
        name = postgresql_url.rpartition("/")[2]
        async with Proxy(postgresql_server.port) as proxy:
            proxy.refuse(True)
            url = postgresql_server.url(name, port=proxy.port)
            async with Store(url, "default") as store, fed(store, settings) as feeder:
                await publish(publisher, accepted())
                await eventually(lambda: "away" in feeder.problem)
                proxy.refuse(False)
                await eventually(lambda: store.build("r"))
                await publish(publisher, lines(0, 3))
                await eventually(lambda: count(store))
                proxy.refuse(True)
                proxy.cut()
                await publish(publisher, lines(3, 3), completed(count=6))
                await eventually(lambda: feeder.problem)
                await eventually(lambda: feeder.behind_seconds > 0)
                proxy.refuse(False)
                await eventually(lambda: has_ended(store))
                assert await numbers(store) == list(range(6))
                await eventually(lambda: not feeder.problem)

    async def test_ingest_waits_for_a_topology_that_is_not_declared_yet(
        self, settings: Settings, store: Store
    ) -> None:
        async with fed(store, settings) as feeder:
            await eventually(lambda: "topology declare" in feeder.problem)
            await declare.declare(settings)
            async with publishing(settings, wait_seconds=180) as publisher:
                await publish(publisher, *story("r"))
            await eventually(lambda: has_ended(store))
            await eventually(lambda: not feeder.problem)

    async def test_ingest_ends_when_rabbitmq_refuses_its_user(
        self, settings: Settings, store: Store, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        amqp = AmqpSettings.model_validate({"url": rabbitmq.url(vhost, user="guest:wrong")})
        with pytest.raises(AccessRefused, match="check user and password"):
            await Ingester(store, settings.model_copy(update={"amqp": amqp})).run()


class TestSeveralServices:
    async def test_one_of_two_services_ingests_and_the_other_takes_over(
        self, settings: Settings, publisher: ConfirmedPublisher, postgresql_url: str
    ) -> None:
        async with Store(postgresql_url, "default") as one, Store(postgresql_url, "default") as other:
            async with fed(one, settings) as first:
                await publish(publisher, accepted(), lines(0, 3))
                await eventually(lambda: count(one))
                standing_by = asyncio.create_task(_feed_until_ended(other, settings))
                await publish(publisher, lines(3, 3))
                await eventually(lambda: _has(other, 6))
                assert not first.is_standby
                await asyncio.sleep(1)  # it would have taken over by now if it could
                assert not standing_by.done()
            await publish(publisher, lines(6, 3), completed(count=9))
            assert await standing_by == [True, False]
            assert await numbers(other) == list(range(9))

    async def test_builds_are_deleted_some_days_after_their_end(
        self, settings: Settings, publisher: ConfirmedPublisher, store: Store
    ) -> None:
        days_ago = datetime.now(UTC) - timedelta(hours=36)
        await store.put([replace(event, time=days_ago) for event in [*story("old"), *story("r")[:3]]])
        await store.put(story("new"))
        hub = HubSettings(store_days=1)
        async with fed(store, settings.model_copy(update={"hub": hub})):
            await eventually(lambda: _is_gone(store, "old"))
        left = {build.request_id for build in (await store.builds(BuildQuery())).builds}
        assert left == {"r", "new"}  # one of them has not ended

    async def test_the_logs_of_ended_builds_are_deleted_once_all_take_more_than_the_limit(
        self, settings: Settings, publisher: ConfirmedPublisher, store: Store
    ) -> None:
        await store.put(story("r"))
        assert await numbers(store)
        hub = HubSettings(store_bytes=1)
        async with fed(store, settings.model_copy(update={"hub": hub})):
            await eventually(lambda: _has_no_lines(store))
        assert await store.build("r") is not None


async def _has_no_lines(store: Store) -> bool:
    return not await numbers(store)


async def _is_gone(store: Store, id_: str) -> bool:
    return await store.build(id_) is None


async def _feed_until_ended(store: Store, settings: Settings) -> list[bool]:
    """Return whether it stood by at first, and at the end."""
    async with fed(store, settings) as feeder:
        await eventually(lambda: feeder.is_standby)
        assert feeder.problem == ""
        await eventually(lambda: has_ended(store))
        return [True, feeder.is_standby]
