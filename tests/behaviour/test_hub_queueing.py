"""Queue positions of waiting requests, with a real RabbitMQ and a consumer that has one slot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.queue_depth import depth_reader
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.requests import CancelRequest
from rabbit2docker_schemas.routing import CANCEL_QUEUE, REQUESTS_QUEUE
from tests.behaviour.conftest import ImportUsers, MakeHub
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import a_request
from tests.support.hub_service import HubService, Sent, build_path, texts
from tests.support.ports import free_port
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

NEXT = "this build is the next."
ONE = "1 build is before this one."
TWO = "2 builds are before this one."


@pytest.fixture
async def hub(make_consumer: MakeConsumer, make_hub: MakeHub) -> HubService:
    """A hub service and a consumer with one slot."""
    consumer = make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1")
    hub = make_hub()
    await asyncio.to_thread(consumer.start_and_wait)
    await asyncio.to_thread(hub.start_and_wait)
    return hub


class Slot:
    """The one slot, occupied by a build that the test ends."""

    def __init__(self, hub: HubService, settings: Settings) -> None:
        self._hub, self._settings = hub, settings
        self._options = {"LINES": "100000", "EVERY": "0.5"}

    async def take(self, name: str) -> str:
        """Request such a build and return the request's id."""
        spec = build_path(name).removeprefix("build/git/").partition("?")[0]
        request = {"provider": "git", "spec": spec, "build_args": self._options}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._hub.address}api/builds", json=request) as answer,
        ):
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["request_id"])

    async def free(self, request_id: str) -> None:
        async with publishing(self._settings, wait_seconds=180) as publisher:
            request = CancelRequest(request_id=request_id, requester="ada")
            await RequestPublisher(publisher, "default").cancel(request)


