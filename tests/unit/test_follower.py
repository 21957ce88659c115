"""A follower publishes every line and one end, whatever state it starts from."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import Attempt, AttemptName, AttemptStatus
from rabbit2docker.consumer.following.follower import Follower, FollowerContext
from rabbit2docker.consumer.following.pace import LONGEST_SECONDS
from rabbit2docker.consumer.following.recovery import Recovery
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.errors import ENGINE, BrokerUnavailable, Dependency, DependencyKind, RegistryUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Log, Phase, Progress
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.promises import ends_of, lines_of
from tests.support.publishing import RecordingPublisher
from tests.support.records import a_spec

pytestmark = pytest.mark.looptime
NAME = AttemptName("build-1")
REGISTRY = Dependency(DependencyKind.REGISTRY, "registry.example.org")
DIGEST = f"sha256:{'a' * 64}"


IMAGE = ImageInfo(DIGEST, 7)


class Bench:
    """One attempt in memory, and the context of its follower."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.executor = MemoryExecutor(self.world)
        self.attempts = AttemptCache(self.executor)
        self.publisher = RecordingPublisher()
        self.breakers = Breakers()
        self.answers: list[ImageInfo | RegistryUnavailable | None] = []
        """Answers of the registry, the last one repeated; if empty, the image is there."""
        self.looked_up: list[str] = []
        self.jump = timedelta()
        """Difference of the wall clock to the right time."""

    async def find_image(self, image: str, _tenant: str = "default") -> ImageInfo | None:
        self.looked_up.append(image)
        answer = (
            (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]) if self.answers else IMAGE
        )
        if isinstance(answer, RegistryUnavailable):
            raise answer
        return answer

    @property
    def context(self) -> FollowerContext:
        events = EventPublisher(self.publisher, instance="test")
        watch = EngineWatch(self.executor, self.breakers)
        recovery = Recovery(watch, self.find_image, Settings(), now=lambda: datetime.now(UTC) + self.jump)
        return FollowerContext(self.executor, self.attempts, events, self.find_image, Settings(), recovery)

    async def create(self, **status: object) -> Attempt:
        attempt, _ = await self.executor.create(
            a_spec(NAME), AttemptStatus(requests={"r": "digest"}, **status)
        )
        return self.attempts.put(attempt)

    async def follow(self, name: AttemptName = NAME) -> None:
        attempt = await self.executor.get(name)
        assert attempt is not None
        await Follower(attempt, self.context).run()

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


async def status_of(bench: Bench, name: AttemptName = NAME) -> AttemptStatus:
    attempt = await bench.executor.get(name)
    assert attempt is not None
    return attempt.status


async def test_lines_are_published_before_the_end_and_the_end_is_recorded_as_reported(bench: Bench) -> None:
    bench.write("one", "two")
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    assert [*lines_of(bench.publisher.events).values()] == [["one", "two"]]
    assert bench.publisher.kinds[-1] == "completed"
    assert isinstance(bench.end, Completed)
    assert (bench.end.digest, bench.end.size, bench.end.lines) == (DIGEST, 7, 2)
    status = await status_of(bench)
    assert (status.reported, status.confirmed_line) == (True, 1)


async def test_a_line_is_published_while_the_build_runs(bench: Bench) -> None:
    following = asyncio.create_task(bench.follow())
    bench.write("one")
    await asyncio.sleep(1)
    assert [*lines_of(bench.publisher.events).values()] == [["one"]]
    assert not following.done()
    bench.world.end(NAME)
    await following


async def test_a_line_that_comes_alone_leaves_at_once_and_lines_of_a_burst_leave_together(
    bench: Bench,
) -> None:
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(1)
    bench.write("alone")
    await asyncio.sleep(0)  # the builder's next lines come while this one is under way
    for number in range(20):
        await asyncio.sleep(LONGEST_SECONDS / 50)
        bench.write(f"burst {number}")
    await asyncio.sleep(1)
    logs = [event.data for event in bench.publisher.events if isinstance(event.data, Log)]
    assert [line.text for line in logs[0].lines] == ["alone"]
    assert sum(len(log.lines) for log in logs) == 21
    assert len(logs) < 10
    bench.world.end(NAME)
    await following


