"""The trace context of requests."""

import pytest

from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker_schemas.cloudevents import read_event
from rabbit2docker_schemas.tracing import Trace, read_trace
from tests.support.client_events import accepted
from tests.support.records import a_spec

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"traceparent": PARENT, "tracestate": "a=1,b=2"}, Trace(parent=PARENT, state="a=1,b=2")),
        ({"ce-traceparent": PARENT.encode(), "ce-tracestate": b"a=1"}, Trace(parent=PARENT, state="a=1")),
        ({"traceparent": "no", "ce-traceparent": PARENT}, Trace(parent=PARENT)),
        ({"traceparent": PARENT, "tracestate": "a" * 513}, Trace(parent=PARENT)),
        ({"traceparent": PARENT, "tracestate": "a=1\r\nX: y"}, Trace(parent=PARENT)),
        ({"traceparent": PARENT.upper()}, None),
        ({"traceparent": PARENT.replace("00-", "ff-", 1)}, None),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": [PARENT], "tracestate": 7}, None),
        ({"tracestate": "a=1"}, None),
    ],
)
def test_only_a_valid_trace_context_is_read(headers: dict[str, object], found: Trace | None) -> None:
    assert read_trace(headers) == found


def test_a_record_and_an_event_keep_it() -> None:
    trace = Trace(parent=PARENT, state="a=1")
    spec = AttemptSpec.model_validate_json(a_spec(trace=trace).model_dump_json())
    assert spec.trace == trace
    event = accepted()
    assert read_event(event.headers(), event.body()).trace is None
    traced = type(event)(event.id, event.tenant, event.time, event.data, event.source, trace)
    assert read_event(traced.headers(), traced.body()) == traced
