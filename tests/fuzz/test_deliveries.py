"""Requests, cancel messages and dead letters: each delivery is read or gets an answer that can be published."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.amqp.dead_letters import read_dead_letter
from rabbit2docker.amqp.outgoing import make_message
from rabbit2docker.amqp.request_consumer import request_message_from
from rabbit2docker.cli import console, dead_letters
from rabbit2docker.consumer.images.names import image_name
from rabbit2docker.consumer.intake.parsing import (
    IncomingRequest,
    InvalidRequest,
    UndeliverableMessage,
    parse_delivery,
    sender_of,
)
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.examples import CANCEL, REQUEST
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE
from tests.fuzz.inputs import bodies, byte_variants, fuzzed
from tests.fuzz.test_answers import has_words
from tests.support.raw_amqp import content_header
from tests.unit.test_frame_screen import header_payloads, received

FIELDS = {
    "subdir": "a/b",
    "force": "cache",
    "build_args": {"A": "b"},
    "labels": {"a": "b"},
    "appendix": "RUN true",
    "not_after": "2026-01-31T12:00:00Z",
    "timeout_seconds": 60,
}
SAMPLES: list[dict[str, Any]] = [
    REQUEST.model_dump(mode="json", exclude_none=True),
    REQUEST.model_dump(mode="json", exclude_none=True) | FIELDS,
    {"specversion": "1.0", "id": "e", "source": "/h", "type": REQUEST_TYPE, "data": {"provider": "gh"}},
    CANCEL.model_dump(mode="json", exclude_none=True),
    {"specversion": "1.0", "id": "e", "source": "/h", "type": CANCEL_TYPE, "data": {"build_id": "b"}},
]
BANNING = ProviderSettings(banned_specs={"gh": ["^banned/"], "git": [".*banned"]})
keys = st.sampled_from(
    ["request.default.interactive", "request.default.bulk", "cancel.default", "request.default", "a", ""]
) | byte_variants([b"request.default.interactive"]).map(lambda key: key.decode(errors="replace"))
exchanges = st.sampled_from(
    ["builds", "", "builds.retry", "builds.entry.default", "builds.entry.other", "builds.entry.", "other"]
)


def message(payload: bytes, body: bytes, key: str, exchange: str) -> Any:
    """Return a delivery as aio-pika has it after the screen."""
    found: Any = received(payload)
    found.body, found.routing_key, found.exchange, found.redelivered = body, key, exchange, False
    return found


def is_publishable(event: Event) -> None:
    """Encode an event as the publisher does."""
    encoded = make_message(event.body(), event.headers(), correlation_id=event.subject)
    assert encoded.properties
    assert len(event.routing_key.encode()) <= 255


@fuzzed(2)
@given(header_payloads, bodies(SAMPLES), keys, exchanges)
def test_a_delivery_is_read_or_answered_with_an_event_that_can_be_published(
    payload: bytes, body: bytes, key: str, exchange: str
) -> None:
    request = request_message_from(message(payload, body, key, exchange), "builds.requests")
    parsed = parse_delivery(request, max_bytes=256 * 1024)
    if exchange in ("builds.entry.other", "builds.entry.", "other"):
        assert isinstance(parsed, UndeliverableMessage)
        assert sender_of(request) is None
    if isinstance(parsed, IncomingRequest | InvalidRequest):
        assert sender_of(request) is not None
        data = events.Rejected(
            request_id=parsed.request_id, reason=RejectReason.INVALID_REQUEST, message="Because."
        )
        event_id = ids.request_event_id(parsed.tenant, parsed.request_id, "rejected")
        is_publishable(Event(event_id, parsed.tenant, datetime.now(UTC), data))
    if isinstance(parsed, IncomingRequest):
        json.dumps(parsed.request.model_dump(mode="json"))
    copy = make_message(body, request.headers, message_id=request.message_id, timestamp=request.timestamp)
    assert copy.properties


@contextmanager
def printing() -> Iterator[StringIO]:
    """Capture what the command line prints."""
    with patch("sys.stdout", StringIO()) as written:
        console.out.cache_clear()
        yield written
    console.out.cache_clear()


@fuzzed()
@given(header_payloads | st.just(content_header({})), bodies(SAMPLES), keys)
def test_a_dead_letter_is_listed_and_shown(payload: bytes, body: bytes, key: str) -> None:
    letter = read_dead_letter(message(payload, body, key, "builds.dead"))
    assert json.loads(json.dumps(dead_letters._as_dict(letter)))["id"] == letter.id
    with printing() as written:
        dead_letters._print_table([letter])
    assert "\x1b" not in written.getvalue()
    again = make_message(letter.body, letter.headers, message_id=letter.message_id)
    assert again.properties


@fuzzed()
@given(
    st.sampled_from(["gh", "git"]),
    byte_variants(
        [
            b"binder-examples/requirements/HEAD",
            b"https%3A%2F%2Fgitlab.com%2Fa%2Fb.git/main",
            b"git%40host%3Aa%2Fb/refs%2Fpull%2F1%2Fhead",
            b"https%3A%2F%2F%5B%3A%3A1%5D%3A99%2Fa/0123456789012345678901234567890123456789",
        ]
    ),
)
def test_a_spec_is_understood_or_refused_with_words(provider: str, spec: bytes) -> None:
    providers, text = Providers(BANNING), spec.decode(errors="replace")
    try:
        providers.check_allowed(provider, text)
        providers.get(provider).check(text)
        pinned = providers.get(provider).pin(text, "0" * 40)
    except RequestRejected as error:
        has_words(error)
    else:
        assert image_name("registry.example.org/r2d-", pinned.build_slug, pinned.resolved_ref)
