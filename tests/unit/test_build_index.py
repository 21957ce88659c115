"""Entries of the index of builds and what follows from them, without a broker."""

from dataclasses import replace

from rabbit2docker.amqp.stream import StoredEvent
from rabbit2docker.client.build_index import (
    FILLERS,
    BuildEntries,
    fillers_among,
    is_beginning,
    newest_generation,
)
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import EventId, build_id_of
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.client_events import BUILD, accepted, completed, progress, rejected


def entries(*events: Event) -> BuildEntries | None:
    return newest_generation([StoredEvent(offset, event) for offset, event in enumerate(events, 100)])


def again(event: Event) -> Event:
    return replace(event, id=EventId(f"{event.id}-2"))


def test_a_build_goes_on_until_its_end() -> None:
    assert entries() is None
    begin, end = accepted(), completed()
    assert (running := entries(begin)) is not None
    assert running.end is None
    ended = entries(begin, end, begin, end)
    assert ended == BuildEntries((begin, end), 101)
    assert ended.end is end


def test_a_build_that_is_built_anew_goes_on_again() -> None:
    found = entries(accepted(), completed(), again(accepted()))
    assert found is not None
    assert (found.begin.id, found.end, found.is_repetition) == (again(accepted()).id, None, True)


def test_only_what_comes_before_any_attempt_begins_a_build() -> None:
    late = progress("a phase that another replica publishes late")
    assert not is_beginning(late)
    found = entries(accepted(), completed(), late)
    assert found is not None
    assert (found.begin.kind, found.is_repetition, found.end) == ("accepted", False, found.events[1])


def test_phases_have_a_stream_of_their_own_without_steps_and_layers() -> None:
    assert progress("Building the image").index_key == f"build.default.{BUILD}.phase"
    assert progress("Step 2 of 4", step=2).index_key is None
    assert accepted().index_key is None


def test_a_request_ends_with_its_rejection_or_with_the_build_that_it_joins() -> None:
    refused = entries(rejected())
    assert refused is not None
    assert refused.end is refused.begin
    joined = entries(accepted("other", BUILD))
    assert joined is not None
    assert joined.end is joined.begin


def test_a_rejection_of_a_reused_id_neither_begins_nor_ends_a_build() -> None:
    reused = rejected(reason=RejectReason.REQUEST_ID_REUSED)
    found = entries(accepted(), reused)
    assert found is not None
    assert found.end is None
    assert not is_beginning(reused)
    assert is_beginning(rejected())


def test_fillers_are_builds_that_begin_afterwards() -> None:
    stored = [StoredEvent(0, completed()), StoredEvent(1, accepted("other", BUILD))]
    begun = [accepted(f"r{n}", build_id_of("default", f"r{n}")) for n in range(2 * FILLERS)]
    stored += [StoredEvent(n, event) for n, event in enumerate(begun, 2)]
    assert fillers_among(stored) == tuple(event.stream_filter for event in begun[:FILLERS])
