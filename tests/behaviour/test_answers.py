"""Two replicas and one build on a real RabbitMQ: the one that took a request answers late, the other one follows it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from rabbit2docker.amqp.ports import IsNeeded, always
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import AttemptName
from rabbit2docker.consumer.following.follower import Follower, FollowerContext
from rabbit2docker.consumer.following.recovery import Recovery
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.intake.admission import Admission, AdmissionContext
from rabbit2docker.consumer.intake.build_limits import BuildLimits
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.settings import PolicySettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.cancel_log import MemoryCancelLog
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.promises import captured
from tests.support.records import NOW, REPOSITORY
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


class SlowPublisher:
    """Publishes on a real RabbitMQ, but nothing while it is held up."""

    def __init__(self, publisher: ConfirmedPublisher) -> None:
        self._publisher = publisher
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.held: list[Event] = []
        self.published: list[str] = []

    async def publish(
        self, event: Event, *, patience: float | None = None, is_needed: IsNeeded = always
    ) -> bool:
        if not self.goes_on.is_set():
            self.held.append(event)
            await self.goes_on.wait()
        is_published = await self._publisher.publish(event, patience=patience, is_needed=is_needed)
        self.published.append(event.kind.value)
        return is_published


class OneRepository:
    """Resolves every request to the same version of one repository."""

    def get(self, prefix: str) -> "OneRepository":
        return self

    def check_allowed(self, prefix: str, spec: str) -> None: ...

    def check(self, spec: str) -> None: ...

    def check_resolved(self, repository: Repository) -> None: ...

    async def resolve(self, spec: str, _access: object = None) -> Repository:
        return REPOSITORY


class Replica:
    """Intake and following on records that another replica shares."""

    def __init__(self, world: MemoryWorld, publisher: ConfirmedPublisher) -> None:
        self.executor = MemoryExecutor(world)
        self.attempts = AttemptCache(self.executor)
        self.publisher = SlowPublisher(publisher)
        self.events = EventPublisher(self.publisher, instance="test")
        self.admission = Admission(
            AdmissionContext(
                executor=self.executor,
                attempts=self.attempts,
                events=self.events,
                providers=cast("Providers", OneRepository()),
                find_image=self.find_image,
                settings=Settings(),
                cancellation=Cancellation(self.executor, self.attempts, MemoryCancelLog()),
                limits=BuildLimits(self.attempts, PolicySettings()),
            )
        )

    async def find_image(self, image: str, _tenant: str = "default") -> ImageInfo | None:
        return None

    async def ask(self, request_id: str) -> None:
        request = BuildRequest(provider="gh", spec="o/r/HEAD", requester=request_id)
        await self.admission.admit(IncomingRequest("default", RequestId(request_id), request, NOW))

    async def follow(self, name: AttemptName) -> None:
        attempt = await self.executor.get(name)
        assert attempt is not None
        recovery = Recovery(EngineWatch(self.executor, Breakers()), self.find_image, Settings())
        context = FollowerContext(
            self.executor, self.attempts, self.events, self.find_image, Settings(), recovery
        )
        await Follower(attempt, context).run()


@asynccontextmanager
async def learning(replica: Replica) -> AsyncIterator[None]:
    """Let a replica learn of what the other one writes."""
    task = asyncio.create_task(replica.attempts.run())
    try:
        await replica.attempts.synced.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def held_up(replica: Replica, request_id: str) -> asyncio.Task[None]:
    """Have a request taken by a replica whose `accepted` is held up."""
    replica.publisher.goes_on.clear()
    asking = asyncio.create_task(replica.ask(request_id))
    await eventually(lambda: replica.publisher.held)
    return asking


def shown(events: list[Event]) -> list[tuple[str, str]]:
    """Return the answers and ends with what they are about."""
    return [
        (event.kind.value, getattr(event.data, "request_id", ""))
        for event in events
        if event.kind.value not in ("progress", "log")
    ]


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld()


@pytest.fixture
def taker(world: MemoryWorld, publisher: ConfirmedPublisher) -> Replica:
    return Replica(world, publisher)


@pytest.fixture
def follower(world: MemoryWorld, publisher: ConfirmedPublisher) -> Replica:
    return Replica(world, publisher)


async def test_the_follower_answers_for_a_replica_that_is_slow(
    settings: Settings, world: MemoryWorld, taker: Replica, follower: Replica
) -> None:
    async with learning(taker):
        asking = await held_up(taker, "one")
        [name] = world.records
        world.write(name, "line")
        world.end(name, "build_step_failed")
        await follower.follow(name)
        await eventually(lambda: not taker.attempts.needs_answer(name, "one"))
        taker.publisher.goes_on.set()
        await asking
    events = await captured(settings.amqp)
    assert events[0].kind == "accepted"
    assert shown(events) == [("accepted", "one"), ("failed", "")]


async def test_a_late_answer_of_a_replica_that_knows_nothing_is_a_copy(
    settings: Settings, world: MemoryWorld, taker: Replica, follower: Replica
) -> None:
    """It is cut off from the records; readers know the copy by its id."""
    asking = await held_up(taker, "one")
    [name] = world.records
    world.end(name, "build_step_failed")
    await follower.follow(name)
    taker.publisher.goes_on.set()
    await asking
    events = await captured(settings.amqp)
    late = events[-1]
    assert shown(events) == [("accepted", "one"), ("failed", ""), ("accepted", "one")]
    assert (late.id, late.data) == (events[0].id, events[0].data)


async def test_a_request_that_joins_at_another_replica_is_answered_before_the_end(
    settings: Settings, world: MemoryWorld, taker: Replica, follower: Replica
) -> None:
    async with learning(taker), learning(follower):
        await follower.ask("one")
        [name] = world.records
        await eventually(lambda: taker.attempts.get(name))
        following = asyncio.create_task(follower.follow(name))
        asking = await held_up(taker, "two")
        world.write(name, "line")
        world.end(name, "build_step_failed")
        await following
        await eventually(lambda: not taker.attempts.needs_answer(name, "two"))
        taker.publisher.goes_on.set()
        await asking
    assert shown(await captured(settings.amqp)) == [("accepted", "one"), ("accepted", "two"), ("failed", "")]


async def test_a_replica_that_decides_the_outcome_while_it_answers_a_join_answers_first(
    settings: Settings, world: MemoryWorld, follower: Replica
) -> None:
    async with learning(follower):
        await follower.ask("one")
        [name] = world.records
        following = asyncio.create_task(follower.follow(name))
        await eventually(lambda: "progress" in follower.publisher.published)
        asking = await held_up(follower, "two")
        world.end(name, "build_step_failed")
        await eventually(lambda: not follower.attempts.needs_answer(name, "two"))
        follower.publisher.goes_on.set()
        await asyncio.gather(asking, following)
    events = await captured(settings.amqp)
    assert shown(events) == [("accepted", "one"), ("accepted", "two"), ("failed", "")]


async def test_a_copy_of_a_request_after_the_end_is_answered_with_both(
    settings: Settings, world: MemoryWorld, taker: Replica, follower: Replica
) -> None:
    async with learning(taker), learning(follower):
        await follower.ask("one")
        [name] = world.records
        world.end(name, "build_step_failed")
        await follower.follow(name)
        await eventually(lambda: (known := taker.attempts.get(name)) and known.status.reported)
        await taker.ask("one")
    events = await captured(settings.amqp)
    assert shown(events) == [("accepted", "one"), ("failed", ""), ("accepted", "one"), ("failed", "")]
    assert len({event.id for event in events if event.kind in ("accepted", "failed")}) == 2


async def test_no_answer_is_repeated_where_each_replica_is_in_time(
    settings: Settings, world: MemoryWorld, follower: Replica
) -> None:
    async with learning(follower):
        await follower.ask("one")
        [name] = world.records
        following = asyncio.create_task(follower.follow(name))
        await follower.ask("two")
        await follower.ask("three")
        assert set(world.records[name].status.unanswered) == {"three"}
        world.end(name, "build_step_failed")
        await following
    answers = [(kind, id_) for kind, id_ in shown(await captured(settings.amqp)) if kind == "accepted"]
    assert answers == [("accepted", "one"), ("accepted", "two"), ("accepted", "three")]
