"""Queue positions of waiting requests, with a real RabbitMQ and a consumer that has one slot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.requests import CancelRequest
from rabbit2docker_schemas.routing import Lane, waiting_queue
from tests.behaviour.conftest import MakeHub
from tests.faults.conftest import MakeConsumer
from tests.support.hub_service import HubService, Sent, build_path, texts
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
        texts = [each.message.removeprefix(begin).strip() for each in self.sent if begin in each.message]
        return [text.partition(" It is expected")[0] for text in texts]

    async def end(self) -> list[Sent]:
        await self._task
        return self.sent

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


class Queue:
    """The requests that wait for the slot."""

    def __init__(self, rabbitmq: RabbitMQ, vhost: str) -> None:
        self._rabbitmq, self._vhost = rabbitmq, vhost

    def depth(self) -> int:
        depths = self._rabbitmq.depths(self._vhost)
        return sum(depths[waiting_queue("default", lane)] for lane in (Lane.INTERACTIVE, Lane.LATER))


@pytest.fixture
def queue(rabbitmq: RabbitMQ, vhost: str) -> Queue:
    return Queue(rabbitmq, vhost)


async def waiting(hub: HubService, queue: Queue, *names: str) -> list[Waiter]:
    """Request builds one after the other, so that their order is known."""
    waiters: list[Waiter] = []
    before = queue.depth()
    for name in names:
        waiters.append(Waiter(hub, name))
        await eventually(lambda: queue.depth() >= before + len(waiters))
    return waiters


@asynccontextmanager
async def a_taken_slot(hub: HubService, amqp: AmqpSettings) -> AsyncIterator[tuple[Slot, str]]:
    slot = Slot(hub, Settings(amqp=amqp))
    request_id = await slot.take("first")

    async with hub.viewer.live_bytes(f"api/builds/{request_id}/events") as chunks:
        async for chunk in chunks:
            if b"event: accepted" in chunk:
                break
    yield slot, request_id


async def test_waiting_viewers_get_positions_that_never_grow(
    hub: HubService, amqp: AmqpSettings, queue: Queue
) -> None:
    async with a_taken_slot(hub, amqp) as (slot, first):
        later = await slot.take("second")
        await eventually(lambda: queue.depth() == 1)
        one, other = await waiting(hub, queue, "third", "fourth")
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
                if b'event: queue\ndata: {"ahead":0' in raw:
                    break
        await slot.free(first)
        async with hub.viewer.live_bytes(f"api/builds/{later}/events") as chunks:
            async for chunk in chunks:
                if b"event: log" in chunk:
                    break
        await slot.free(later)


async def test_a_viewer_who_waits_while_the_service_is_killed_loses_neither_position_nor_line(
    hub: HubService, amqp: AmqpSettings, queue: Queue
) -> None:
    async with a_taken_slot(hub, amqp) as (slot, first):
        [waiter, _] = await waiting(hub, queue, "second", "third")
        await eventually(lambda: waiter.places == [NEXT])
        begun = waiter.sent[0]
        await asyncio.to_thread(hub.kill)
        await waiter.leave()
        await asyncio.to_thread(hub.start_and_wait)
        back = Waiter(hub, "second", Last_Event_ID=str(begun.id))
        await eventually(lambda: back.places)
        assert back.places == [NEXT]
        await slot.free(first)
        sent = await back.end()
        assert texts(sent) == [f"line {number} of the build" for number in range(5)]
        assert sent[-1].phase == "ready"
        assert begun.message not in [each.message for each in sent]


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
