"""Ids are deterministic; these values are on the wire and must not change."""

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker_schemas import ids, routing
from rabbit2docker_schemas.routing import RequestKey, parse_request_key


def test_ids_never_change() -> None:
    build_id = ids.build_id_of("default", "request-1")
    assert build_id == "0968c755-52e9-5edf-a839-9036e78c0e23"
    assert ids.terminal_event_id(build_id) == "87364381-1da3-5e8e-b4d5-1d7e2a56a085"
    assert ids.request_event_id("default", "request-1", "accepted") == "075160d5-6ea5-5098-ba3a-8fe10e841c6f"
    assert ids.lines_event_id(build_id, 1, 0, 9, "log") == "277fd2a8-c443-5c03-99ac-fa85c4ae09d1"


def test_the_same_request_id_names_different_builds_for_different_tenants() -> None:
    assert ids.build_id_of("one", "r") != ids.build_id_of("two", "r")


@given(st.text(min_size=1))
def test_any_text_becomes_a_request_id_that_fits_a_routing_key(raw: str) -> None:
    request_id = ids.routable_request_id(raw)
    assert request_id == ids.routable_request_id(raw)
    assert not set(request_id) & set(".*#")
    assert 1 <= len(request_id) <= 128
    key = routing.request_event_key("default", request_id, "accepted")
    assert len(key.split(".")) == 4
    assert len(key.encode()) <= 255


def test_request_routing_keys_are_parsed_and_malformed_ones_refused() -> None:
    assert parse_request_key("request.hub-a.bulk") == RequestKey("hub-a", "bulk")
    assert parse_request_key("cancel.hub-a") == RequestKey("hub-a", "cancel")
    for wrong in (
        "",
        "request.hub-a",
        "request..bulk",
        "request.hub-a.urgent",
        "request.A.bulk",
        "cancel.a.b",
    ):
        assert parse_request_key(wrong) is None
