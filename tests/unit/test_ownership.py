"""Replicas agree on whose a build is and who may start one, without talking, whoever comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.cleaner import Cleaner, due
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    Members,
    PendingDeadline,
)
from rabbit2docker.consumer.following.follower import FollowerContext
from rabbit2docker.consumer.following.outcome import Evidence, ImageCheck, decide
from rabbit2docker.consumer.following.supervisor import FollowerSupervisor
from rabbit2docker.consumer.ownership import Ownership, Slots, shares
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import LimitSettings, Settings
from rabbit2docker_schemas.events import Completed, Failed
from rabbit2docker_schemas.reasons import FailureReason
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.promises import ends_of, lines_of
from tests.support.publishing import RecordingPublisher
from tests.support.records import NOW, a_spec, an_attempt

members_of_any = st.sets(st.from_regex(r"replica-[a-f0-9]{1,6}", fullmatch=True), min_size=1, max_size=12)
DIGEST: Final = f"sha256:{'a' * 64}"


class SharedExecutor(MemoryExecutor):
    """One replica's view of a world that several share; the test says who lives."""

    def __init__(self, world: MemoryWorld, me: str) -> None:
        super().__init__(world)
        self.me = me
        self.swept = 0
        self._told: asyncio.Queue[frozenset[str]] = asyncio.Queue()

    def tell(self, *live: str) -> None:
        """Have this replica hear who lives."""
        self._told.put_nowait(frozenset(live))

    async def members(self) -> AsyncIterator[Members]:
        while True:
            yield Members(self.me, await self._told.get())

    async def sweep(self) -> None:
        self.swept += 1


async def an_ownership(me: str, *live: str) -> Ownership:
    """Return the ownership of a replica that has heard who lives."""
    executor = SharedExecutor(MemoryWorld(), me)
    ownership, heard = Ownership(executor), asyncio.Event()
    ownership.subscribe(heard.set)
    task = asyncio.create_task(ownership.run())
    executor.tell(*live)
    await heard.wait()
    task.cancel()
    return ownership


# -- whose it is


@given(st.text(), members_of_any)
def test_everybody_finds_the_same_owner_whatever_order_they_know_the_members_in(
    key: str, members: set[str]
) -> None:
    order = ranked(key, sorted(members))
    assert order == ranked(key, sorted(members, reverse=True)) == ranked(key, frozenset(members))
    assert sorted(order) == sorted(members)


@given(st.text(), members_of_any, st.data())
def test_when_a_member_goes_only_its_own_keys_move_and_to_the_next_in_line(
    key: str, members: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(members)))
    before, after = ranked(key, members), ranked(key, members - {gone})
    assert after == [member for member in before if member != gone]


def test_keys_spread_evenly() -> None:
    members = [f"replica-{number}" for number in range(4)]
    counts = dict.fromkeys(members, 0)
    for number in range(4000):
        counts[ranked(f"build-{number}", members)[0]] += 1
    assert all(800 < count < 1200 for count in counts.values())


async def test_of_all_replicas_exactly_one_owns_a_build() -> None:
    names = ("a", "b", "c")
    owners = [await an_ownership(name, *names) for name in names]
    for number in range(100):
        assert [owner.is_mine(f"build-{number}") for owner in owners].count(True) == 1


async def test_a_replica_that_is_cut_off_owns_nothing_and_starts_nothing() -> None:
    alone = await an_ownership("a", "b", "c")
    assert not any(alone.is_mine(f"build-{number}") for number in range(100))
    assert alone.slots(LimitSettings(concurrent_builds=10), []) == Slots(0, 0, 0)


async def test_before_the_first_word_about_the_members_nothing_is_owned() -> None:
    ownership = Ownership(SharedExecutor(MemoryWorld(), "a"))
    assert not ownership.known.is_set()
    assert not ownership.is_mine("build-1")
    assert ownership.slots(LimitSettings(), []) == Slots(0, 0, 0)


async def test_a_replica_that_has_heard_of_nobody_does_not_know_yet() -> None:
    ownership = await an_ownership("a")
    assert not ownership.known.is_set()


# -- who may start one

limits = st.integers(1, 40)
holdings = st.dictionaries(st.sampled_from([f"replica-{number}" for number in range(8)]), st.integers(0, 20))


