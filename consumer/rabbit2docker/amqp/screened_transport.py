"""A transport for aiormq whose frames have passed a FrameScreen."""

import asyncio
from typing import Any, cast

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from rabbit2docker.amqp.frame_screen import FrameScreen

_HEAD_BYTES = 7
_PROTOCOL_HEADER = b"AMQP"


class ScreenedReader:
    """The part of asyncio.StreamReader that aiormq reads frames with: head and rest of one frame after the other."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        """Read from the socket's reader."""
        self._reader = reader
        self._screen = FrameScreen()
        self._frame = b""
        self._position = 0

    def at_eof(self) -> bool:
        """Return whether no byte is left and none will come."""
        return self._position == len(self._frame) and self._reader.at_eof()

    async def read(self, count: int = -1) -> bytes:
        """Return what is left of the present frame and then up to `count` bytes, which no frame begins."""
        rest, self._position = self._frame[self._position :], len(self._frame)
        return rest + await self._reader.read(count)

    async def readexactly(self, count: int) -> bytes:
        """Return the next bytes. Raises IncompleteReadError when the connection ends before them."""
        while len(self._frame) - self._position < count:
            self._frame = self._frame[self._position :] + await self._next_frame()
            self._position = 0
        start, self._position = self._position, self._position + count
        return self._frame[start : self._position]

    async def _next_frame(self) -> bytes:
        head = await self._reader.readexactly(_HEAD_BYTES)
        if head.startswith(_PROTOCOL_HEADER):  # RabbitMQ speaks another version, and closes the connection
            return head
        return self._screen.screen(head + await self._reader.readexactly(int.from_bytes(head[3:]) + 1))


class ScreenedTransportFactory(TransportFactory):
    """Opens TCP or TLS connections as aiormq does, and screens what they receive."""

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. Raises AMQPConnectionError."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        return cast(asyncio.StreamReader, ScreenedReader(reader)), writer
