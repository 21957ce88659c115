"""The screen lets through only frames that the client library decodes, from any publisher."""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.frame
import pytest
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from rabbit2docker.amqp.frame_screen import MAX_FIELDS, UNDECODABLE_HEADER, FrameScreen
from rabbit2docker.amqp.outgoing import make_message
from tests.support.raw_amqp import PROPERTIES, content_header, field, frame, long, nested, short

MICROSECONDS = struct.pack(">Q", 1_764_000_000_000_000)
NOT_UTF8 = short(b"na\xefve")


def received(payload: bytes, *, deliver: bytes = b"") -> IncomingMessage:
    """Return the message as aio-pika has it after the screen."""
    screen = FrameScreen()
    key = "a"
    if deliver:
        _, _, method = pamqp.frame.unmarshal(screen.screen(frame(1, 7, deliver)))
        assert isinstance(method, commands.Basic.Deliver)
        key = str(method.routing_key)
    _, channel, header = pamqp.frame.unmarshal(screen.screen(frame(2, 7, payload)))
    assert channel == 7
    assert isinstance(header, ContentHeader)
    delivery = commands.Basic.Deliver("tag", 1, False, "builds", key)
    delivered: Any = DeliveredMessage(delivery, header, b"", channel=None)  # type: ignore[arg-type]
    return IncomingMessage(delivered)


def note_of(message: IncomingMessage) -> str:
    return str(message.headers.get(UNDECODABLE_HEADER, ""))


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({"timestamp": MICROSECONDS}, "timestamp: not a number of seconds"),
        ({"timestamp": b"\xff" * 8}, "timestamp: not a number of seconds"),
        ({"message_id": NOT_UTF8}, "message_id: not UTF-8"),
        ({"message_type": NOT_UTF8, "reply_to": NOT_UTF8}, "reply_to: not UTF-8; type: not UTF-8"),
        ({"expiration": short(b"soon")}, "expiration: not a number of milliseconds"),
        ({"delivery_mode": b"\x07"}, "delivery_mode: neither 1 nor 2"),
        ({"headers": long(field(b"\xff", b"V", b""))}, "headers: a name is not UTF-8"),
        (
            {"headers": long(field(b"a", b"T", MICROSECONDS))},
            "headers: a timestamp is not a number of seconds",
        ),
        ({"headers": long(field(b"a", b"z", b"abc"))}, "headers: unknown type b'z'"),
        ({"headers": nested(400)}, "headers: nested more than 16 levels deep"),
        ({"headers": long(field(b"a", b"V", b"") * (MAX_FIELDS + 1))}, "headers: more than 1000 fields"),
        ({"headers": long(field(b"a", b"S", long(b"a" * 50_000)) * 2)}, "headers: more than 32 KiB"),
        ({"headers": long(b"a")}, "headers: a name is cut off"),
        ({"app_id": b"\xffabc"}, "app_id: cut off"),
    ],
)
def test_what_cannot_be_decoded_is_named_and_the_rest_is_kept(
    properties: dict[str, bytes], problem: str
) -> None:
    good = {"content_type": short(b"application/json"), "correlation_id": short(b"kept")}
    message = received(content_header({**good, **properties}))
    assert note_of(message).startswith(problem)
    assert message.content_type == "application/json"
    assert message.correlation_id == "kept"


def test_good_headers_beside_a_bad_one_are_kept() -> None:
    table = field(b"bad", b"F", long(field(b"a", b"z", b""))) + field(b"good", b"S", long(b"kept"))
    message = received(
        content_header({"headers": long(table), "timestamp": struct.pack(">Q", 1_764_000_000)})
    )
    assert message.headers["good"] == "kept"
    assert "bad" not in message.headers
    assert message.timestamp == datetime.fromtimestamp(1_764_000_000, UTC)


def test_headers_of_a_copy_are_kept_when_the_others_are_too_many() -> None:
    others = b"".join(field(b"%d" % n, b"V", b"") for n in range(MAX_FIELDS))
    own = field(b"r2d-reason", b"S", long(b"kept"))
    message = received(content_header({"headers": long(others + own)}))
    assert note_of(message) == "headers: more than 1000 fields"
    assert set(message.headers) == {"r2d-reason", UNDECODABLE_HEADER}