@given(limits, st.integers(1, 8), holdings)
def test_all_shares_together_never_exceed_the_limit_unless_it_was_exceeded_before(
    limit: int, count: int, held: dict[str, int]
) -> None:
    names = [f"replica-{number}" for number in range(count)]
    held = {name: held.get(name, 0) for name in names}
    found = shares(limit, names, held)
    assert found.keys() == set(names)
    assert all(share >= 0 for share in found.values())
    taken = sum(held.values())
    assert taken + sum(found.values()) <= max(limit, taken)


@given(limits, st.integers(1, 8), holdings)
def test_no_slot_is_left_unused_when_nobody_holds_more_than_a_part(
    limit: int, count: int, held: dict[str, int]
) -> None:
    names = [f"replica-{number}" for number in range(count)]
    held = {name: min(held.get(name, 0), limit // count) for name in names}
    assert sum(shares(limit, names, held).values()) == limit - sum(held.values())


@given(limits, st.integers(2, 8), holdings)
def test_who_holds_more_than_a_part_takes_no_more(limit: int, count: int, held: dict[str, int]) -> None:
    names = [f"replica-{number}" for number in range(count)]
    found = shares(limit, names, held)
    assert all(found[name] == 0 for name in names if held.get(name, 0) > -(-limit // count))


@given(limits, st.integers(2, 6), holdings, st.data())
def test_replicas_that_look_at_different_moments_do_not_exceed_the_limit_together(
    limit: int, count: int, held: dict[str, int], data: st.DataObject
) -> None:
    """Builds that have ended since make the old view the smaller one, never the larger."""
    names = [f"replica-{number}" for number in range(count)]
    old = {name: held.get(name, 0) for name in names}
    new = {name: data.draw(st.integers(0, old[name])) for name in names}
    # Each knows what it holds itself, and of the others what it heard last.
    taken = dict(new)
    for name in names:
        view = {**(old if data.draw(st.booleans()) else new), name: new[name]}
        taken[name] += shares(limit, names, view)[name]
    assert sum(taken.values()) <= max(limit, sum(new.values()))


def test_shares_are_as_equal_as_they_can_be() -> None:
    assert shares(10, ["a", "b", "c"], {}) == {"a": 4, "b": 3, "c": 3}
    assert shares(1, ["a", "b"], {}) == {"a": 1, "b": 0}
    assert shares(10, ["a", "b"], {"a": 10}) == {"a": 0, "b": 0}
    assert shares(10, ["a", "b", "c"], {"a": 8}) == {"a": 0, "b": 1, "c": 1}
    assert shares(10, ["a", "b"], {"a": 3}) == {"a": 2, "b": 5}
    assert shares(2, ["a", "b"], {"a": 5, "b": 1}) == {"a": 0, "b": 0}


def held_by(created_by: str | None, name: str, state: AttemptState = AttemptState.RUNNING) -> Attempt:
    return an_attempt(name, state=state).model_copy(update={"created_by": created_by})


async def test_live_attempts_take_the_slots_of_who_made_them() -> None:
    ownership = await an_ownership("a", "a", "b")
    limits = LimitSettings(concurrent_builds=10, reserved_for_interactive=0)
    attempts = [
        held_by("a", "1"),
        held_by("a", "2"),
        held_by("a", "3", AttemptState.ENDED),
        held_by("b", "4"),
    ]
    assert ownership.slots(limits, attempts) == Slots(free=3, part=5, reserved=0)


async def test_attempts_of_a_replica_that_is_gone_count_for_who_inherits_them() -> None:
    owners = [await an_ownership(name, "a", "b") for name in ("a", "b")]
    limits = LimitSettings(concurrent_builds=10)
    attempts = [held_by("gone", str(number)) for number in range(4)]
    attempts += [held_by(None, str(number)) for number in range(4, 8)]
    free = [owner.slots(limits, attempts).free for owner in owners]
    inherited = [sum(owner.is_mine(attempt.spec.build_id) for attempt in attempts) for owner in owners]
    assert sum(inherited) == 8
    expected = shares(10, ["a", "b"], dict(zip(("a", "b"), inherited, strict=True)))
    assert free == [expected["a"], expected["b"]]


@given(st.integers(1, 6), st.integers(0, 20))
def test_what_is_reserved_is_shared_out_to_the_last_slot(count: int, reserved: int) -> None:
    async def reservations() -> list[int]:
        names = [f"replica-{number}" for number in range(count)]
        limits = LimitSettings(concurrent_builds=40, reserved_for_interactive=reserved)
        return [(await an_ownership(name, *names)).slots(limits, []).reserved for name in names]

    found = asyncio.run(reservations())
    assert sum(found) == reserved
    assert max(found) - min(found) <= 1


# -- followers


class Replica:
    """A service's part that follows builds, on a world it shares."""

    def __init__(self, world: MemoryWorld, me: str, publisher: RecordingPublisher) -> None:
        self.executor = SharedExecutor(world, me)
        self.attempts = AttemptCache(self.executor)
        self.ownership = Ownership(self.executor)
        events = EventPublisher(publisher, instance="test")
        tools = FollowerContext(self.executor, self.attempts, events, self._find_image, Settings())
        self.crew = FollowerSupervisor(tools, self.ownership)
        self._tasks: list[asyncio.Task[None]] = []

    async def _find_image(self, image: str) -> Any:
        class Found:
            digest = DIGEST
            size = 7

        return Found()

    def start(self) -> None:
        parts = (self.ownership.run(), self.attempts.run(), self.crew.run())
        self._tasks = [asyncio.ensure_future(part) for part in parts]

    async def end(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def follows(self, name: str) -> bool:
        return any(task.get_name() == f"follower of {name}" and not task.done() for task in self._own_tasks())

    def _own_tasks(self) -> list[asyncio.Task[None]]:
        return list(self.crew._tasks.values())


class Pair:
    """Two replicas, `a` and `b`."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.publisher = RecordingPublisher()
        self.replicas = {name: Replica(self.world, name, self.publisher) for name in ("a", "b")}

    def tell(self, *live: str) -> None:
        for replica in self.replicas.values():
            replica.executor.tell(*live)

    async def create(self, name: str) -> str:
        await self.replicas["a"].executor.create(a_spec(name), AttemptStatus(requests={name: "digest"}))
        return name

    async def create_for(self, owner: str) -> str:
        """Make a build that is `owner`'s while both live."""
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
    """Let everything happen that does not wait for a clock, and what waits for short pauses."""
    await asyncio.sleep(1)


@pytest.mark.looptime
async def test_each_build_is_followed_by_its_owner_alone(pair: Pair) -> None:
    pair.tell("a", "b")
    names = [await pair.create_for("a"), await pair.create_for("b")]
    await settle()
    assert [pair.followers(name) for name in names] == [["a"], ["b"]]


@pytest.mark.looptime
async def test_nothing_is_followed_before_anybody_is_known_to_live(pair: Pair) -> None:
    name = await pair.create_for("a")
    await settle()
    assert pair.followers(name) == []
    pair.tell("a", "b")
    await settle()
    assert pair.followers(name) == ["a"]


@pytest.mark.looptime
async def test_a_lost_replicas_build_is_finished_by_the_other_with_every_line_once(pair: Pair) -> None:
    pair.tell("a", "b")
    name = await pair.create_for("b")
    await settle()
    pair.world.write(name, "one", "two")
    await settle()
    await pair.replicas["b"].end()
    pair.world.write(name, "three")
    pair.tell("a")
    await settle()
    assert pair.followers(name) == ["a"]
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["one", "two", "three"]]
    [end] = pair.ends
    assert isinstance(end, Completed)


@pytest.mark.looptime
async def test_a_build_changes_hands_when_its_owner_comes_and_goes(pair: Pair) -> None:
    pair.tell("a")
    name = await pair.create_for("b")
    for number, (live, owner) in enumerate(((("a", "b"), "b"), (("a",), "a"), (("a", "b"), "b"))):
        pair.tell(*live)
        await settle()
        assert pair.followers(name) == [owner]
        pair.world.write(name, f"line {number}")
        await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["line 0", "line 1", "line 2"]]
    assert len(pair.ends) == 1


@pytest.mark.looptime
async def test_a_build_that_comes_back_before_its_follower_let_go_is_followed_again(pair: Pair) -> None:
    pair.tell("a")
    name = await pair.create_for("b")
    await settle()
    assert pair.followers(name) == ["a"]
    # Both words come before the follower has had a moment to end.
    pair.tell("a", "b")
    pair.tell("a")
    await settle()
    assert pair.followers(name) == ["a"]
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert len(pair.ends) == 1


@pytest.mark.looptime
async def test_a_replica_that_is_cut_off_follows_nothing_until_it_is_back(pair: Pair) -> None:
    pair.tell("a", "b")
    name = await pair.create_for("a")
    await settle()
    pair.replicas["a"].executor.tell("b")
    await settle()
    assert pair.followers(name) == []
    pair.replicas["a"].executor.tell("a", "b")
    await settle()
    assert pair.followers(name) == ["a"]


@pytest.mark.looptime
async def test_two_that_both_take_a_build_for_theirs_tell_one_end(pair: Pair) -> None:
    name = await pair.create_for("a")
    pair.replicas["a"].executor.tell("a")
    pair.replicas["b"].executor.tell("b")
    await settle()
    assert pair.followers(name) == ["a", "b"]
    pair.world.write(name, "one", "two")
    await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    assert pair.lines == [["one", "two"]]
    assert len(pair.ends) == 1


@pytest.mark.looptime
async def test_a_build_whose_end_is_told_is_not_taken_over(pair: Pair) -> None:
    pair.tell("a", "b")
    name = await pair.create_for("b")
    await settle()
    pair.world.end(name, digest=DIGEST)
    await settle()
    told = len(pair.publisher.events)
    pair.tell("a")
    await settle()
    assert pair.followers(name) == []
    assert len(pair.publisher.events) == told


# -- what is cleaned


WAITED_FOR: Final = PendingDeadline(
    reason=FailureReason.BUILDER_IMAGE_UNAVAILABLE,
    message="The builder image cannot be pulled: not found",
    at=NOW + timedelta(seconds=90),
)


def hopeless(attempt: Attempt, **changes: Any) -> Attempt:
    return attempt.model_copy(
        update={"state": AttemptState.PENDING, "started_at": None, "pending_deadline": WAITED_FOR, **changes}
    )


def test_a_hopeless_attempt_is_due_at_its_time_and_not_before() -> None:
    attempt = hopeless(an_attempt())
    assert due(attempt, WAITED_FOR.at - timedelta(microseconds=1)) is None
    assert due(attempt, WAITED_FOR.at) == WAITED_FOR


def test_what_runs_or_has_ended_or_is_cancelled_is_not_given_up() -> None:
    late = WAITED_FOR.at + timedelta(seconds=1)
    assert due(hopeless(an_attempt(), pending_deadline=None), late) is None
    assert due(hopeless(an_attempt(), state=AttemptState.ENDED), late) is None
    assert due(hopeless(an_attempt(), status=AttemptStatus(cancelled_by="ada")), late) is None


class Cleaning:
    """A replica that cleans, in fake time."""

    def __init__(self, *live: str) -> None:
        self.world = MemoryWorld(starts_at_once=False)
        self.executor = SharedExecutor(self.world, "a")
        self.attempts = AttemptCache(self.executor)
        self.live = live or ("a",)
        self._began = asyncio.get_running_loop().time()
        self._tasks: list[asyncio.Task[None]] = []

    def now(self) -> datetime:
        return NOW + timedelta(seconds=asyncio.get_running_loop().time() - self._began)

    async def start(self) -> None:
        ownership = await an_ownership("a", *self.live)
        self.cleaner = Cleaner(self.executor, self.attempts, ownership, keep_seconds=600, now=self.now)
        self._tasks = [asyncio.create_task(self.cleaner.run())]
        await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(self, name: str, **changes: Any) -> Attempt:
        attempt, _ = await self.executor.create(a_spec(name), AttemptStatus())
        return self.attempts.put(hopeless(attempt, **changes))

    async def until(self, seconds: float) -> None:
        """Wait until so many seconds after the beginning."""
        await asyncio.sleep(self._began + seconds - asyncio.get_running_loop().time())


@pytest.mark.looptime
async def test_a_hopeless_attempt_is_ended_at_its_time_with_words_for_a_person() -> None:
    bench = Cleaning()
    await bench.start()
    await bench.create("build-1")
    await bench.until(89.9)
    assert bench.world.cancels == []
    await bench.until(90.1)
    assert bench.world.cancels == ["build-1"]
    await bench.end()
    attempt = await bench.executor.get(AttemptName("build-1"))
    assert attempt is not None
    found = decide(attempt, attempt.status, Evidence(ImageCheck.THERE, (), 0, 5))
    assert isinstance(found, Failed)
    assert (found.reason, found.message) == (WAITED_FOR.reason, WAITED_FOR.message)


@pytest.mark.looptime
async def test_a_grace_that_is_over_already_is_noticed_within_a_moment() -> None:
    bench = Cleaning()
    await bench.start()
    await bench.until(7)
    at_once = WAITED_FOR.model_copy(update={"at": bench.now() - timedelta(seconds=1)})
    await bench.create("build-1", pending_deadline=at_once)
    await bench.until(8.5)
    assert bench.world.cancels == ["build-1"]
    await bench.end()


@pytest.mark.looptime
async def test_hopeless_attempts_that_keep_coming_do_not_put_off_each_others_end() -> None:
    bench = Cleaning()
    await bench.start()
    for number in range(60):
        at_once = WAITED_FOR.model_copy(update={"at": bench.now()})
        await bench.create(f"build-{number}", pending_deadline=at_once)
        await asyncio.sleep(0.5)
    assert len(bench.world.cancels) > 50
    await bench.end()


@pytest.mark.looptime
async def test_an_attempt_that_starts_after_all_is_left_alone() -> None:
    bench = Cleaning()
    await bench.start()
    attempt = await bench.create("build-1")
    await bench.until(80)
    bench.attempts.put(attempt.model_copy(update={"state": AttemptState.RUNNING, "pending_deadline": None}))
    await bench.until(200)
    assert bench.world.cancels == []
    await bench.end()


@pytest.mark.looptime
async def test_what_a_person_cancelled_meanwhile_stays_cancelled() -> None:
    bench = Cleaning()
    await bench.start()
    await bench.create("build-1")
    await bench.executor.update_status(
        AttemptName("build-1"), lambda status: status.model_copy(update={"cancelled_by": "ada"})
    )
    await bench.until(120)
    attempt = await bench.executor.get(AttemptName("build-1"))
    assert attempt is not None
    assert (attempt.status.cancelled_by, attempt.status.cancel_reason) == ("ada", None)
    await bench.end()


@pytest.mark.looptime
async def test_a_hopeless_attempt_is_given_up_once_the_cluster_is_back() -> None:
    bench = Cleaning()
    await bench.start()
    await bench.create("build-1")
    await bench.until(80)
    bench.world.failure = ExecutorUnavailable("away")
    await bench.until(100)
    assert bench.world.cancels == []
    bench.world.failure = None
    await bench.until(125)
    assert bench.world.cancels == ["build-1"]
    await bench.end()


async def test_a_cleaner_touches_only_what_is_its_own() -> None:
    world = MemoryWorld(starts_at_once=False)
    late = NOW + timedelta(hours=2)
    names = [f"build-{number}" for number in range(20)]
    waiting, told = names[::2], names[1::2]
    members = ("a", "b")
    touched: dict[str, set[str]] = {}
    for me in members:
        executor = SharedExecutor(world, me)
        attempts = AttemptCache(executor)
        for name in names:
            attempt, _ = await executor.create(a_spec(name), AttemptStatus())
            if name in waiting:
                attempts.put(hopeless(attempt))
            else:
                reported = AttemptStatus(reported=True, reported_at=NOW)
                ended = {"state": AttemptState.ENDED, "status": reported}
                attempts.put(attempt.model_copy(update=ended))
                world.records[attempt.name].state = AttemptState.ENDED
        before = set(world.records), set(world.cancels)
        ownership = await an_ownership(me, *members)
        await Cleaner(executor, attempts, ownership, keep_seconds=600, now=lambda: late).clean()
        touched[me] = (before[0] - set(world.records)) | (set(world.cancels) - before[1])
        for name in names:
            expected = ranked(a_spec(name).build_id, members)[0] == me
            assert (name in touched[me]) == expected, name
        for name in told:
            await executor.create(a_spec(name), AttemptStatus())
    assert touched["a"] | touched["b"] == set(names)
    assert touched["a"]
    assert touched["b"]


async def test_one_replica_sweeps_for_all() -> None:
    swept = []
    for me in ("a", "b", "c"):
        executor = SharedExecutor(MemoryWorld(), me)
        ownership = await an_ownership(me, "a", "b", "c")
        clock = [NOW]
        cleaner = Cleaner(
            executor,
            AttemptCache(executor),
            ownership,
            keep_seconds=600,
            now=partial(clock.__getitem__, 0),
        )
        await cleaner.clean()
        assert executor.swept == 0
        clock[0] += timedelta(hours=1)
        await cleaner.clean()
        swept.append(executor.swept)
    assert sorted(swept) == [0, 0, 1]
