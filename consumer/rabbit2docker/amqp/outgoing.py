"""Messages to publish, encoded here: the client library takes ten times as long for it, as its code is general.

An event has a dozen short texts as properties and headers. Other values of headers are left to the library.
"""

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any, Final

from pamqp import encode

from rabbit2docker_schemas.cloudevents import CONTENT_TYPE

MAX_FLOAT: Final = 3.4e38
"""Of single precision, with which the client encodes numbers."""
MAX_NAME_BYTES: Final = 128
"""Of a header's name, as the client reads the protocol."""

_METHOD, _CONTENT_HEADER, _BODY = 1, 2, 3
_BASIC: Final = 60
_PUBLISH: Final = struct.pack(">HHH", _BASIC, 40, 0)
_MANDATORY: Final = b"\x01"
_FRAME_HEAD: Final = struct.Struct(">BHI")
_CONTENT_HEAD: Final = struct.Struct(">HHQ")
_FRAME_END: Final = b"\xce"
_PERSISTENT, _PRIORITY = b"\x02", b"\x00"
_APP_ID: Final = b"\x0drabbit2docker"


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message, but for where it goes."""

    body: bytes
    properties: bytes
    """Flags and values, as a content header has them."""
    message_id: str

    def frames(self, channel: int, exchange: str, key: str, max_body: int) -> bytes:
        """Return its frames for a channel, with at most `max_body` bytes of content each. Raises ValueError.

        It comes back if no queue takes it (`mandatory`).
        """
        body = self.body
        head = _CONTENT_HEAD.pack(_BASIC, 0, len(body)) + self.properties
        method = _PUBLISH + _short(exchange) + _short(key) + _MANDATORY
        parts = [_frame(_METHOD, channel, method), _frame(_CONTENT_HEADER, channel, head)]
        parts += [
            _frame(_BODY, channel, body[start : start + max_body]) for start in range(0, len(body), max_body)
        ]
        return b"".join(parts)


def make_message(
    body: bytes,
    headers: Mapping[str, Any],
    *,
    message_id: str | None = None,
    correlation_id: str | None = None,
    content_type: str | None = CONTENT_TYPE,
    type_: str | None = None,
    timestamp: datetime | None = None,
    user_id: str | None = None,
) -> OutgoingMessage:
    """Return a persistent message, with a new `message_id` if none is given. Raises ValueError, TypeError.

    Returned messages are matched by message_id, so two publishes in flight must not share one.
    """
    message_id = message_id or uuid.uuid4().hex
    values = {  # in the order of the protocol
        1 << 15: _text(content_type),
        1 << 13: _table(headers),
        1 << 12: _PERSISTENT,
        1 << 11: _PRIORITY,
        1 << 10: _text(correlation_id),
        1 << 7: _text(message_id),
        1 << 6: _seconds(timestamp or datetime.now(UTC)),
        1 << 5: _text(type_),
        1 << 4: _text(user_id),
        1 << 3: _APP_ID,
    }
    flags = sum(flag for flag, value in values.items() if value)
    return OutgoingMessage(body, flags.to_bytes(2) + b"".join(values.values()), message_id)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME_HEAD.pack(kind, channel, len(payload)) + payload + _FRAME_END


def _short(text: str) -> bytes:
    value = text.encode()
    return bytes((len(value),)) + value  # ValueError beyond 255


def _text(text: str | None) -> bytes:
    return _short(text) if text else b""


def _seconds(moment: datetime) -> bytes:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()).to_bytes(8)


def _table(headers: Mapping[str, Any]) -> bytes:
    fields = b"".join([_name(name) + _value(value) for name, value in headers.items()])
    return len(fields).to_bytes(4) + fields


@lru_cache(256)
def _name(name: str) -> bytes:
    return _short(name.encode()[:MAX_NAME_BYTES].decode(errors="ignore"))


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return b"S" + len(text).to_bytes(4) + text
    return encode.encode_table_value(_encodable(value))


def _encodable(value: Any) -> Any:
    """Return a header's value as the client can encode it, which is not all that it decodes."""
    match value:
        case bytes():  # a string that is not UTF-8
            return bytearray(value)
        case Decimal():  # a mantissa of 32 bits is decoded without a sign, and encoded with one
            return str(value)
        case float():  # decoded with double precision, encoded with single precision
            return value if abs(value) <= MAX_FLOAT or not isfinite(value) else str(value)
        case list():
            return [_encodable(item) for item in value]
        case dict():
            return {name: _encodable(item) for name, item in value.items()}
        case _:
            return value
