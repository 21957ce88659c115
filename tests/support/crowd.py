"""Many viewers of builds over HTTP, each as cheap as can be: their events are counted, not kept."""

import asyncio
import re
import resource
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import pytest

AT_ONCE = 100
"""Connections that are made at the same time: as many as a listening socket lets wait."""
LINE = re.compile(rb'"message": "line (\d+)([^"]*)\\n"')
ID = re.compile(rb"^id: (.+)$", re.MULTILINE)


def open_files(count: int) -> int:
    """Let this process, and those that it starts, have so many files and sockets open; return how many they can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return count
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def need_open_files(count: int) -> None:
    """Have so many open files allowed; else skip the test and say so."""
    if (allowed := open_files(count)) < count:
        pytest.skip(f"{count} open files are needed and {allowed} allowed here (`ulimit -Hn`)")


class Onlooker(asyncio.Protocol):
    """One viewer."""

    def __init__(self, news: Callable[[], None]) -> None:
        self._news = news
        self._rest = b""
        self.next_line = 0
        """Number of lines received, each once and in order."""
        self.disorder: list[int] = []
        """Lines that came twice, or too early."""
        self.events = 0
        """Events of any kind."""
        self.asked_at = self.first_at = 0.0
        self.last_id = ""
        self.end = b""
        """The event after which nothing came."""
        self.is_gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection was closed by the service."""
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the first event."""
        self.on_lines: Callable[[Iterable[tuple[bytes, bytes]]], None] = lambda lines: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note how to close it."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, path: str, host: str, last_id: str = "") -> None:
        """Ask in HTTP/1.0: the answer comes as it is, without chunks."""
        resumed = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
        self.asked_at = time.monotonic()
        self.transport.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n{resumed}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Count what has come in whole."""
        whole, separator, self._rest = (self._rest + data).rpartition(b"\n\n")
        if not separator:
            return
        if (count := whole.count(b"data: ")) and not self.events:
            self.first_at = time.monotonic()
            self.first.set_result(None)
        self.events += count
        found = LINE.findall(whole)
        for number, _ in found:
            if int(number) == self.next_line:
                self.next_line += 1
            else:
                self.disorder.append(int(number))
        if found:
            self.on_lines(found)
        if count:
            # A position in the queue has no id: as in a browser, the last id stays valid.
            self.last_id = next((found.decode() for found in reversed(ID.findall(whole))), self.last_id)
            self.end = whole.rpartition(b"data: ")[2]
        self._news()

    def connection_lost(self, error: Exception | None) -> None:
        """Note that it is over."""
        if not self.is_gone.done():
            self.is_gone.set_result(None)
        self._news()

    @property
    def is_ready(self) -> bool:
        """Return whether the last event says that the image exists."""
        return b'"phase": "ready"' in self.end


class Crowd:
    """Viewers that look at the same time."""

    def __init__(self, address: str) -> None:
        self._address = urlsplit(address)
        self._changed = asyncio.Event()
        self.viewers: list[Onlooker] = []

    async def join(self, count: int, path: str, last_id: str = "") -> list[Onlooker]:
        """Let so many more look."""
        new: list[Onlooker] = []
        for start in range(0, count, AT_ONCE):
            new += await asyncio.gather(
                *(self._connect(path, last_id) for _ in range(min(AT_ONCE, count - start)))
            )
        self.viewers += new
        return new

    async def _connect(self, path: str, last_id: str) -> Onlooker:
        host, port = str(self._address.hostname), int(self._address.port or 80)
        connect = asyncio.get_running_loop().create_connection
        _, viewer = await connect(lambda: Onlooker(self._changed.set), host, port)
        viewer.ask(self._address.path + path, self._address.netloc, last_id)
        return viewer

    async def until(self, condition: Callable[[Onlooker], bool]) -> None:
        """Wait until it holds for all."""
        while not all(map(condition, self.viewers)):
            self._changed.clear()
            await self._changed.wait()
            # Once for many pieces of news: to look through all viewers for each would be what takes the time.
            await asyncio.sleep(0.05)

    def leave(self) -> None:
        """Close all connections."""
        for viewer in self.viewers:
            viewer.transport.abort()
        self.viewers.clear()
