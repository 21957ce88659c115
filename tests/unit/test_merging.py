"""A reader that follows the rule has each event and each line once, whatever comes in whatever order."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.client.resequencer import Deduplicator, Resequencer, SeenFilter
from rabbit2docker_schemas import examples, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Completed, Gap, Kind, Log, LogLine, Phase

BUILD = ids.build_id_of("default", "r")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def log(first: int, last: int, *, attempt: int = 1) -> Event:
    lines = [LogLine(phase=Phase.BUILDING, text=str(n), ts=NOW) for n in range(first, last + 1)]
    data = Log(build_id=BUILD, attempt=attempt, n=first, lines=lines)
    return Event(ids.lines_event_id(BUILD, attempt, first, last, "log"), "default", NOW, data)


def gap(first: int, last: int) -> Event:
    data = Gap(build_id=BUILD, attempt=1, first=first, last=last)
    return Event(ids.lines_event_id(BUILD, 1, first, last, "gap"), "default", NOW, data)


def texts(events: list[Event]) -> list[str]:
    return [line.text for event in events if isinstance(event.data, Log) for line in event.data.lines]


def test_an_event_that_comes_twice_is_given_once() -> None:
    merged, end = Deduplicator(), examples.EVENTS[Kind.COMPLETED]
    assert merged.push(end) == [end]
    assert merged.push(end) == []


def test_of_overlapping_lines_only_the_new_ones_are_given() -> None:
    merged = Deduplicator()
    merged.push(log(0, 4))
    [new] = merged.push(log(3, 6))
    assert isinstance(new.data, Log)
    assert (new.data.n, texts([new])) == (5, ["5", "6"])
    assert merged.push(log(2, 6)) == []


def test_each_attempt_has_a_log_of_its_own() -> None:
    merged = Deduplicator()
    assert merged.push(log(0, 4)) != []
    assert merged.push(log(0, 4, attempt=2)) != []


def test_a_hole_that_nobody_told_is_given_as_a_gap() -> None:
    merged = Deduplicator()
    merged.push(log(0, 1))
    hole, new = merged.push(log(5, 6))
    assert isinstance(hole.data, Gap)
    assert (hole.data.first, hole.data.last) == (2, 4)
    assert texts([new]) == ["5", "6"]


def test_a_gap_that_was_told_is_given_once_and_the_log_goes_on_behind_it() -> None:
    merged = Deduplicator()
    merged.push(log(0, 1))
    assert len(merged.push(gap(2, 4))) == 1
    assert merged.push(gap(2, 4)) == []
    assert texts(merged.push(log(5, 6))) == ["5", "6"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=30))
def test_no_line_is_given_twice_or_out_of_order(batches: list[tuple[int, int]]) -> None:
    merged = Deduplicator()
    given_lines = [
        int(text) for first, more in batches for text in texts(merged.push(log(first, first + more)))
    ]
    assert given_lines == sorted(set(given_lines))


def end(count: int) -> Event:
    data = Completed(build_id=BUILD, image="i", digest="d", resolved_ref="0", attempt=1, lines=count)
    return Event(ids.terminal_event_id(BUILD), "default", NOW, data)


def test_lines_that_come_too_early_wait_for_those_before_them() -> None:
    order = Resequencer()
    assert texts(order.push(log(0, 1))) == ["0", "1"]
    assert order.push(log(4, 5)) == []
    assert order.push(log(4, 5)) == []
    assert order.is_holding
    assert texts(order.push(log(2, 3))) == ["2", "3", "4", "5"]
    assert not order.is_holding


def test_an_end_waits_for_the_lines_that_it_counts() -> None:
    order = Resequencer()
    order.push(log(0, 1))
    assert order.push(end(4)) == []
    *new, last = order.push(log(2, 3))
    assert texts(new) == ["2", "3"]
    assert last.is_terminal


def test_what_never_comes_is_a_gap_before_what_waited_for_it() -> None:
    order = Resequencer()
    order.push(log(0, 1))
    assert order.push(end(9)) == order.push(log(4, 5)) == []
    assert [event.kind for event in order.flush()] == ["gap", "log", "gap", "completed"]
    assert not order.is_holding


def test_not_more_than_a_few_events_wait() -> None:
    order = Resequencer()
    given_events = [event for n in range(1, 300) for event in order.push(log(n, n))]
    assert given_events[0].kind == "gap"
    assert texts(given_events) == [str(n) for n in range(1, 300)]


@given(st.permutations([*range(0, 60, 3)]), st.lists(st.integers(0, 19), max_size=10))
def test_in_whatever_order_lines_come_they_are_told_in_theirs(firsts: list[int], again: list[int]) -> None:
    order = Resequencer()
    given_events: list[Event] = []
    for first in [*firsts[:10], *(firsts[n] for n in again), *firsts[10:]]:
        given_events += order.push(log(first, first + 2))
    given_events += order.push(end(60))
    assert texts(given_events) == [str(n) for n in range(60)]
    assert given_events[-1].is_terminal


def test_of_all_builds_each_event_is_given_once() -> None:
    once = SeenFilter()
    assert once.push(log(0, 1)) == [log(0, 1)]
    assert once.push(log(0, 1)) == once.flush() == []
