"""Frames that the client library cannot decode, made decodable before it reads them.

pamqp decodes a message's properties while it reads the connection. One timestamp in microseconds ends the connection
for all messages on it, and the next connection as well, once RabbitMQ redelivers the message. So each frame is checked
between socket and library: what cannot be decoded is left out, and UNDECODABLE_HEADER names it.
"""

import struct
from typing import Final

UNDECODABLE_HEADER: Final = "x-r2d-undecodable"
"""Set on a received message to the properties that were left out, and why."""

MAX_DEPTH: Final = 16
"""Levels of nested header tables: the library decodes them recursively."""
MAX_FIELDS: Final = 1000
"""Header fields with nested ones: the library's time to decode them grows with their square."""
MAX_HEADER_BYTES: Final = 32 * 1024
"""Of all headers: copies of a message have more of them, and must fit into one frame (128 KiB) as well."""

_METHOD, _CONTENT_HEADER = 1, 2
_FRAME_HEAD: Final = struct.Struct(">BHI")
_FRAME_END: Final = b"\xce"
_CONTENT_HEAD: Final = struct.Struct(">HHQH")
_MAX_TIMESTAMP: Final = 0xFFFFFFFF
_MAX_TEXT: Final = 500
# Kept of headers that are too many or too large: those that say where a copy comes from, as long as they are few.
_OWN_NAMES: Final = (b"r2d-", b"x-")
_MAX_OWN, _MAX_OWN_BYTES = 32, 2048

_STRING = -1
# Arguments of the methods with texts that a publisher has chosen or RabbitMQ may have cut: a string, or bytes to skip.
_STRINGS_OF_METHODS: Final[dict[int, dict[str, int]]] = {
    10 << 16 | 50: {"reply code": 2, "reply text": _STRING},
    10 << 16 | 60: {"reason": _STRING},
    20 << 16 | 40: {"reply code": 2, "reply text": _STRING},
    60 << 16 | 30: {"consumer tag": _STRING},
    60 << 16 | 50: {"reply code": 2, "reply text": _STRING, "exchange": _STRING, "routing key": _STRING},
    60 << 16 | 60: {"consumer tag": _STRING, "tag and flag": 9, "exchange": _STRING, "routing key": _STRING},
    60 << 16 | 71: {"tag and flag": 9, "exchange": _STRING, "routing key": _STRING},
}
_METHODS_WITH_CONTENT: Final = frozenset({60 << 16 | 50, 60 << 16 | 60, 60 << 16 | 71})
# In the order of their flags, the first one being the highest bit.
_PROPERTIES: Final = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
_HEADERS_FLAG: Final = 1 << 13
_PROPERTY_SIZES: Final = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
_FIXED_SIZES: Final = {
    ord(kind): size
    for size, kinds in {0: "V\0", 1: "tbB", 2: "su", 4: "fiI", 5: "D", 8: "lLdT"}.items()
    for kind in kinds
}
_TABLE, _ARRAY, _TIMESTAMP, _TEXT = ord("F"), ord("A"), ord("T"), ord("S")
_NUMBERS: Final = frozenset(_FIXED_SIZES) - {_TIMESTAMP}
_WITH_LENGTH: Final = frozenset({_TABLE, _ARRAY, ord("S"), ord("x")})


class _Lost(Exception):
    """The end of a value is unknown, so everything behind it in the same container is lost."""


