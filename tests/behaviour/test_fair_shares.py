"""Turns of tenants and requesters, and places in the queue: replicas on a real RabbitMQ, with builds that take no time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.client import BuildEvents
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.intake.admission import Admission, AdmissionOutcome
from rabbit2docker.consumer.intake.capacity import Capacity
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.places import PlaceAnnouncer
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.consumer.intake.worker import IntakeWorker
from rabbit2docker.consumer.ownership import Ownership, Slots
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Progress
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority, parse_waiting_queue
from tests.support.broker import running
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.broker

SLOTS = 2
"""Of each replica."""


@dataclass
class World:
    """The builds of all replicas, as the executor would report them."""

    settings: Settings
    rabbitmq: RabbitMQ
    vhost: str
    live: list[SimpleNamespace] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    """Request ids, in the order of their first start."""
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    replicas: "list[Replica]" = field(default_factory=list)

    async def depth(self) -> int:
        depths = await asyncio.to_thread(self.rabbitmq.depths, self.vhost)
        return sum(depth for queue, depth in depths.items() if parse_waiting_queue(queue))

    async def has_waiting(self, count: int) -> bool:
        return await self.depth() >= count

    async def is_empty(self) -> bool:
        return await self.depth() == 0

    async def request(self, tenant: str, *names: str, requester: str = "", bulk: bool = False) -> None:
        async with publishing(self.settings, wait_seconds=PATIENCE) as publisher:
            requests = RequestPublisher(publisher, tenant)
            for name in names:
                request = BuildRequest(
                    provider="gh", spec="o/r/HEAD", request_id=name, requester=requester or name
                )
                await requests.request(request, Priority.BULK if bulk else Priority.INTERACTIVE)

    async def waiting(self, count: int) -> None:
        """Wait until so many requests wait, and every replica knows it."""
        await eventually(lambda: all(len(replica.line) == count for replica in self.replicas))

    def of(self, kind: str) -> list[int]:
        """Return the places of the builds of one kind among all that were started."""
        return [number for number, name in enumerate(self.started) if name.startswith(kind)]


class Replica:
    """One consumer, with fakes in place of executor and providers. Implements what it needs of both."""

    def __init__(self, world: World, broker: Broker) -> None:
        settings = world.settings
        self.world = world
        self.mine: list[SimpleNamespace] = []
        self._listeners: list[Any] = []
        self.broker = broker
        shares = Shares(settings.shares)
        self.line = WaitingLine(settings, shares)
        broker.waiting.subscribe(self.line.apply)
        attempts, ownership = cast("AttemptCache", self), cast("Ownership", self)
        self.capacity = Capacity(
            broker.source, attempts, ownership, self.line, shares, broker.waiting, settings
        )
        events = EventPublisher(broker.publisher, instance="test")
        self.places = PlaceAnnouncer(self.line, broker.waiting, events, ownership, self.capacity, settings)
        self.worker = IntakeWorker(
            source=broker.source,
            events=events,
            admission=cast("Admission", self),
            cancellation=cast("Any", None),
            capacity=self.capacity,
            line=self.line,
            waiting_log=broker.waiting,
            max_bytes=65_536,
            patience=timedelta(hours=1),
        )

    slot_changes = 0

    def live(self) -> list[SimpleNamespace]:
        return list(self.world.live)

    def subscribe(self, listener: Any) -> None:
        self._listeners.append(listener)

    def slots(self, limits: object, attempts: object) -> Slots:
        return Slots(SLOTS - len(self.mine), SLOTS, 0)

    def is_mine(self, key: str) -> bool:
        return self.world.replicas[:1] == [self]

    async def admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
        if incoming.request_id in self.world.started:
            return AdmissionOutcome.DUPLICATE
        self.world.started.append(incoming.request_id)
        spec = SimpleNamespace(tenant=incoming.tenant, request=incoming.request)
        build = SimpleNamespace(spec=spec, is_live=True)
        self.mine.append(build)
        self.world.live.append(build)
        self._ending = asyncio.create_task(self._end(build))
        return AdmissionOutcome.ACCEPTED

    async def _end(self, build: SimpleNamespace) -> None:
        await self.world.may_end.wait()
        self.mine.remove(build)
        self.world.live.remove(build)
        for replica in self.world.replicas:
            replica.capacity._changed.set()

    async def run(self) -> None:
        await self.broker.waiting.caught_up.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.capacity.run(self.worker.start))
            group.create_task(self.worker.run())
            group.create_task(self.places.run())


@asynccontextmanager
async def a_replica(world: World) -> AsyncIterator[Replica]:
    """Run a replica; at the end it dies with whatever it has in hand."""
    made: list[Replica] = []
    async with running(world.settings, prepare=lambda broker: made.append(Replica(world, broker))):
        [replica] = made
        world.replicas.append(replica)
        task = asyncio.create_task(replica.run())
        try:
            yield replica
        finally:
            world.replicas.remove(replica)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(settings: Settings, rabbitmq: RabbitMQ, vhost: str) -> World:
    changed = settings.model_copy(
        update={
            "tenants": ["default", "course"],
            "limits": settings.limits.model_copy(update={"concurrent_builds": 2 * SLOTS}),
        }
    )
    await declare.declare(changed)
    return World(changed, rabbitmq, vhost)


async def test_shares_hold_over_two_replicas_of_which_one_dies(world: World) -> None:
    async with AsyncExitStack() as living:
        first = await living.enter_async_context(a_replica(world))
        async with a_replica(world):
            await world.request("default", *(f"script-{n}" for n in range(120)), requester="script")
            await eventually(lambda: len(world.started) == 2 * SLOTS)
            await world.request("default", *(f"person-{n}" for n in range(12)))
            await world.request("course", *(f"few-{n}" for n in range(5)))
            await world.request("course", *(f"replay-{n}" for n in range(10)), requester="op", bulk=True)
            total = 120 + 12 + 5 + 10
            await world.waiting(total - 2 * SLOTS)
            await eventually(lambda: world.has_waiting(total - 2 * SLOTS))
            since = len(world.started)
            world.may_end.set()
            await eventually(lambda: len(world.of("few")) == 5 and len(world.of("person")) == 12)
        assert world.replicas == [first]
        # What the dead replica had in hand comes back; its builds have ended.
        await eventually(lambda: len(set(world.started)) == total)
        await eventually(world.is_empty)
    few, people, script, replay = map(world.of, ("few", "person", "script", "replay"))
    assert few[-1] - since < 1.5 * 2 * 5
    assert people[-1] - since < 1.5 * 2 * 12 * 4 / 3
    assert any(since <= number < since + 20 for number in script)
    # What the dead replica had in hand may come back when nothing else waits any more.
    assert sum(number > replay[0] for number in script) <= SLOTS
    assert max(Counter(world.started).values()) == 1


async def test_everyone_who_waits_gets_a_place_and_a_later_one_from_any_replica(world: World) -> None:
    names = [f"r{number}" for number in range(10)]
    places: dict[str, list[int]] = {}

    async def listen(client: BuildEvents) -> None:
        by_build = {str(build_id_of("default", name)): name for name in names}
        async for event in client.all():
            if isinstance(event.data, Progress) and event.data.detail.ahead is not None:
                places.setdefault(by_build[event.data.build_id], []).append(event.data.detail.ahead)

    async with BuildEvents(world.settings.amqp) as client, AsyncExitStack() as later:
        listening = asyncio.create_task(listen(client))
        async with a_replica(world):
            await later.enter_async_context(a_replica(world))
            await world.request("default", *names)
            await world.waiting(len(names) - 2 * SLOTS)
            waiting = set(names) - set(world.started)
            await eventually(lambda: set(places) >= waiting)
            other = world.replicas[1]
            await eventually(lambda: all(each.announced is not None for each in other.line.in_order({}, 1)))
        world.may_end.set()
        await eventually(lambda: len(world.started) == len(names))
        async for event in client.of_request(min(waiting)):  # it can be found by its request, too
            assert isinstance(event.data, Progress)
            break
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    for said in places.values():
        assert said == sorted(said, reverse=True)
        assert len(said) == len(set(said)), (
            "nothing is said twice, although the replica that announced has died"
        )
