"""Deduplicator, Resequencer and SeenFilter: each event and each line once, in order."""

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


def test_a_repeated_event_is_dropped() -> None:
    deduplicator, end = Deduplicator(), examples.EVENTS[Kind.COMPLETED]
    assert deduplicator.push(end) == [end]
    assert deduplicator.push(end) == []


def test_overlapping_lines_are_cut_to_the_new_ones() -> None:
    deduplicator = Deduplicator()
    deduplicator.push(log(0, 4))
    [new] = deduplicator.push(log(3, 6))
    assert isinstance(new.data, Log)
    assert (new.data.n, texts([new])) == (5, ["5", "6"])
    assert deduplicator.push(log(2, 6)) == []


def test_each_attempt_has_its_own_line_numbers() -> None:
    deduplicator = Deduplicator()
    assert deduplicator.push(log(0, 4)) != []
    assert deduplicator.push(log(0, 4, attempt=2)) != []


def test_missing_lines_without_a_published_gap_become_a_gap() -> None:
    deduplicator = Deduplicator()
    deduplicator.push(log(0, 1))
    hole, new = deduplicator.push(log(5, 6))
    assert isinstance(hole.data, Gap)
    assert (hole.data.first, hole.data.last) == (2, 4)
    assert texts([new]) == ["5", "6"]


def test_a_published_gap_is_passed_on_once_and_the_log_continues_after_it() -> None:
    deduplicator = Deduplicator()
    deduplicator.push(log(0, 1))
    assert len(deduplicator.push(gap(2, 4))) == 1
    assert deduplicator.push(gap(2, 4)) == []
    assert texts(deduplicator.push(log(5, 6))) == ["5", "6"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=30))
def test_no_line_is_passed_on_twice_or_out_of_order(batches: list[tuple[int, int]]) -> None:
    deduplicator = Deduplicator()
    passed = [
        int(text) for first, more in batches for text in texts(deduplicator.push(log(first, first + more)))
    ]
    assert passed == sorted(set(passed))


def end(count: int) -> Event:
    data = Completed(build_id=BUILD, image="i", digest="d", resolved_ref="0", attempt=1, lines=count)
    return Event(ids.terminal_event_id(BUILD), "default", NOW, data)


def test_early_lines_are_held_until_the_lines_before_arrive() -> None:
    order = Resequencer()
    assert texts(order.push(log(0, 1))) == ["0", "1"]
    assert order.push(log(4, 5)) == []
    assert order.push(log(4, 5)) == []
    assert order.is_holding
    assert texts(order.push(log(2, 3))) == ["2", "3", "4", "5"]
    assert not order.is_holding


def test_an_end_is_held_until_the_lines_it_counts_arrive() -> None:
    order = Resequencer()
    order.push(log(0, 1))
    assert order.push(end(4)) == []
    *new, last = order.push(log(2, 3))
    assert texts(new) == ["2", "3"]
    assert last.is_terminal


def test_flush_puts_a_gap_in_place_of_missing_lines() -> None:
    order = Resequencer()
    order.push(log(0, 1))
    assert order.push(end(9)) == order.push(log(4, 5)) == []
    assert [event.kind for event in order.flush()] == ["gap", "log", "gap", "completed"]
    assert not order.is_holding


def test_at_most_max_held_events_are_held() -> None:
    order = Resequencer()
    passed = [event for n in range(1, 300) for event in order.push(log(n, n))]
    assert passed[0].kind == "gap"
    assert texts(passed) == [str(n) for n in range(1, 300)]


@given(st.permutations([*range(0, 60, 3)]), st.lists(st.integers(0, 19), max_size=10))
def test_lines_in_any_order_are_passed_on_in_theirs(firsts: list[int], again: list[int]) -> None:
    order = Resequencer()
    passed: list[Event] = []
    for first in [*firsts[:10], *(firsts[n] for n in again), *firsts[10:]]:
        passed += order.push(log(first, first + 2))
    passed += order.push(end(60))
    assert texts(passed) == [str(n) for n in range(60)]
    assert passed[-1].is_terminal


def test_a_seen_filter_passes_each_event_on_once() -> None:
    seen_filter = SeenFilter()
    assert seen_filter.push(log(0, 1)) == [log(0, 1)]
    assert seen_filter.push(log(0, 1)) == seen_filter.flush() == []