class FrameScreen:
    """Checks the frames of one connection, in their order."""

    def __init__(self) -> None:
        """Start with no faults."""
        self._faults_of_methods: dict[int, list[str]] = {}

    def screen(self, frame: bytes) -> bytes:
        """Return the whole frame as it is, or a decodable one in its place."""
        kind, channel, size = _FRAME_HEAD.unpack_from(frame)
        payload = frame[_FRAME_HEAD.size : _FRAME_HEAD.size + size]
        if kind == _METHOD:
            screened = self._screen_method(channel, payload)
        elif kind == _CONTENT_HEADER and size >= _CONTENT_HEAD.size:
            faults = self._faults_of_methods.pop(channel, []) if self._faults_of_methods else []
            screened = screen_content_header(payload, faults)
        else:
            return frame
        if screened is payload:
            return frame
        return _FRAME_HEAD.pack(kind, channel, len(screened)) + screened + _FRAME_END

    def _screen_method(self, channel: int, payload: bytes) -> bytes:
        layout = None if payload.isascii() else _STRINGS_OF_METHODS.get(int.from_bytes(payload[:4]))
        if layout is None:
            return payload
        faults: list[str] = []
        parts, position = [payload[:4]], 4
        for name, size in layout.items():
            if position >= len(payload):
                return payload
            end = position + (size if size != _STRING else 1 + payload[position])
            part = payload[position:end]
            if size == _STRING and not _is_utf8(part[1:]):
                faults.append(f"{name}: not UTF-8")
                text = _without_other_bytes(part[1:])
                part = bytes([len(text)]) + text
            parts.append(part)
            position = end
        if not faults:
            return payload
        if int.from_bytes(payload[:4]) in _METHODS_WITH_CONTENT:
            self._faults_of_methods[channel] = faults
        return b"".join((*parts, payload[position:]))


def screen_content_header(payload: bytes, faults: list[str]) -> bytes:
    """Return the payload of a content header as it is, or a decodable one with `faults` and its own in a header."""
    class_id, weight, body_size, flags = _CONTENT_HEAD.unpack_from(payload)
    kept: dict[str, bytes] = {}
    faults = list(faults)
    try:
        _keep_properties(payload, flags, kept, faults)
    except _Lost as error:
        faults.append(str(error))
    if not faults:
        return payload
    note = "; ".join(faults)[:_MAX_TEXT].encode(errors="replace")
    name = UNDECODABLE_HEADER.encode()
    headers = kept.get("headers", bytes(4))[4:] + bytes([len(name)]) + name + b"S" + _length(note) + note
    kept["headers"] = _length(headers) + headers
    flags = sum(1 << (15 - number) for number, name_ in enumerate(_PROPERTIES) if name_ in kept)
    parts = [kept[name_] for name_ in _PROPERTIES if name_ in kept]
    return _CONTENT_HEAD.pack(class_id, weight, body_size, flags) + b"".join(parts)


def _keep_properties(payload: bytes, flags: int, kept: dict[str, bytes], faults: list[str]) -> None:
    if flags & 0b11:
        raise _Lost("properties: unknown flags")
    position = _CONTENT_HEAD.size
    for number, name in enumerate(_PROPERTIES):
        if not flags & 1 << (15 - number):
            continue
        start, position = position, _end_of_property(payload, position, name)
        value = payload[start:position]
        if name == "headers":
            value = _screen_headers(value, faults)
        elif problem := _problem_of(name, value):
            faults.append(f"{name}: {problem}")
            continue
        kept[name] = value
    if position < len(payload):
        faults.append("properties: more bytes than their flags name")


def _end_of_property(payload: bytes, start: int, name: str) -> int:
    try:
        if name == "headers":
            size = 4 + int.from_bytes(payload[start : start + 4])
        else:
            size = _PROPERTY_SIZES.get(name) or 1 + payload[start]
    except IndexError:
        size = len(payload)
    if start + size > len(payload):
        raise _Lost(f"{name}: cut off")
    return start + size


def _problem_of(name: str, value: bytes) -> str:
    if name == "timestamp":
        return _problem_of_timestamp(value)
    if name == "delivery_mode":
        return "" if value[0] <= 2 else "neither 1 nor 2"
    if name == "priority":
        return ""
    if name == "expiration":
        return "" if value[1:].isdigit() else "not a number of milliseconds"
    return "" if _is_utf8(value[1:]) else "not UTF-8"