def test_a_routing_key_that_is_not_utf8_stays_with_its_message() -> None:
    deliver = struct.pack(">HH", 60, 60) + short(b"t") + struct.pack(">QB", 200, 0) + short(b"builds")
    message = received(content_header({}), deliver=deliver + short(b"request.\xff." + b"\xe9" * 100))
    assert note_of(message) == "routing key: not UTF-8"
    message = received(content_header({}), deliver=deliver + short(b"request.a"))
    assert not note_of(message)


def test_a_good_message_is_passed_on_as_it_is() -> None:
    headers: dict[str, Any] = {
        "text": "ü",
        "number": 2**40,
        "none": None,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "list": [1, {"a": True}],
        "decimal": Decimal("1.5"),
        "float": 1.5,
    }
    properties = commands.Basic.Properties(headers=headers, message_id="ü", timestamp=datetime.now(UTC))
    data = pamqp.frame.marshal(ContentHeader(body_size=3, properties=properties), 1)
    assert FrameScreen().screen(data) is data


scalars = st.one_of(
    st.tuples(st.sampled_from([b"t", b"b", b"B"]), st.binary(min_size=1, max_size=1)),
    st.tuples(st.sampled_from([b"s", b"u"]), st.binary(min_size=2, max_size=2)),
    st.tuples(st.sampled_from([b"I", b"i", b"f"]), st.binary(min_size=4, max_size=4)),
    st.tuples(st.sampled_from([b"l", b"L", b"d", b"T"]), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(b"D"), st.binary(min_size=5, max_size=5)),
    st.tuples(st.sampled_from([b"S", b"x"]), st.binary(max_size=8).map(long)),
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=9)),
).map(b"".join)
names = st.binary(max_size=5).map(short)


def containers(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    array = st.lists(values, max_size=4).map(lambda items: b"A" + long(b"".join(items)))
    table = st.lists(st.tuples(names, values).map(b"".join), max_size=4)
    return array | table.map(lambda items: b"F" + long(b"".join(items)))


tables = st.lists(
    st.tuples(names, st.recursive(scalars, containers, max_leaves=8)).map(b"".join), max_size=5
).map(lambda fields: long(b"".join(fields)))
values = {
    "headers": tables | st.binary(max_size=30),
    "delivery_mode": st.binary(min_size=1, max_size=1),
    "priority": st.binary(min_size=1, max_size=1),
    "timestamp": st.binary(min_size=8, max_size=8),
}
strings = st.binary(max_size=6).map(short) | st.text(max_size=3).map(lambda text: short(text.encode()))
header_payloads = st.fixed_dictionaries(
    {}, optional={name: values.get(name, strings) for name in PROPERTIES}
).map(content_header) | st.binary(max_size=40).map(
    lambda tail: struct.pack(">HHQ", 60, 0, 0) + tail.ljust(2, b"\0")
)


@given(header_payloads)
@example(content_header({"headers": long(field(b"a", b"D", b"\x01\xff\xff\xff\xff"))}))
@example(content_header({"headers": long(field(b"a", b"d", struct.pack(">d", 1e300)))}))
def test_any_content_header_is_decoded_and_can_be_copied(payload: bytes) -> None:
    message = received(payload)
    copy = make_message(b"", message.headers, timestamp=message.timestamp, content_type=message.content_type)
    properties = copy.properties
    assert len(properties) < 100_000


@given(st.sampled_from([(10, 50), (20, 40), (60, 30), (60, 50), (60, 60), (60, 71)]), st.data())
def test_any_text_in_a_method_is_decoded(method: tuple[int, int], data: st.DataObject) -> None:
    layout = {
        (10, 50): "hs4",
        (20, 40): "hs4",
        (60, 30): "s1",
        (60, 50): "hsss",
        (60, 60): "s9ss",
        (60, 71): "9ss4",
    }
    sizes = {"h": 2, "1": 1, "4": 4, "9": 9}
    parts = [
        data.draw(strings if part == "s" else st.binary(min_size=sizes[part], max_size=sizes[part]))
        for part in layout[method]
    ]
    payload = struct.pack(">HH", *method) + b"".join(parts)
    pamqp.frame.unmarshal(FrameScreen().screen(frame(1, 1, payload)))
