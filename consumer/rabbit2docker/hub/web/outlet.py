"""The connection of one viewer, for bytes that many viewers get."""

from asyncio import Future
from typing import Final

from tornado.iostream import IOStream

from rabbit2docker.hub.web.chunks import Piece

CHUNKED: Final = "chunked"


class Outlet:
    """Writes to a connection whose headers were sent, without a task, a timer or a copy for what the kernel takes."""

    def __init__(self, stream: IOStream, transfer_encoding: str | None) -> None:
        """Take the connection, and the header that says how its body is framed."""
        self._stream = stream
        self._is_chunked = transfer_encoding == CHUNKED
        # A line that comes soon after another must not wait until the viewer has acknowledged that one.
        stream.set_nodelay(True)

    def write(self, piece: Piece) -> "Future[None] | None":
        """Write, once earlier writes are done; return None if the kernel has taken it all, else a future for the rest."""
        if self._stream.closed():
            return None
        data, sent = piece.framed if self._is_chunked else piece.plain, 0
        try:
            sent = self._stream.socket.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            # The viewer has left: the handler hears of it by the closing.
            self._stream.close(exc_info=error)
            return None
        return self._stream.write(memoryview(data)[sent:]) if sent < len(data) else None