def _problem_of_timestamp(value: bytes) -> str:
    # Larger numbers are milliseconds to the library.
    return "" if int.from_bytes(value) <= _MAX_TIMESTAMP * 1000 else "not a number of seconds"


def _screen_headers(table: bytes, faults: list[str]) -> bytes:
    """Return the table with its decodable fields."""
    if _is_plain(table):
        return table
    check = _HeaderCheck(table)
    kept, position = [], 4
    try:
        while position < len(table):
            earlier = len(check.faults)
            start, position = position, check.field(position, len(table), 1)
            if len(check.faults) == earlier:
                kept.append(table[start:position])
    except _Lost as error:
        check.faults.append(str(error))
    if excess := _excess(check.fields, len(table)):
        check.faults.insert(0, excess)
        kept = [one for one in kept if one[1:].startswith(_OWN_NAMES) and len(one) <= _MAX_OWN_BYTES][
            :_MAX_OWN
        ]
    if not check.faults:
        return table
    faults.extend(f"headers: {fault}" for fault in check.faults[:5])
    fields = b"".join(kept)
    return _length(fields) + fields


def _is_plain(table: bytes) -> bool:
    """Return whether the table has nothing but strings and numbers under decodable names: those of nearly all messages."""
    position, end, fields = 4, len(table), 0
    while position < end:
        kind_at = position + 1 + table[position]
        if kind_at + 5 > end or not table[position + 1 : kind_at].isascii():
            return False
        kind = table[kind_at]
        if kind == _TEXT:
            position = kind_at + 5 + int.from_bytes(table[kind_at + 1 : kind_at + 5])
        elif kind in _NUMBERS:
            position = kind_at + 1 + _FIXED_SIZES[kind]
        else:
            return False
        fields += 1
    return position == end and not _excess(fields, end)


def _excess(fields: int, size: int) -> str:
    if size > MAX_HEADER_BYTES:
        return f"more than {MAX_HEADER_BYTES // 1024} KiB"
    return f"more than {MAX_FIELDS} fields" if fields > MAX_FIELDS else ""


class _HeaderCheck:
    """Walks a table of headers and notes what is wrong with values of known length."""

    def __init__(self, data: bytes) -> None:
        self.faults: list[str] = []
        self._data = data
        self.fields = 0

    def field(self, start: int, end: int, depth: int) -> int:
        """Check a field of a table and return the position behind it."""
        key_end = start + 1 + self._data[start]
        if key_end >= end:
            raise _Lost("a name is cut off")
        if not _is_utf8(self._data[start + 1 : key_end]):
            self.faults.append("a name is not UTF-8")
        return self._value(key_end, end, depth)

    def _value(self, start: int, end: int, depth: int) -> int:
        self.fields += 1
        kind, start = self._data[start], start + 1
        if kind in _WITH_LENGTH:
            after = start + 4 + int.from_bytes(self._data[start : start + 4])
        elif (size := _FIXED_SIZES.get(kind)) is not None:
            after = start + size
        else:
            raise _Lost(f"unknown type {bytes([kind])!r}")
        if after > end:
            raise _Lost("a value is cut off")
        if kind == _TIMESTAMP and (problem := _problem_of_timestamp(self._data[start:after])):
            self.faults.append(f"a timestamp is {problem}")
        elif kind in (_TABLE, _ARRAY):
            self._container(start + 4, after, depth + 1, kind == _TABLE)
        return after

    def _container(self, start: int, end: int, depth: int, is_table: bool) -> None:
        if depth > MAX_DEPTH:
            self.faults.append(f"nested more than {MAX_DEPTH} levels deep")
            return
        step = self.field if is_table else self._value
        try:
            while start < end:
                start = step(start, end, depth)
        except _Lost as error:
            self.faults.append(str(error))


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_other_bytes(value: bytes) -> bytes:
    # A question mark takes no more bytes than it replaces; a string of a method may have 255.
    return value.decode(errors="replace").replace("\ufffd", "?").encode()


def _length(value: bytes) -> bytes:
    return len(value).to_bytes(4)
