"""Each delivery is parsed as a request, a cancel message or an invalid message, and has one identity."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from rabbit2docker.amqp.ports import RequestMessage, anonymous_id
from rabbit2docker.consumer.intake.parsing import (
    IncomingCancel,
    IncomingRequest,
    InvalidRequest,
    UndeliverableMessage,
    parse_delivery,
    sender_of,
)
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.reasons import RejectReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = {"provider": "gh", "spec": "o/r/HEAD"}


def received(body: object, key: str = "request.ada.interactive", **changes: Any) -> RequestMessage:
    fields: dict[str, Any] = {
        "body": body if isinstance(body, bytes) else json.dumps(body).encode(),
        "routing_key": key,
        "queue": "builds.requests",
        "headers": {},
        "message_id": "m1",
        "content_type": "application/json",
        "timestamp": None,
        "redelivered": False,
        "tries": 0,
    }
    fields |= changes
    fields["message_id"] = fields["message_id"] or anonymous_id(fields["body"], fields["timestamp"])
    return RequestMessage(**fields)


def parsed(message: RequestMessage) -> object:
    return parse_delivery(message, max_bytes=1000, now=lambda: NOW)


def test_a_request_carries_tenant_id_and_time_of_receipt() -> None:
    incoming = parsed(received(REQUEST))
    assert isinstance(incoming, IncomingRequest)
    assert (incoming.tenant, incoming.request_id, incoming.queued_at) == ("ada", "m1", NOW)
    assert incoming.build_id == build_id_of("ada", incoming.request_id)


def test_the_timestamp_of_a_request_counts_as_its_time_in_the_queue() -> None:
    published = datetime(2025, 1, 1, tzinfo=UTC)
    incoming = parsed(received(REQUEST, timestamp=published))
    assert isinstance(incoming, IncomingRequest)
    assert incoming.queued_at == published


def test_the_request_id_of_the_body_takes_precedence_over_header_and_message_id() -> None:
    for message, expected in (
        (received({**REQUEST, "request_id": "body"}, headers={"ce-id": "header"}), "body"),
        (received(REQUEST, headers={"ce-id": b"header"}), "header"),
        (received(REQUEST), "m1"),
    ):
        incoming = parsed(message)
        assert isinstance(incoming, IncomingRequest)
        assert incoming.request_id == expected


def test_a_redelivered_request_without_an_id_gets_the_same_id() -> None:
    first, second = (
        parsed(received(REQUEST, message_id=None, redelivered=redelivered)) for redelivered in (False, True)
    )
    other = parsed(received({**REQUEST, "force": True}, message_id=None))
    assert isinstance(first, IncomingRequest)
    assert isinstance(second, IncomingRequest)
    assert isinstance(other, IncomingRequest)
    assert first.request_id == second.request_id != other.request_id


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no json", RejectReason.INVALID_JSON),
        ({"provider": "gh"}, RejectReason.INVALID_REQUEST),
        (b" " * 1001, RejectReason.TOO_LARGE),
    ],
)
def test_a_malformed_request_is_invalid_with_the_address_for_its_rejection(
    body: object, reason: RejectReason
) -> None:
    invalid = parsed(received(body))
    assert isinstance(invalid, InvalidRequest)
    assert (invalid.tenant, invalid.request_id, invalid.reason) == ("ada", "m1", reason)


def test_a_cancel_message_carries_the_tenant() -> None:
    incoming = parsed(received({"request_id": "r1"}, "cancel.ada"))
    assert isinstance(incoming, IncomingCancel)
    assert (incoming.tenant, incoming.cancel.request_id) == ("ada", "r1")


def test_a_malformed_cancel_message_cannot_be_answered() -> None:
    message = received({}, "cancel.ada")
    found = parsed(message)
    assert isinstance(found, UndeliverableMessage)
    assert found.reason == RejectReason.INVALID_REQUEST
    assert sender_of(message) is None


@pytest.mark.parametrize("key", ["request.ada", "request.Ada.interactive", "build.ada.x.log", ""])
def test_a_message_with_another_routing_key_is_unroutable(key: str) -> None:
    message = received(REQUEST, key)
    found = parsed(message)
    assert isinstance(found, UndeliverableMessage)
    assert found.reason == "unroutable"
    assert sender_of(message) is None


def test_the_sender_of_a_request_is_known_without_its_body() -> None:
    assert sender_of(received(b"no json")) == ("ada", "m1")


@pytest.mark.parametrize("key", ["request.ada.interactive", "cancel.ada"])
def test_a_forged_message_is_answered_to_no_tenant(key: str) -> None:
    for body in (REQUEST, {"build_id": "b"}, b"\xff"):
        message = received(body, key, forged="came through another exchange", undecodable="type: not UTF-8")
        assert parsed(message) == UndeliverableMessage("forged", "came through another exchange")
        assert sender_of(message) is None
