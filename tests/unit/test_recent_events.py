"""Recent events stay within their bound, and never pass for the whole past of a build that they lack a part of."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.client.recent_events import BUILD_BYTES, PACKED_BYTES, RecentBuild, RecentEvents
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.tracing import Trace
from tests.support.client_events import accepted, completed, kinds, lines, progress

A, B = (ids.build_id_of("default", name) for name in "ab")
LARGE = 1_000_000


def filled(*events: Event, limit: int = LARGE, start: float = 10.0, step: float = 1.0) -> RecentEvents:
    """Return recent events of a connection since 1.0."""
    recent = RecentEvents(limit=limit)
    recent.mark_gap_possible(1.0)
    for number, event in enumerate(events):
        recent.add(event, event.body(), start + number * step)
    return recent


def past(recent: RecentEvents, build_id: str, since: float = 2.0) -> list[Event] | None:
    found = RecentBuild(recent, build_id, since).events()
    return None if found is None else list(found)


def test_the_past_of_a_build_is_returned_as_it_came() -> None:
    sent = [
        replace(accepted("a", A), trace=Trace(parent="p")),
        lines(0, 2, build_id=A),
        completed(build_id=A),
    ]
    recent = filled(sent[0], accepted("b", B), sent[1], lines(0, 1, build_id=B), sent[2])
    assert past(recent, A) == sent
    assert past(recent, A, since=12.0) == sent[1:]


def test_what_came_before_the_connection_or_a_gap_may_be_missing() -> None:
    recent = filled(accepted("a", A), lines(0, 1, build_id=A))
    assert past(recent, A, since=0.5) is None
    recent.mark_gap_possible(20.0)
    assert past(recent, A) is None
    recent.add(accepted("b", B), accepted("b", B).body(), 21.0)
    assert kinds(past(recent, B, since=20.5) or []) == ["accepted"]


def test_a_build_is_whole_from_the_event_that_the_index_says_began_it() -> None:
    begin = accepted("a", A)
    recent = filled(begin, lines(0, 1, build_id=A))
    found = RecentBuild(recent, A, None)
    assert found.events() is None
    assert kinds(list(found.events_from(begin) or ())) == ["accepted", "log"]


def test_a_repetition_of_the_event_that_began_a_build_is_not_its_beginning() -> None:
    begin = accepted("a", A)
    repeated = replace(begin, time=begin.time + timedelta(seconds=1))
    recent = filled(repeated, lines(5, 1, build_id=A))
    assert RecentBuild(recent, A, None).events_from(begin) is None


def test_a_build_that_is_built_again_is_its_newest_generation() -> None:
    again = replace(accepted("a", A), id=ids.request_event_id("default", "a", "accepted", "2"))
    recent = filled(
        accepted("a", A), completed(build_id=A), completed(build_id=A), again, lines(0, 1, build_id=A)
    )
    assert past(recent, A) is None, "for a reader of the first generation"
    found = RecentBuild(recent, A, None)
    assert [event.id for event in found.events_from(again) or ()] == [again.id, lines(0, 1, build_id=A).id]


def test_builds_that_ended_go_before_builds_that_trickle() -> None:
    old = [accepted("a", A), lines(0, 20, build_id=A, size=100), completed(build_id=A)]
    going = [accepted("b", B), *(lines(n, 1, build_id=B) for n in range(20))]
    recent = filled(*old, *going, limit=2 * BUILD_BYTES + 30 * PACKED_BYTES)
    assert past(recent, A) is None
    assert len(past(recent, B, since=12.5) or []) == len(going)


def test_a_build_that_floods_loses_its_past_and_spares_one_that_trickles() -> None:
    small = [accepted("b", B), progress("one", B), lines(0, 2, build_id=B)]
    flood = [lines(n, 20, build_id=A, size=100) for n in range(0, 2000, 20)]
    recent = filled(*small, *flood, limit=20_000)
    assert past(recent, B) == small
    assert past(recent, A) is None
    tail = list(RecentBuild(recent, A, None).newest(10.0 + len(small) + len(flood)))
    assert tail[-1] == flood[-1]
    assert 1 < len(tail) < 20


def test_nothing_is_held_without_memory_for_it() -> None:
    recent = filled(accepted("a", A), limit=0)
    assert past(recent, A) is None
    assert list(recent.of_build(A, 0.0)) == []


@given(
    events=st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ploc"), st.floats(0, 20)), max_size=80),
    limit=st.integers(3_000, 20_000),
)
def test_whatever_comes_the_bound_holds_and_no_past_lacks_a_part(
    events: list[tuple[int, str, float]], limit: int
) -> None:
    """Of each build, `whole` has all that came since the last possible gap."""
    recent, now = RecentEvents(limit=limit), 1.0
    recent.mark_gap_possible(now)
    whole: dict[str, list[Event]] = {}
    since = now + 0.001
    for number, (build, kind, pause) in enumerate(events):
        now += 0.01 + pause
        build_id = ids.build_id_of("default", f"h{build}")
        if kind == "o" and pause > 19:
            recent.mark_gap_possible(now)
            whole, since = {}, now + 0.001
            continue
        event = {
            "p": progress(str(number), build_id),
            "l": lines(number, 3, build_id=build_id, size=200),
            "o": progress("other", build_id),
            "c": completed(build_id=build_id),
        }[kind]
        recent.add(event, event.body(), now)
        whole.setdefault(build_id, []).append(event)
        held = sum(build.weight for build in recent._builds.values())
        assert held == recent._weight
        assert held <= limit
    for key, expected in whole.items():
        found = past(recent, key, since)
        assert found is None or found == expected