async def test_lines_are_published_again_if_the_progress_before_them_was_not(bench: Bench) -> None:
    bench.write("one", "two")
    attempt = await bench.executor.get(NAME)
    assert attempt is not None
    bench.publisher.refuses = lambda event: isinstance(event.data, Progress) and event.data.lines == 0
    with pytest.raises(BrokerUnavailable):
        await Follower(attempt, bench.context).run()
    bench.publisher.refuses = lambda event: False
    published = len(bench.publisher.events)
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    again = [event.data for event in bench.publisher.events[published:]]
    assert any(isinstance(data, Progress) and data.phase is Phase.BUILDING for data in again)
    assert [log.n for log in again if isinstance(log, Log)] == [0]
    assert [*lines_of(bench.publisher.events).values()] == [["one", "two"]]


async def test_nothing_is_published_of_a_build_before_its_request_is_answered(bench: Bench) -> None:
    attempt = await bench.executor.get(NAME)
    assert attempt is not None
    follower = Follower(attempt, bench.context)
    with bench.attempts.answering(attempt.spec.build_id):
        work = [
            asyncio.create_task(follower.run()),
            asyncio.create_task(follower.publish_waiting_for("a node")),
        ]
        await asyncio.sleep(60)
        assert bench.publisher.kinds == []
    await asyncio.sleep(1)
    assert bench.publisher.kinds == ["progress", "progress"]
    bench.world.end(NAME, digest=DIGEST)
    await asyncio.gather(*work)


async def test_a_new_follower_continues_after_the_last_confirmed_line(bench: Bench) -> None:
    first = asyncio.create_task(bench.follow())
    bench.write("one", "two")
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    published = len(bench.publisher.events)
    bench.write("three")
    bench.world.end(NAME)
    await bench.follow()
    again = [event.data for event in bench.publisher.events[published:] if isinstance(event.data, Log)]
    assert [log.n for log in again] == [2]
    assert [*lines_of(bench.publisher.events).values()] == [["one", "two", "three"]]


async def test_a_forced_build_is_looked_up_by_its_own_digest(bench: Bench) -> None:
    # Another build may have moved the tag.
    record = bench.world.records[NAME]
    record.spec = record.spec.model_copy(
        update={"request": record.spec.request.model_copy(update={"force": True})}
    )
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    assert bench.looked_up == [f"{record.spec.image}@{DIGEST}"]
    assert isinstance(bench.end, Completed)
    assert bench.end.image == f"{record.spec.image}@{DIGEST}"


@pytest.mark.parametrize("denials", [1, 2])
async def test_an_image_that_the_registry_shows_only_after_a_moment_is_not_built_again(
    bench: Bench, denials: int
) -> None:
    bench.answers = [*([None] * denials), IMAGE]
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    assert isinstance(bench.end, Completed)
    assert bench.end.attempt == 1
    assert len(bench.looked_up) == denials + 1


async def test_an_image_that_the_registry_denies_again_and_again_is_built_again(bench: Bench) -> None:
    bench.answers = [None]
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    outcome = (await status_of(bench)).outcome
    assert outcome is not None
    assert outcome.kind == "retry"


async def test_two_followers_at_once_publish_the_same_end(bench: Bench) -> None:
    bench.write("one")
    bench.answers = [IMAGE, ImageInfo(f"sha256:{'b' * 64}", 7)]
    bench.world.end(NAME, digest=DIGEST)
    await asyncio.gather(bench.follow(), bench.follow())
    assert len([event for event in bench.publisher.events if event.is_terminal]) == 2
    assert isinstance(bench.end, Completed)  # ends_of compares them


async def test_a_recorded_outcome_is_published_after_a_crash_whatever_the_registry_says_now(
    bench: Bench,
) -> None:
    bench.world.end(NAME, digest=DIGEST)
    await bench.follow()
    first = bench.end
    await bench.executor.update_status(NAME, lambda status: status.model_copy(update={"reported": False}))
    bench.answers = [None]
    await bench.follow()
    assert bench.end == first


