"""Handlers whose viewers of the same build share one broadcast."""

from collections.abc import Callable, Hashable
from contextlib import aclosing
from typing import Any, TypeVar

from rabbit2docker.hub.web.base import StreamHandler
from rabbit2docker.hub.web.broadcast import Broadcast, End, Rendering
from rabbit2docker.hub.web.outlet import Outlet

CursorT = TypeVar("CursorT")


class SharedStreamHandler(StreamHandler):
    """The base of handlers that stream one build to many viewers."""

    async def send_build(
        self, key: Hashable, open_at: Callable[[CursorT], Rendering[CursorT]], cursor: CursorT
    ) -> str:
        """Send the events of a build from a position on, with its other viewers; return the result.

        `key` names what `open_at` renders.
        """
        if not await self.send(b""):  # the headers
            return "stalled"
        broadcasts = self.context.broadcasts
        while True:
            broadcast = broadcasts.find(key) or broadcasts.start(key, open_at(cursor))
            number = broadcast.number_of(cursor)
            if number is None:
                result, cursor = await self._catch_up(key, open_at(cursor))
                if result:
                    return result
                continue
            end, cursor = await self._follow(key, broadcast, number, cursor)
            if end is End.STALLED:
                self.detach().close()
                return "stalled"
            if end is End.OVER:
                broadcast.raise_error()
                return broadcast.result or self.result()

    async def _follow(
        self, key: Hashable, broadcast: Broadcast[CursorT], number: int, cursor: CursorT
    ) -> tuple[End, CursorT]:
        """Take part in a broadcast; return why that ended, and the position."""
        connection: Any = self.request.connection
        outlet = Outlet(connection.stream, self._headers.get("Transfer-Encoding"))
        try:
            with broadcast.subscribed(outlet, number, cursor) as subscriber:
                end = await subscriber.ended
                return end, subscriber.cursor
        finally:
            await self.context.broadcasts.leave(key, broadcast)

    async def _catch_up(self, key: Hashable, rendering: Rendering[CursorT]) -> tuple[str, CursorT]:
        """Send alone, to the end, or until a broadcast can take over; return the result, or none, and the position."""
        position = rendering.position()
        async with aclosing(rendering.chunks(self.context.settings.hub.keepalive_seconds)) as chunks:
            async for chunk in chunks:
                broadcast = self.context.broadcasts.find(key)
                if broadcast is not None and broadcast.number_of(position) is not None:
                    return "", position  # it sends this chunk as well
                if not await self.send(chunk):
                    return "stalled", position
                position = rendering.position()
        return rendering.result or self.result(), position
