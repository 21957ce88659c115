"""Messages as bytes, also those that no client library would encode, over a plain socket."""

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import pamqp.frame
from pamqp import commands, header
from pamqp.base import Frame
from pamqp.body import ContentBody

from tests.support.waiting import PATIENCE

PROPERTIES = tuple(commands.Basic.Properties.__slots__)
"""In the order of their flags."""


def short(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return short(name) + kind + value


def nested(levels: int) -> bytes:
    """Return headers with tables in tables."""
    table = b""
    for _ in range(levels):
        table = field(b"a", b"F", long(table))
    return long(table)


def content_header(properties: Mapping[str, bytes], body_size: int = 0) -> bytes:
    """Return the payload of a content header; each property is already encoded."""
    flags = sum(1 << (15 - number) for number, name in enumerate(PROPERTIES) if name in properties)
    parts = [properties[name] for name in PROPERTIES if name in properties]
    return struct.pack(">HHQH", 60, 0, body_size, flags) + b"".join(parts)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


class ClosedByBroker(Exception):
    """RabbitMQ has closed the connection because of what it was sent."""


class RawPublisher:
    """A connection with one channel, on which RabbitMQ confirms what it takes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self._published = 0
        self._socket.sendall(header.ProtocolHeader().marshal())
        self._expect(commands.Connection.Start)
        response = f"\0{parts.username}\0{parts.password}"
        self._send(commands.Connection.StartOk({}, "PLAIN", response, "en_US"), 0)
        tune: Any = self._expect(commands.Connection.Tune)
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._send(commands.Connection.Open(unquote(parts.path[1:])), 0)
        self._expect(commands.Connection.OpenOk)
        self._send(commands.Channel.Open())
        self._expect(commands.Channel.OpenOk)
        self._send(commands.Confirm.Select())
        self._expect(commands.Confirm.SelectOk)

    def __enter__(self) -> "RawPublisher":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def publish(self, exchange: bytes, key: bytes, body: bytes, **properties: bytes) -> None:
        """Publish a message and wait until RabbitMQ has confirmed it."""
        self.publish_all(exchange, key, [body], **properties)

    def publish_all(self, exchange: bytes, key: bytes, bodies: Iterable[bytes], **properties: bytes) -> None:
        """Publish messages that differ in nothing but their bodies, and wait until RabbitMQ has confirmed them."""
        publish = frame(1, 1, struct.pack(">HHH", 60, 40, 0) + short(exchange) + short(key) + b"\0")
        data, waiting = bytearray(), set()
        for body in bodies:
            data += publish
            data += frame(2, 1, content_header(properties, len(body)))
            data += pamqp.frame.marshal(ContentBody(body), 1)
            self._published += 1
            waiting.add(self._published)
        self._socket.sendall(data)
        while waiting:
            ack: Any = self._expect(commands.Basic.Ack)
            waiting -= set(range(min(waiting), ack.delivery_tag + 1)) if ack.multiple else {ack.delivery_tag}

    def _send(self, method: Frame, channel: int = 1) -> None:
        self._socket.sendall(pamqp.frame.marshal(method, channel))

    def _expect(self, kind: Callable[..., Frame]) -> Frame:
        head = self._read(7)
        data = head + self._read(int.from_bytes(head[3:]) + 1)
        found = pamqp.frame.unmarshal(data)[2]
        assert isinstance(found, Frame)
        if isinstance(found, commands.Connection.Close):
            raise ClosedByBroker(f"{found.reply_code} {found.reply_text}")
        assert type(found) is kind, (found.name, dict(found))
        return found

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            assert more, "RabbitMQ has closed the connection"
            data += more
        return data