async def test_the_end_is_published_once_rabbitmq_is_back(bench: Bench) -> None:
    bench.world.end(NAME)
    bench.publisher.refusals = 0
    attempt = await bench.executor.get(NAME)
    assert attempt is not None
    follower = Follower(attempt.model_copy(update={"status": AttemptStatus(confirmed_line=0)}), bench.context)
    bench.publisher.refusals = 5
    await follower.run()
    assert isinstance(bench.end, Completed)


async def test_the_image_check_is_retried_while_the_registry_is_away(bench: Bench) -> None:
    bench.answers = [RegistryUnavailable("away"), RegistryUnavailable("away"), IMAGE]
    bench.world.end(NAME)
    await bench.follow()
    assert isinstance(bench.end, Completed)
    assert bench.end.digest == DIGEST


async def test_an_infrastructure_failure_gets_another_attempt_that_inherits_the_requests(
    bench: Bench,
) -> None:
    bench.world.kill(NAME)
    await bench.follow()
    assert not ends_of(bench.publisher.events)
    second = next(attempt for attempt in bench.attempts if attempt.spec.attempt == 2)
    assert second.status.requests == {"r": "digest"}
    progress = [event.data for event in bench.publisher.events if isinstance(event.data, Progress)]
    assert progress[-1].detail.failed_reason == "builder_lost"
    bench.world.kill(second.name)
    await bench.follow(second.name)
    assert isinstance(bench.end, Failed)
    assert bench.end.attempt == 2


async def test_repeating_a_retry_after_a_crash_creates_no_third_attempt(bench: Bench) -> None:
    bench.world.kill(NAME)
    await bench.follow()
    await bench.follow()
    assert sorted(attempt.spec.attempt for attempt in bench.attempts) == [1, 2]


async def test_an_attempt_whose_name_another_build_holds_gets_another_name(bench: Bench) -> None:
    name = AttemptName("build-1-a2")
    await bench.executor.create(a_spec(name, build_id="other", request_id="other"), AttemptStatus())
    bench.world.kill(NAME)
    await bench.follow()
    assert (await status_of(bench)).reported
    await bench.follow()
    [second] = bench.world.records.keys() - {NAME, name}
    attempt = await bench.executor.get(second)
    assert attempt is not None
    assert (attempt.spec.build_id, attempt.spec.attempt) == (a_spec(NAME).build_id, 2)
    assert attempt.status.requests == {"r": "digest"}
    held = await bench.executor.get(name)
    assert held is not None
    assert held.status == AttemptStatus(), "the other build is left alone"


async def test_an_attempt_whose_name_something_else_holds_gets_another_name(bench: Bench) -> None:
    bench.world.taken.add("build-1-a2")
    bench.world.kill(NAME)
    await bench.follow()
    [second] = bench.world.records.keys() - {NAME}
    assert second.startswith("build-1-a2-")


async def test_a_cancel_between_two_attempts_reaches_the_second(bench: Bench) -> None:
    bench.world.kill(NAME)
    create = bench.executor.create

    async def cancelled_first(spec: object, status: AttemptStatus) -> tuple[Attempt, bool]:
        await bench.executor.update_status(NAME, lambda old: old.model_copy(update={"cancelled_by": "ada"}))
        return await create(spec, status)  # type: ignore[arg-type]

    bench.executor.create = cancelled_first  # type: ignore[method-assign]
    await bench.follow()
    second = next(attempt for attempt in bench.attempts if attempt.spec.attempt == 2)
    await bench.follow(second.name)
    assert isinstance(bench.end, Cancelled)
    assert bench.end.by == "ada"


async def test_a_cancel_right_before_the_hand_over_is_recorded_reaches_the_second_attempt(
    bench: Bench,
) -> None:
    bench.world.kill(NAME)
    update = bench.executor.update_status

    async def cancelled_first(name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]) -> Attempt:
        if name == NAME and change(await status_of(bench)).reported:
            bench.executor.update_status = update  # type: ignore[method-assign]
            await update(NAME, lambda old: old.model_copy(update={"cancelled_by": "ada"}))
        return await update(name, change)

    bench.executor.update_status = cancelled_first  # type: ignore[method-assign]
    await bench.follow()
    assert (await status_of(bench)).reported
    second = next(attempt for attempt in bench.attempts if attempt.spec.attempt == 2)
    await bench.follow(second.name)
    assert isinstance(bench.end, Cancelled)
    assert bench.end.by == "ada"


