"""Messages as they are encoded here: the client library, whose general code this stands in for, decodes what was meant."""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aio_pika
import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message

short_texts = st.text(max_size=60)
moments = st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
values = st.recursive(
    st.text() | st.integers(-(2**31), 2**31 - 1) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_texts, inner, max_size=3),
    max_leaves=5,
)


def decoded(message: OutgoingMessage, *, max_body: int = 1000) -> tuple[Any, Any, bytes]:
    """Return method, content header and body as the library decodes them, which must be all there is."""
    rest = message.frames(7, "builds.results", "build.default.b1.log", max_body)
    frames = []
    while rest:
        size, channel, frame = pamqp.frame.unmarshal(rest)
        assert channel == 7
        frames.append(frame)
        rest = rest[size:]
    method, header, *bodies = frames
    assert isinstance(method, spec.Basic.Publish)
    assert isinstance(header, ContentHeader)
    assert all(isinstance(body, ContentBody) and len(body.value or b"") <= max_body for body in bodies)
    return method, header, b"".join(body.value for body in bodies if isinstance(body, ContentBody))


@given(
    st.binary(max_size=3000),
    st.dictionaries(short_texts, values, max_size=5),
    st.tuples(short_texts, *[st.none() | short_texts] * 4),
    moments,
)
def test_the_library_decodes_what_it_would_have_encoded(
    body: bytes, headers: dict[str, Any], texts: tuple[str, str | None, Any, Any, Any], moment: datetime
) -> None:
    message_id, correlation_id, content_type, type_, user_id = texts
    message = make_message(
        body,
        headers,
        message_id=message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        type_=type_,
        timestamp=moment,
        user_id=user_id,
    )
    method, header, content = decoded(message)
    reference = aio_pika.Message(
        body,
        headers=headers,
        message_id=message.message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        type=type_,
        timestamp=moment,
        user_id=user_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        app_id="rabbit2docker",
    )
    whole = pamqp.frame.marshal(ContentHeader(body_size=len(body), properties=reference.properties), 7)
    _, _, expected = pamqp.frame.unmarshal(whole)
    assert isinstance(expected, ContentHeader)
    assert dict(header.properties) == dict(expected.properties)
    assert (header.body_size, content) == (len(body), body)
    assert (method.exchange, method.routing_key, method.mandatory) == (
        "builds.results",
        "build.default.b1.log",
        True,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"\xff", bytearray(b"\xff")),
        (Decimal("-1.5"), "-1.5"),
        (1e300, "1e+300"),
        (0.5, 0.5),
        ({"a": [b"\xff"]}, {"a": [bytearray(b"\xff")]}),
    ],
)
def test_values_that_the_library_decodes_and_does_not_encode_are_published_as_others(
    given: Any, expected: Any
) -> None:
    _, header, _ = decoded(make_message(b"", {"value": given}))
    assert header.properties.headers == {"value": expected}


def test_each_message_has_its_own_id() -> None:
    assert make_message(b"", {}).message_id != make_message(b"", {}).message_id


@pytest.mark.parametrize("more", [{"message_id": "x" * 256}, {"type_": "ä" * 128}])
def test_a_text_that_is_too_long_for_its_property_is_an_error(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="range"):
        make_message(b"", {}, **more)


def test_a_routing_key_that_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="range"):
        make_message(b"", {}).frames(1, "builds", "x" * 256, 1000)


def test_a_body_without_bytes_has_no_frame() -> None:
    frames = make_message(b"", {}).frames(1, "builds", "key", 1000)
    assert [struct.unpack_from(">B", frames)[0], frames.count(b"\xce")] == [1, 2]
