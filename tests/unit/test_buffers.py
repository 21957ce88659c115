"""Buffers of events stay within their bound."""

from datetime import UTC, datetime

import pytest

from rabbit2docker.client.buffers import EVENT_BYTES, LINE_BYTES, EventBuffer, weight
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log, LogLine, Phase, Progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int, request_id: str = "r") -> Event:
    build_id = ids.build_id_of("default", request_id)
    data = Progress(build_id=build_id, attempt=1, phase=Phase.BUILDING, message=str(number))
    return Event(ids.progress_event_id(build_id, 1, str(number)), "default", NOW, data)


def test_events_keep_their_numbers_when_the_oldest_are_dropped() -> None:
    buffer = EventBuffer()
    for number in range(10):
        buffer.append(event(number), limit=4 * EVENT_BYTES)
    assert (buffer.first, buffer.end, buffer.weight) == (6, 10, 4 * EVENT_BYTES)
    assert [buffer[number] for number in range(6, 10)] == [event(number) for number in range(6, 10)]


def test_an_event_larger_than_the_bound_is_kept_alone() -> None:
    buffer = EventBuffer()
    buffer.append(event(0), limit=1)
    buffer.append(event(1), limit=1)
    assert (buffer.first, buffer.end, buffer[1]) == (1, 2, event(1))


def test_the_weight_of_a_log_is_that_of_its_lines() -> None:
    lines = [LogLine(phase=Phase.BUILDING, text="x" * 100, ts=NOW)] * 7
    log = Event(ids.EventId("l"), "default", NOW, Log(build_id="b", attempt=1, n=0, lines=lines))
    assert weight(log) == pytest.approx(EVENT_BYTES + 7 * (LINE_BYTES + 100))
