"""A viewer of any service that speaks BinderHub's HTTP: server-sent events of `GET BASE/build/PROVIDER/SPEC`.

It measures this service and a reference alike. Lines that builders of the benchmarks write end with the time at which
they were written.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from tests.support.consumer import COMMIT
from tests.support.crowd import AT_ONCE, Onlooker

END = re.compile(rb'"phase": ?"(ready|failed)"')
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LINE = b'"message": "line '


@dataclass(frozen=True, slots=True)
class Target:
    """An address of builds, and what requests to it have to say."""

    base: str
    token: str = ""
    spec: str = "git/{repository}/{commit}"
    """Provider and spec; `{repository}` is replaced by an escaped URL and `{commit}` by a full commit."""

    def path(self, name: str) -> str:
        """Return the path of a build whose repository has that name."""
        repository = quote(f"https://127.0.0.1/{name}", safe="")
        spec = self.spec.format(repository=repository, name=name, commit=COMMIT)
        return f"{urlsplit(self.base).path.rstrip('/')}/build/{spec}?build_only=true"


class Viewer(Onlooker):
    """One viewer, who leaves after the end of the build: BinderHub does not close the stream of a failed one."""

    def __init__(self, news: Callable[[], None] = lambda: None, *, keep_ages: bool = True) -> None:
        super().__init__(news)
        self.problem = ""
        """What went wrong; empty while nothing has."""
        self.ages: list[float] = []
        self.last_line_at = self.ended_at = 0.0
        """Unix time at which the last line was written, and at which the end has come."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._status = 0
        if keep_ages:
            self.on_lines = self._note_ages

    def request(self, target: Target, name: str) -> None:
        """Ask for a build."""
        url = urlsplit(target.base)
        token = f"Authorization: Bearer {target.token}\r\n" if target.token else ""
        self.asked_at = time.monotonic()
        # BinderHub refuses a request that does not name the type of the answer.
        head = f"GET {target.path(name)} HTTP/1.0\r\nHost: {url.netloc}\r\nAccept: text/event-stream\r\n{token}\r\n"
        self.transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        """Take in events; a status that is not 200, and a `failed` event, are problems."""
        if not self._status:
            found = STATUS.match(data)
            self._status = int(found[1]) if found else -1
            if self._status != 200:
                self._finish(f"answered with status {self._status}" if found else "did not answer in HTTP")
                return
        super().data_received(data)
        if (end := END.search(self.end)) is not None:
            self.ended_at = time.time()
            text = self.end.decode(errors="replace").strip()
            self._finish("" if end[1] == b"ready" else f"the build failed: {text}")

    def _note_ages(self, lines: Iterable[tuple[bytes, bytes]]) -> None:
        now = time.time()
        for _, rest in lines:
            written = _time_in(rest)
            if written is not None:
                self.last_line_at = written
                self.ages.append(now - written)

    def _finish(self, problem: str) -> None:
        if not self.over.done():
            self.problem = problem
            self.over.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """A connection that ends before the build does is a problem."""
        self._finish("the stream ended before the build did")
        super().connection_lost(error)


def _time_in(rest: bytes) -> float | None:
    try:
        return float(rest.split()[-1])
    except (IndexError, ValueError):
        return None


class Counter(asyncio.Protocol):
    """A viewer that costs this process next to nothing: it counts lines, and looks at none."""

    def __init__(self) -> None:
        self.lines = 0
        self._rest = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Count the lines, also one that comes in two parts."""
        data = self._rest + data
        self.lines += data.count(_LINE)
        self._rest = data[-len(_LINE) + 1 :]

    def connection_lost(self, error: Exception | None) -> None:
        """Note that it is over."""
        if not self.over.done():
            self.over.set_result(None)


async def look(target: Target, name: str) -> Viewer:
    """Ask for a build. Raises ConnectionError."""
    return (await look_all(target, [name]))[0]


async def look_all(target: Target, names: Sequence[str], *, keep_ages: bool = True) -> list[Viewer]:
    """Ask for builds, all at once. Raises ConnectionError."""
    url, loop = urlsplit(target.base), asyncio.get_running_loop()

    async def connect(name: str) -> Viewer:
        address = str(url.hostname), url.port or 80
        _, viewer = await loop.create_connection(lambda: Viewer(keep_ages=keep_ages), *address)
        viewer.request(target, name)
        return viewer

    found: list[Viewer] = []
    for start in range(0, len(names), AT_ONCE):
        found += await asyncio.gather(*(connect(name) for name in names[start : start + AT_ONCE]))
    return found


async def count_all(target: Target, name: str, count: int) -> list[Counter]:
    """Let so many more look at one build."""
    url, loop, found = urlsplit(target.base), asyncio.get_running_loop(), []
    head = f"GET {target.path(name)} HTTP/1.0\r\nHost: {url.netloc}\r\nAccept: text/event-stream\r\n\r\n"
    for _ in range(count):
        transport, counter = await loop.create_connection(Counter, str(url.hostname), url.port or 80)
        transport.write(head.encode())
        found.append(counter)
    return found


async def all_over(viewers: Iterable[Viewer | Counter], *, seconds: float) -> None:
    """Wait until all have seen the end, for that long at most."""
    waits: list[Awaitable[None]] = [viewer.over for viewer in viewers]
    if waits:
        await asyncio.wait(map(asyncio.ensure_future, waits), timeout=seconds)
