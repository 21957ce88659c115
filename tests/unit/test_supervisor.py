"""Each unreported attempt is followed by the replica that owns it, also when replicas come and go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import AttemptStatus
from rabbit2docker.consumer.following.follower import FollowerContext
from rabbit2docker.consumer.following.recovery import Recovery
from rabbit2docker.consumer.following.supervisor import FollowerSupervisor
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Completed
from tests.support.members import SharedExecutor
from tests.support.memory_executor import MemoryWorld
from tests.support.promises import ends_of, lines_of
from tests.support.publishing import RecordingPublisher
from tests.support.records import a_spec

pytestmark = pytest.mark.looptime
DIGEST: Final = f"sha256:{'a' * 64}"


class Replica:
    """The following part of one replica, on a shared world."""

    def __init__(self, world: MemoryWorld, me: str, publisher: RecordingPublisher) -> None:
        self.executor = SharedExecutor(world, me)
        self.attempts = AttemptCache(self.executor)
        self.ownership = Ownership(self.executor)
        events = EventPublisher(publisher, instance="test")
        recovery = Recovery(EngineWatch(self.executor, Breakers()), self._find_image, Settings())
        context = FollowerContext(
            self.executor, self.attempts, events, self._find_image, Settings(), recovery
        )
        self.supervisor = FollowerSupervisor(context, self.ownership)
        self._tasks: list[asyncio.Task[None]] = []

    async def _find_image(self, image: str, _tenant: str = "default") -> ImageInfo:
        return ImageInfo(DIGEST, 7)

    def start(self) -> None:
        parts = (self.ownership.run(), self.attempts.run(), self.supervisor.run())
        self._tasks = [asyncio.ensure_future(part) for part in parts]

    async def end(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def follows(self, name: str) -> bool:
        tasks = self.supervisor._tasks.values()
        return any(task.get_name() == f"follower of {name}" and not task.done() for task in tasks)


class Pair:
    """Two replicas, `a` and `b`."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.publisher = RecordingPublisher()
        self.replicas = {name: Replica(self.world, name, self.publisher) for name in ("a", "b")}

    def set_live(self, *live: str) -> None:
        for replica in self.replicas.values():
            replica.executor.set_live(*live)

    async def create(self, name: str) -> str:
        await self.replicas["a"].executor.create(a_spec(name), AttemptStatus(requests={name: "digest"}))
        return name

    async def create_for(self, owner: str) -> str:
        """Create a build that `owner` owns while both replicas live."""
        number = 0
        while ranked(a_spec(f"build-{number}").build_id, ("a", "b"))[0] != owner:
            number += 1
        return await self.create(f"build-{number}")

    def followers(self, name: str) -> list[str]:
        return [replica for replica, found in self.replicas.items() if found.follows(name)]

    @property
    def lines(self) -> list[list[str]]:
        return [*lines_of(self.publisher.events).values()]

    @property
    def ends(self) -> list[object]:
        return [end.data for end in ends_of(self.publisher.events).values()]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    for replica in pair.replicas.values():
        replica.start()
    yield pair
    for replica in pair.replicas.values():
        await replica.end()


async def settle() -> None:
    """Let everything happen that waits for less than a second."""
    await asyncio.sleep(1)


async def test_each_build_is_followed_by_its_owner_alone(pair: Pair) -> None:
    pair.set_live("a", "b")
    names = [await pair.create_for("a"), await pair.create_for("b")]
    await settle()
    assert [pair.followers(name) for name in names] == [["a"], ["b"]]


async def test_nothing_is_followed_before_the_first_list_of_members(pair: Pair) -> None:
    name = await pair.create_for("a")
    await settle()
    assert pair.followers(name) == []
    pair.set_live("a", "b")
    await settle()
    assert pair.followers(name) == ["a"]


async def test_the_build_of_a_lost_replica_is_finished_by_the_other_with_every_line_once(pair: Pair) -> None:
    pair.set_live("a", "b")
    name = await pair.create_for("b")
    await settle()
    pair.world.write(name, "one", "two")
    await settle()
    await pair.replicas["b"].end()
    pair.world.write(name, "three")
    pair.set_live("a")
    await settle()
    assert pair.followers(name) == ["a"]
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["one", "two", "three"]]
    [end] = pair.ends
    assert isinstance(end, Completed)


async def test_a_build_is_handed_over_when_its_owner_joins_and_leaves(pair: Pair) -> None:
    pair.set_live("a")
    name = await pair.create_for("b")
    for number, (live, owner) in enumerate(((("a", "b"), "b"), (("a",), "a"), (("a", "b"), "b"))):
        pair.set_live(*live)
        await settle()
        assert pair.followers(name) == [owner]
        pair.world.write(name, f"line {number}")
        await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["line 0", "line 1", "line 2"]]
    assert len(pair.ends) == 1


async def test_a_build_that_returns_before_its_cancelled_follower_has_ended_is_followed_again(
    pair: Pair,
) -> None:
    pair.set_live("a")
    name = await pair.create_for("b")
    await settle()
    assert pair.followers(name) == ["a"]
    # Both lists arrive before the follower has had time to end.
    pair.set_live("a", "b")
    pair.set_live("a")
    await settle()
    assert pair.followers(name) == ["a"]
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert len(pair.ends) == 1


async def test_a_replica_off_the_list_of_members_follows_nothing_until_it_is_back(pair: Pair) -> None:
    pair.set_live("a", "b")
    name = await pair.create_for("a")
    await settle()
    pair.replicas["a"].executor.set_live("b")
    await settle()
    assert pair.followers(name) == []
    pair.replicas["a"].executor.set_live("a", "b")
    await settle()
    assert pair.followers(name) == ["a"]


async def test_two_replicas_that_both_claim_a_build_publish_one_end(pair: Pair) -> None:
    name = await pair.create_for("a")
    pair.replicas["a"].executor.set_live("a")
    pair.replicas["b"].executor.set_live("b")
    await settle()
    assert pair.followers(name) == ["a", "b"]
    pair.world.write(name, "one", "two")
    await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["one", "two"]]
    assert len(pair.ends) == 1


async def test_a_reported_build_is_not_taken_over(pair: Pair) -> None:
    pair.set_live("a", "b")
    name = await pair.create_for("b")
    await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    published = len(pair.publisher.events)
    pair.set_live("a")
    await settle()
    assert pair.followers(name) == []
    assert len(pair.publisher.events) == published
