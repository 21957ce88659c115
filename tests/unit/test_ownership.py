"""Each build has exactly one owner among the live replicas, and their slots add up to the limit."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.executors.base import Attempt, AttemptState
from rabbit2docker.consumer.ownership import Ownership, Slots, shares
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import LimitSettings
from tests.support.members import SharedExecutor, ownership_of
from tests.support.memory_executor import MemoryWorld
from tests.support.records import an_attempt

any_members = st.sets(st.from_regex(r"replica-[a-f0-9]{1,6}", fullmatch=True), min_size=1, max_size=12)


# -- builds


@given(st.text(), any_members)
def test_the_ranking_of_members_does_not_depend_on_their_order(key: str, members: set[str]) -> None:
    order = ranked(key, sorted(members))
    assert order == ranked(key, sorted(members, reverse=True)) == ranked(key, frozenset(members))
    assert sorted(order) == sorted(members)


@given(st.text(), any_members, st.data())
def test_when_a_member_leaves_only_its_keys_move_to_the_next_in_rank(
    key: str, members: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(members)))
    before, after = ranked(key, members), ranked(key, members - {gone})
    assert after == [member for member in before if member != gone]


def test_keys_spread_evenly_over_the_members() -> None:
    members = [f"replica-{number}" for number in range(4)]
    counts = dict.fromkeys(members, 0)
    for number in range(4000):
        counts[ranked(f"build-{number}", members)[0]] += 1
    assert all(800 < count < 1200 for count in counts.values())


async def test_exactly_one_replica_owns_a_build() -> None:
    names = ("a", "b", "c")
    owners = [await ownership_of(name, *names) for name in names]
    for number in range(100):
        assert [owner.is_mine(f"build-{number}") for owner in owners].count(True) == 1


async def test_a_replica_that_is_not_on_the_list_of_members_owns_nothing_and_has_no_slots() -> None:
    alone = await ownership_of("a", "b", "c")
    assert not any(alone.is_mine(f"build-{number}") for number in range(100))
    assert alone.slots(LimitSettings(concurrent_builds=10), []) == Slots(0, 0, 0)


async def test_a_replica_owns_nothing_before_the_first_list_of_members() -> None:
    ownership = Ownership(SharedExecutor(MemoryWorld(), "a"))
    assert not ownership.known.is_set()
    assert not ownership.is_mine("build-1")
    assert ownership.slots(LimitSettings(), []) == Slots(0, 0, 0)


async def test_an_empty_list_of_members_does_not_count_as_known() -> None:
    ownership = await ownership_of("a")
    assert not ownership.known.is_set()


# -- slots

limits = st.integers(1, 40)
holdings = st.dictionaries(st.sampled_from([f"replica-{number}" for number in range(8)]), st.integers(0, 20))


@given(limits, st.integers(1, 8), holdings)
def test_shares_together_never_exceed_the_limit_unless_it_was_exceeded_before(
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
def test_no_slot_is_left_unused_when_no_member_holds_more_than_its_share(
    limit: int, count: int, held: dict[str, int]
) -> None:
    names = [f"replica-{number}" for number in range(count)]
    held = {name: min(held.get(name, 0), limit // count) for name in names}
    assert sum(shares(limit, names, held).values()) == limit - sum(held.values())


@given(limits, st.integers(2, 8), holdings)
def test_a_member_that_holds_more_than_its_share_gets_no_more_slots(
    limit: int, count: int, held: dict[str, int]
) -> None:
    names = [f"replica-{number}" for number in range(count)]
    found = shares(limit, names, held)
    assert all(found[name] == 0 for name in names if held.get(name, 0) > -(-limit // count))


@given(limits, st.integers(2, 6), holdings, st.data())
def test_replicas_with_views_of_different_ages_do_not_exceed_the_limit_together(
    limit: int, count: int, held: dict[str, int], data: st.DataObject
) -> None:
    """A view only ages by builds that have ended: an old view never has too few builds."""
    names = [f"replica-{number}" for number in range(count)]
    old = {name: held.get(name, 0) for name in names}
    new = {name: data.draw(st.integers(0, old[name])) for name in names}
    # Each knows what it holds itself; its view of the others may be old.
    taken = dict(new)
    for name in names:
        view = {**(old if data.draw(st.booleans()) else new), name: new[name]}
        taken[name] += shares(limit, names, view)[name]
    assert sum(taken.values()) <= max(limit, sum(new.values()))


def test_shares_are_as_equal_as_possible() -> None:
    assert shares(10, ["a", "b", "c"], {}) == {"a": 4, "b": 3, "c": 3}
    assert shares(1, ["a", "b"], {}) == {"a": 1, "b": 0}
    assert shares(10, ["a", "b"], {"a": 10}) == {"a": 0, "b": 0}
    assert shares(10, ["a", "b", "c"], {"a": 8}) == {"a": 0, "b": 1, "c": 1}
    assert shares(10, ["a", "b"], {"a": 3}) == {"a": 2, "b": 5}
    assert shares(2, ["a", "b"], {"a": 5, "b": 1}) == {"a": 0, "b": 0}


def held_by(created_by: str | None, name: str, state: AttemptState = AttemptState.RUNNING) -> Attempt:
    return an_attempt(name, state=state).model_copy(update={"created_by": created_by})


async def test_live_attempts_take_the_slots_of_the_replica_that_created_them() -> None:
    ownership = await ownership_of("a", "a", "b")
    limits = LimitSettings(concurrent_builds=10, reserved_for_interactive=0)
    attempts = [
        held_by("a", "1"),
        held_by("a", "2"),
        held_by("a", "3", AttemptState.ENDED),
        held_by("b", "4"),
    ]
    assert ownership.slots(limits, attempts) == Slots(free=3, share=5, reserved=0)


async def test_attempts_of_a_lost_replica_take_the_slots_of_their_new_owners() -> None:
    owners = [await ownership_of(name, "a", "b") for name in ("a", "b")]
    limits = LimitSettings(concurrent_builds=10)
    attempts = [held_by("gone", str(number)) for number in range(4)]
    attempts += [held_by(None, str(number)) for number in range(4, 8)]
    free = [owner.slots(limits, attempts).free for owner in owners]
    inherited = [sum(owner.is_mine(attempt.spec.build_id) for attempt in attempts) for owner in owners]
    assert sum(inherited) == 8
    expected = shares(10, ["a", "b"], dict(zip(("a", "b"), inherited, strict=True)))
    assert free == [expected["a"], expected["b"]]


@given(st.integers(1, 6), st.integers(0, 20))
def test_reserved_slots_are_split_among_the_replicas_without_rest(count: int, reserved: int) -> None:
    async def reservations() -> list[int]:
        names = [f"replica-{number}" for number in range(count)]
        limits = LimitSettings(concurrent_builds=40, reserved_for_interactive=reserved)
        return [(await ownership_of(name, *names)).slots(limits, []).reserved for name in names]

    found = asyncio.run(reservations())
    assert sum(found) == reserved
    assert max(found) - min(found) <= 1