def waits(bench: Bench) -> list[Progress]:
    events = [event.data for event in bench.publisher.events]
    return [data for data in events if isinstance(data, Progress) and data.detail.gives_up_at]


async def test_a_build_that_lost_the_engine_waits_for_it_and_is_tried_again(bench: Bench) -> None:
    bench.world.engine_problem = "The engine is away."
    bench.world.end(NAME, "docker_unavailable")
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(600)
    assert len(bench.world.records) == 1
    assert not following.done()
    [wait] = waits(bench)
    assert wait.message.startswith("The engine is away. The build waits and is tried again once that is over")
    assert (wait.attempt, wait.detail.failed_reason) == (2, "docker_unavailable")
    assert bench.breakers.outage_of(ENGINE)
    bench.world.engine_problem = None
    await asyncio.sleep(10)
    await following
    assert not bench.breakers.outage_of(ENGINE)
    second = bench.world.records[AttemptName("build-1-a2")].spec
    assert (second.attempt, second.interruptions, second.is_last) == (2, 1, False)


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)])
async def test_a_jump_of_the_clock_during_an_outage_neither_ends_nor_extends_the_wait(
    bench: Bench, jump: timedelta
) -> None:
    bench.world.engine_problem = "The engine is away."
    bench.world.end(NAME, "docker_unavailable")
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(60)
    bench.jump = jump
    await asyncio.sleep(5 * 3600)
    assert not following.done()
    await asyncio.sleep(3600)
    assert following.done()
    await following


async def test_a_build_whose_registry_went_away_during_the_push_waits_for_it(bench: Bench) -> None:
    bench.answers = [RegistryUnavailable("The registry is away.", outage_of=REGISTRY)] * 20 + [None]
    bench.world.end(NAME, "push_failed")
    await bench.follow()
    assert len(waits(bench)) == 1
    assert bench.world.records[AttemptName("build-1-a2")].spec.interruptions == 1


async def test_a_build_that_waits_for_the_engine_can_be_cancelled(bench: Bench) -> None:
    bench.world.engine_problem = "The engine is away."
    bench.world.end(NAME, "docker_unavailable")
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(60)
    cancelled = await bench.executor.update_status(
        NAME, lambda status: status.model_copy(update={"cancelled_by": "ada"})
    )
    bench.attempts.put(cancelled)
    await asyncio.sleep(10)
    assert following.done()
    await bench.follow(AttemptName("build-1-a2"))
    assert isinstance(bench.end, Cancelled)


async def test_an_engine_that_stays_away_fails_the_build_in_the_end(bench: Bench) -> None:
    bench.world.engine_problem = "The engine is away."
    bench.world.end(NAME, "docker_unavailable", message="It did not answer.")
    record = bench.world.records[NAME]
    record.ended_at = datetime.now(UTC) - timedelta(hours=7)
    await bench.follow()
    last = AttemptName("build-1-a2")
    bench.world.end(last, "docker_unavailable", message="It did not answer.")
    await bench.follow(last)
    assert isinstance(bench.end, Failed)
    assert (bench.end.reason, bench.end.attempt) == ("docker_unavailable", 2)


async def test_lost_lines_are_published_as_a_gap(bench: Bench) -> None:
    bench.write("one", "two", "three")
    bench.world.lose_lines(NAME, 1, 1)
    bench.world.end(NAME)
    await bench.follow()
    assert "gap" in bench.publisher.kinds


async def test_a_removed_record_ends_the_build_as_record_lost(bench: Bench) -> None:
    following = asyncio.create_task(bench.follow())
    await asyncio.sleep(1)
    bench.world.remove(NAME)
    await following
    assert isinstance(bench.end, Failed)
    assert bench.end.reason == "record_lost"