class Waiter:
    """A viewer of one build, and the events it has received."""

    def __init__(self, hub: HubService, name: str, **headers: str) -> None:
        self.sent: list[Sent] = []
        self._task = asyncio.create_task(self._watch(hub, name, headers))

    async def _watch(self, hub: HubService, name: str, headers: dict[str, str]) -> None:
        with suppress(aiohttp.ClientError):
            async with hub.viewer.live(build_path(name), **headers) as sent:
                async for each in sent:
                    self.sent.append(each)

    @property
    def places(self) -> list[str]:
        begin = "Waiting for a free build slot: "
        return [each.message.removeprefix(begin).strip() for each in self.sent if begin in each.message]

    async def end(self) -> list[Sent]:
        await self._task
        return self.sent

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def metric(hub: HubService, name: str) -> float:
    _, _, raw = await hub.viewer.raw("metrics")
    [line] = [line for line in raw.decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


async def waiting(hub: HubService, amqp: AmqpSettings, *names: str) -> list[Waiter]:
    """Request builds one after the other, so that their order is known."""
    waiters = []
    async with depth_reader(amqp, REQUESTS_QUEUE) as depth:
        before = await depth()
        for number, name in enumerate(names, 1):
            waiters.append(Waiter(hub, name))

            async def is_queued(wanted: int = before + number) -> bool:
                return await depth() >= wanted

            await eventually(is_queued)
    return waiters


@asynccontextmanager
async def a_taken_slot(hub: HubService, amqp: AmqpSettings) -> AsyncIterator[tuple[Slot, str]]:
    slot = Slot(hub, Settings(amqp=amqp))
    request_id = await slot.take("first")

    async def is_built() -> bool:
        async with depth_reader(amqp, REQUESTS_QUEUE) as depth:
            return not await depth()

    await eventually(is_built)
    async with hub.viewer.live_bytes(f"api/builds/{request_id}/events") as chunks:
        async for chunk in chunks:
            if b"event: accepted" in chunk:
                break
    yield slot, request_id


async def test_waiting_viewers_get_positions_that_never_grow(hub: HubService, amqp: AmqpSettings) -> None:
    async with a_taken_slot(hub, amqp) as (slot, first):
        later = await slot.take("second")
        one, other = await waiting(hub, amqp, "third", "fourth")
        await eventually(lambda: (one.places, other.places) == ([ONE], [TWO]))
        await slot.free(first)
        await eventually(lambda: (one.places, other.places) == ([ONE, NEXT], [TWO, ONE]))
        await slot.free(later)
        assert [each.phase for each in await one.end()][-1] == "ready"
        assert [each.phase for each in await other.end()][-1] == "ready"
        for waiter in (one, other):
            assert waiter.sent[0].message == "Waiting for build to start...\n"
            assert len(texts(waiter.sent)) == 5
            ids = [each.id for each in waiter.sent if "free build slot" in each.message]
            assert set(ids) == {None}
        assert one.places == [ONE, NEXT]
        assert other.places in ([TWO, ONE], [TWO, ONE, NEXT])


async def test_readers_of_the_json_api_get_positions_too(hub: HubService, amqp: AmqpSettings) -> None:
    async with a_taken_slot(hub, amqp) as (slot, first):
        later = await slot.take("second")
        raw = b""
        async with hub.viewer.live_bytes(f"api/builds/{later}/events") as chunks:
            async for chunk in chunks:
                raw += chunk
                if b'event: queue\ndata: {"ahead":0}\n\n' in raw:
                    break
        await slot.free(first)
        async with hub.viewer.live_bytes(f"api/builds/{later}/events") as chunks:
            async for chunk in chunks:
                if b"event: log" in chunk:
                    break
        await slot.free(later)


async def test_many_waiting_viewers_cost_rabbitmq_as_much_as_one(
    hub: HubService, amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    def connections() -> int:
        found = rabbitmq.api("GET", f"vhosts/{vhost}/connections")
        names = [connection["client_properties"].get("connection_name", "") for connection in found]
        return len([name for name in names if "queue position" in name])

    async with a_taken_slot(hub, amqp) as (slot, first), AsyncExitStack() as leaving:
        crowd = [*await waiting(hub, amqp, "second", "third"), *(Waiter(hub, "third") for _ in range(60))]
        for waiter in crowd:
            leaving.push_async_callback(waiter.leave)
        await eventually(lambda: all(waiter.places for waiter in crowd))
        assert [waiter.places[0] for waiter in crowd] == [NEXT, *[ONE] * 61]
        looks = await metric(hub, "rabbit2docker_hub_queue_depth_checks_total")
        assert 0 < looks < 30

        async def is_one() -> bool:
            return await asyncio.to_thread(connections) == 1

        await eventually(is_one)
        await leaving.aclose()

        async def is_none() -> bool:
            return await asyncio.to_thread(connections) == 0

        await eventually(is_none)
        await slot.free(first)


async def test_a_viewer_who_waits_while_the_service_is_killed_loses_neither_position_nor_line(
    hub: HubService, amqp: AmqpSettings
) -> None:
    async with a_taken_slot(hub, amqp) as (slot, first):
        [waiter, _] = await waiting(hub, amqp, "second", "third")
        await eventually(lambda: waiter.places == [NEXT])
        begun = waiter.sent[0]
        await asyncio.to_thread(hub.kill)
        await waiter.leave()
        await asyncio.to_thread(hub.start_and_wait)
        back = Waiter(hub, "second", Last_Event_ID=str(begun.id))
        # The new process does not know that the third came later, so the number may be too high, but there is one.
        await eventually(lambda: back.places)
        assert back.places[0] in (NEXT, ONE)
        await slot.free(first)
        sent = await back.end()
        assert texts(sent) == [f"line {number} of the build" for number in range(5)]
        assert sent[-1].phase == "ready"
        assert begun.message not in [each.message for each in sent]


class TestDepth:
    async def test_hubs_can_read_the_queues_length_where_it_needs_no_permission_on_the_queue(
        self, settings: Settings, rabbitmq: RabbitMQ, import_users: ImportUsers
    ) -> None:
        await declare.declare(settings)
        hub = import_users("default").settings("hub-default")
        version = rabbitmq.api("GET", "overview")["rabbitmq_version"].split("-")[0]
        if [int(part) for part in version.split(".")] >= [4, 2, 6]:
            async with depth_reader(hub, REQUESTS_QUEUE) as depth:
                with pytest.raises(AccessRefused):
                    await depth()
            return
        async with depth_reader(hub, REQUESTS_QUEUE) as depth:
            assert await depth() == 0
            await ask(settings, *(a_request(name) for name in "abc"))

            async def is_three() -> bool:
                return await depth() == 3

            await eventually(is_three)
        async with depth_reader(hub, CANCEL_QUEUE) as depth:
            assert await depth() == 0

    async def test_a_missing_queue_is_named(self, amqp: AmqpSettings) -> None:
        async with depth_reader(amqp, REQUESTS_QUEUE) as depth:
            with pytest.raises(TopologyMismatch, match=REQUESTS_QUEUE):
                await depth()
            with pytest.raises(BrokerUnavailable):
                await depth()

    async def test_an_unavailable_rabbitmq_is_reported(self) -> None:
        nowhere = AmqpSettings.model_validate({"url": f"amqp://127.0.0.1:{free_port()}/"})
        with pytest.raises(BrokerUnavailable):
            async with depth_reader(nowhere, REQUESTS_QUEUE):
                pass


class TestMetrics:
    async def counted(self, hubs: list[HubService], name: str) -> float:
        """Return a metric as a dashboard shows it: the sum over all instances."""
        lines = [
            line
            for hub in hubs
            for line in (await hub.viewer.raw("metrics"))[2].decode().splitlines()
            if line.startswith(name)
        ]
        return sum(float(line.split()[-1]) for line in lines)

    async def test_two_instances_with_many_viewers_count_each_build_once(
        self, hub: HubService, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        other = make_hub()
        await asyncio.to_thread(other.start_and_wait)
        hubs = [hub, other]

        async def are(name: str, wanted: float) -> bool:
            return await self.counted(hubs, name) == wanted

        async with a_taken_slot(hub, amqp) as (slot, first):
            await eventually(lambda: are("binderhub_inprogress_builds ", 1.0))
            viewers = [Waiter(each, "second") for each in hubs for _ in range(5)]
            await eventually(lambda: all(viewer.sent for viewer in viewers))
            await slot.free(first)
            for viewer in viewers:
                assert (await viewer.end())[-1].phase == "ready"
        done = 'binderhub_build_count_total{provider="Git",status="success"}'
        await eventually(lambda: are(done, 1.0))
        await eventually(lambda: are('binderhub_build_count_total{provider="Git",status="cancelled"}', 1.0))
        await eventually(lambda: are("binderhub_inprogress_builds ", 0.0))
        assert await self.counted(hubs, 'binderhub_build_time_seconds_count{status="success"}') == 1
        assert (
            await self.counted(hubs, 'binderhub_build_time_seconds_bucket{le="60.0",status="success"}') == 1
        )
        assert await self.counted(hubs, 'rabbit2docker_hub_requests_total{outcome="asked"}') == 3
        assert await self.counted(hubs, 'rabbit2docker_hub_requests_total{outcome="shared"}') == 8
        assert await self.counted(hubs, "rabbit2docker_hub_store_behind_seconds ") == 0
