"""A reader that follows the rule has each event and each line once, whatever comes in whatever order."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.broker.merging import Merged
from rabbit2docker_schemas import examples, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Gap, Kind, Log, LogLine, Phase

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
    merged, end = Merged(), examples.EVENTS[Kind.COMPLETED]
    assert merged.take(end) == [end]
    assert merged.take(end) == []


def test_of_overlapping_lines_only_the_new_ones_are_given() -> None:
    merged = Merged()
    merged.take(log(0, 4))
    [new] = merged.take(log(3, 6))
    assert isinstance(new.data, Log)
    assert (new.data.n, texts([new])) == (5, ["5", "6"])
    assert merged.take(log(2, 6)) == []


def test_each_attempt_has_a_log_of_its_own() -> None:
    merged = Merged()
    assert merged.take(log(0, 4)) != []
    assert merged.take(log(0, 4, attempt=2)) != []


def test_a_hole_that_nobody_told_is_given_as_a_gap() -> None:
    merged = Merged()
    merged.take(log(0, 1))
    hole, new = merged.take(log(5, 6))
    assert isinstance(hole.data, Gap)
    assert (hole.data.first, hole.data.last) == (2, 4)
    assert texts([new]) == ["5", "6"]


def test_a_gap_that_was_told_is_given_once_and_the_log_goes_on_behind_it() -> None:
    merged = Merged()
    merged.take(log(0, 1))
    assert len(merged.take(gap(2, 4))) == 1
    assert merged.take(gap(2, 4)) == []
    assert texts(merged.take(log(5, 6))) == ["5", "6"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=30))
def test_no_line_is_given_twice_or_out_of_order(batches: list[tuple[int, int]]) -> None:
    merged = Merged()
    given_lines = [
        int(text) for first, more in batches for text in texts(merged.take(log(first, first + more)))
    ]
    assert given_lines == sorted(set(given_lines))
