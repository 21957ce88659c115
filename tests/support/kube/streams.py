"""Streamed responses: watches and logs, which tests can cut, silence or end."""

import asyncio

from aiohttp import web

from tests.support.kube.faults import Fault, Kind, Seen


class Cut(Exception):
    """The connection is to be cut before the end of the body."""


class Ended(Exception):
    """The body is to be ended."""


class Stream:
    """One open watch or log."""

    def __init__(self, seen: Seen, fault: Fault | None) -> None:
        self.seen = seen
        self.bytes_sent = 0
        self.wakes = asyncio.Event()
        """Set when a test has acted on the stream."""
        self.cuts_next = False
        """True to cut the connection in the middle of the next line."""
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
        """End the body without an error."""
        self._finish(Ended())

    def silence(self) -> None:
        """Stop sending, and keep the connection."""
        self._flows.clear()

    def resume(self) -> None:
        """Send again, starting with the data held back."""
        self._flows.set()

    def _finish(self, how: Exception) -> None:
        self._over = how
        self._flows.set()
        self.wakes.set()

    # -- for the server

    def check(self) -> None:
        """Raise Cut or Ended if a test has requested it."""
        if self._over is not None:
            raise self._over

    async def write(self, data: bytes) -> None:
        """Send. Raises Cut or Ended if a test has requested it."""
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
