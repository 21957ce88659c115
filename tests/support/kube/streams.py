"""Answers that go on: watches and logs, which tests can cut, silence or end."""

import asyncio

from aiohttp import web

from tests.support.kube.faults import Fault, Kind, Seen


class Cut(Exception):
    """The connection has to be ended now, without the end of the body."""


class Ended(Exception):
    """The body is over."""


class Stream:
    """One watch or log that is being answered."""

    def __init__(self, seen: Seen, fault: Fault | None) -> None:
        self.seen = seen
        self.bytes_sent = 0
        self.wakes = asyncio.Event()
        """Set when somebody did something to the stream."""
        self.cuts_next = False
        """The next line is cut in its middle, and the connection with it."""
        self._flows = asyncio.Event()
        self._flows.set()
        self._over: Exception | None = None
        self._fault = fault if fault is not None and fault.kind in (Kind.CUT, Kind.SAY) else None
        after = self._fault.after if self._fault is not None else 0
        self._cut_after = after() if callable(after) else after
        self._response: web.StreamResponse | None = None

    async def open(self, request: web.Request, content_type: str) -> web.StreamResponse:
        self._response = web.StreamResponse(headers={"Content-Type": content_type})
        await self._response.prepare(request)
        return self._response

    # -- for tests

    def abort(self) -> None:
        """Cut the connection."""
        self._finish(Cut())

    def end(self) -> None:
        """End the body as if everything were said."""
        self._finish(Ended())

    def silence(self) -> None:
        """Send nothing any more, and keep the connection."""
        self._flows.clear()

    def resume(self) -> None:
        """Send again, beginning with what was held."""
        self._flows.set()

    def _finish(self, how: Exception) -> None:
        self._over = how
        self._flows.set()
        self.wakes.set()

    # -- for the server

    def check(self) -> None:
        """Raise Cut or Ended when a test wants that."""
        if self._over is not None:
            raise self._over

    async def write(self, data: bytes) -> None:
        """Send; raises Cut or Ended where the stream is over by a test's wish."""
        await self._flows.wait()
        self.check()
        if self.cuts_next and data:
            last = data[data.rstrip(b"\n").rfind(b"\n") + 1 :]
            await self._send(data[: len(data) - max(2, len(last) // 2)])
            raise Cut
        if self._fault is not None and self.bytes_sent + len(data) >= self._cut_after:
            await self._send(data[: self._cut_after - self.bytes_sent] + self._fault.text)
            raise Ended if self._fault.clean else Cut
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        assert self._response is not None
        self.bytes_sent += len(data)
        if data:
            await self._response.write(data)
