"""A follower tells each line and one end, whatever it began with."""

import asyncio
from dataclasses import dataclass

import pytest

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import Attempt, AttemptName, AttemptStatus
from rabbit2docker.consumer.following.follower import Follower, FollowerContext
from rabbit2docker.errors import RegistryUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Log, Phase, Progress
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.promises import ends_of, lines_of
from tests.support.publishing import RecordingPublisher
from tests.support.records import a_spec

pytestmark = pytest.mark.looptime
NAME = AttemptName("build-1")
DIGEST = f"sha256:{'a' * 64}"


@dataclass
class Found:
    digest: str = DIGEST
    size: int | None = 7


class Bench:
    """One attempt in memory, and what a follower of it works with."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.executor = MemoryExecutor(self.world)
        self.attempts = AttemptCache(self.executor)
        self.publisher = RecordingPublisher()
        self.answers: list[Found | RegistryUnavailable | None] = []
        """What the registry says, the last one for ever; nothing: the image is there."""

    async def find_image(self, image: str) -> Found | None:
        answer = (
            (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]) if self.answers else Found()
        )
        if isinstance(answer, RegistryUnavailable):
            raise answer
        return answer

    @property
    def tools(self) -> FollowerContext:
        events = EventPublisher(self.publisher, instance="test")
        return FollowerContext(self.executor, self.attempts, events, self.find_image, Settings())

    async def create(self, **status: object) -> Attempt:
        attempt, _ = await self.executor.create(
            a_spec(NAME), AttemptStatus(requests={"r": "digest"}, **status)
        )
        return self.attempts.put(attempt)

    async def follow(self, name: AttemptName = NAME) -> None:
        attempt = await self.executor.get(name)
        assert attempt is not None
        await Follower(attempt, self.tools).run()

    def write(self, *texts: str, phase: Phase = Phase.BUILDING) -> None:
        for text in texts:
            self.world.write(NAME, text, phase=phase)

    @property
    def end(self) -> object:
        [end] = ends_of(self.publisher.events).values()
        return end.data


@pytest.fixture
async def bench() -> Bench:
    bench = Bench()
    await bench.create()
    return bench


async def marks_of(bench: Bench, name: AttemptName = NAME) -> AttemptStatus:
    attempt = await bench.executor.get(name)
    assert attempt is not None
    return attempt.status


async def test_lines_come_before_the_end_and_the_record_says_that_it_is_told(bench: Bench) -> None:
    bench.write("one", "two")
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    assert [*lines_of(bench.publisher.events).values()] == [["one", "two"]]
    assert bench.publisher.kinds[-1] == "completed"
    assert isinstance(bench.end, Completed)
    assert (bench.end.digest, bench.end.size, bench.end.lines) == (DIGEST, 7, 2)
    status = await marks_of(bench)
    assert (status.reported, status.confirmed_line) == (True, 1)


async def test_a_line_is_told_while_the_build_runs(bench: Bench) -> None:
    following = asyncio.create_task(bench.follow())
    bench.write("one")
    await asyncio.sleep(1)
    assert [*lines_of(bench.publisher.events).values()] == [["one"]]
    assert not following.done()
    bench.world.end(NAME)
    await following


async def test_a_new_follower_goes_on_behind_what_was_confirmed(bench: Bench) -> None:
    first = asyncio.create_task(bench.follow())
    bench.write("one", "two")
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    told = len(bench.publisher.events)
    bench.write("three")
    bench.world.end(NAME)
    await bench.follow()
    again = [event.data for event in bench.publisher.events[told:] if isinstance(event.data, Log)]
    assert [log.n for log in again] == [2]
    assert [*lines_of(bench.publisher.events).values()] == [["one", "two", "three"]]


async def test_two_followers_at_once_tell_the_same_end(bench: Bench) -> None:
    bench.write("one")
    bench.answers = [Found(), Found(digest=f"sha256:{'b' * 64}")]
    bench.world.end(NAME, digest=DIGEST)
    await asyncio.gather(bench.follow(), bench.follow())
    assert len([event for event in bench.publisher.events if event.is_terminal]) == 2
    assert isinstance(bench.end, Completed)  # ends_of has compared them


async def test_an_outcome_that_was_written_down_is_told_after_a_crash_whatever_the_registry_says_now(
    bench: Bench,
) -> None:
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    first = bench.end
    await bench.executor.update_status(NAME, lambda status: status.model_copy(update={"reported": False}))
    bench.answers = [None]
    await bench.follow()
    assert bench.end == first


async def test_the_end_is_told_once_rabbitmq_is_back(bench: Bench) -> None:
    bench.world.end(NAME)
    bench.publisher.refusals = 0
    attempt = await bench.executor.get(NAME)
    assert attempt is not None
    follower = Follower(attempt.model_copy(update={"status": AttemptStatus(confirmed_line=0)}), bench.tools)
    bench.publisher.refusals = 5
    await follower.run()
    assert isinstance(bench.end, Completed)


async def test_a_registry_that_is_away_for_a_moment_is_asked_again(bench: Bench) -> None:
    bench.answers = [RegistryUnavailable("away"), RegistryUnavailable("away"), Found()]
    bench.world.end(NAME)
    await bench.follow()
    assert isinstance(bench.end, Completed)
    assert bench.end.digest == DIGEST


async def test_what_the_infrastructure_failed_gets_another_attempt_that_inherits_the_requests(
    bench: Bench,
) -> None:
    bench.world.kill(NAME)
    await bench.follow()
    assert not ends_of(bench.publisher.events)
    second = next(attempt for attempt in bench.attempts if attempt.spec.attempt == 2)
    assert second.status.requests == {"r": "digest"}
    told = [event.data for event in bench.publisher.events if isinstance(event.data, Progress)]
    assert told[-1].detail.failed_reason == "builder_lost"
    bench.world.kill(second.name)
    await bench.follow(second.name)
    assert isinstance(bench.end, Failed)
    assert bench.end.attempt == 2


async def test_repeating_the_retry_after_a_crash_makes_no_third_attempt(bench: Bench) -> None:
    bench.world.kill(NAME)
    await bench.follow()
    await bench.follow()
    assert sorted(attempt.spec.attempt for attempt in bench.attempts) == [1, 2]


async def test_a_cancel_that_comes_between_two_attempts_reaches_the_second(bench: Bench) -> None:
    bench.world.kill(NAME)
    decide = bench.executor.create

    async def cancelled_meanwhile(spec: object, status: AttemptStatus) -> tuple[Attempt, bool]:
        await bench.executor.update_status(NAME, lambda old: old.model_copy(update={"cancelled_by": "ada"}))
        return await decide(spec, status)  # type: ignore[arg-type]

    bench.executor.create = cancelled_meanwhile  # type: ignore[method-assign]
    await bench.follow()
    second = next(attempt for attempt in bench.attempts if attempt.spec.attempt == 2)
    await bench.follow(second.name)
    assert isinstance(bench.end, Cancelled)
    assert bench.end.by == "ada"


async def test_lines_that_are_lost_are_told_as_a_gap(bench: Bench) -> None:
    bench.write("one", "two", "three")
    bench.world.lose_lines(NAME, 1, 1)
    bench.world.end(NAME)
    await bench.follow()
    assert "gap" in bench.publisher.kinds


async def test_a_record_that_was_removed_from_outside_ends_the_build_with_that_reason(bench: Bench) -> None:
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(1)
    bench.world.remove(NAME)
    await following
    assert isinstance(bench.end, Failed)
    assert bench.end.reason == "record_lost"
