"""The service for a JupyterHub: as a process of its own, or in this one over builds in memory; and viewers of it."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import aiohttp
from yarl import URL

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.hub.health import HealthCheck
from rabbit2docker.hub.service import base_url_of
from rabbit2docker.hub.store.database import migrate, parse_url
from rabbit2docker.hub.store.models import BuildRecords
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web import streamed
from rabbit2docker.hub.web.app import WebServer, make_application
from rabbit2docker.settings import AmqpSettings, HubSettings, Settings
from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority
from tests.support import programs
from tests.support.consumer import COMMIT
from tests.support.ports import free_port
from tests.support.waiting import eventually_blocking

PATIENCE = aiohttp.ClientTimeout(total=120)


def build_path(name: str) -> str:
    """Return the address of a build that the fake repo2docker carries out."""
    return f"build/git/{quote(f'https://127.0.0.1/{name}', safe='')}/{COMMIT}?build_only=true"


@dataclass(slots=True)
class Sent:
    """One server-sent event."""

    id: str | None
    data: dict[str, Any]
    event: str | None = None

    @property
    def phase(self) -> str | None:
        return self.data.get("phase")

    @property
    def message(self) -> str:
        return str(self.data.get("message", ""))


def parse(raw: bytes) -> list[Sent]:
    """Read a stream as clients do."""
    found = []
    for block in raw.decode().split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":")
        )
        if "data" in fields:
            found.append(Sent(fields.get("id"), json.loads(fields["data"]), fields.get("event")))
    return found


def texts(sent: list[Sent]) -> list[str]:
    """Return the lines of the build among what was sent."""
    return [
        each.message.strip()
        for each in sent
        if each.message.startswith("line ") and "of the build" in each.message
    ]


@dataclass
class Viewer:
    """A viewer of builds over HTTP."""

    address: str
    headers: dict[str, str] = field(default_factory=dict)
    server: WebServer | None = None
    """The server, if it runs in this process."""

    async def raw(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and all bytes until the stream ends."""
        async with aiohttp.ClientSession(timeout=PATIENCE) as session:
            url = URL(self.address + path, encoded=True)
            async with session.get(url, headers={**self.headers, **_names(headers)}) as answer:
                return answer.status, answer.headers, await answer.read()

    async def raw_once(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Do the same without following redirects."""
        async with aiohttp.ClientSession(timeout=PATIENCE) as session:
            url = self.address + path
            async with session.get(url, headers=_names(headers), allow_redirects=False) as answer:
                return answer.status, answer.headers, await answer.read()

    async def watch(self, path: str, **headers: str) -> list[Sent]:
        """Return everything until the stream ends."""
        status, _, body = await self.raw(path, **headers)
        assert status == 200, body
        return parse(body)

    @asynccontextmanager
    async def live(self, path: str, **headers: str) -> AsyncIterator[AsyncGenerator[Sent, None]]:
        """Give events as they come; leaving closes the connection."""
        async with aiohttp.ClientSession(timeout=PATIENCE) as session:
            url = URL(self.address + path, encoded=True)
            async with session.get(url, headers={**self.headers, **_names(headers)}) as answer:
                yield read_frames(answer)

    @asynccontextmanager
    async def live_bytes(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give bytes as they come."""
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as session,
            session.get(self.address + path, headers=self.headers) as answer,
        ):
            yield answer.content.iter_any()


async def read_frames(answer: aiohttp.ClientResponse) -> AsyncGenerator[Sent, None]:
    """Yield events as they come."""
    block = b""
    async for line in answer.content:
        block += line
        if line == b"\n":
            for sent in parse(block):
                yield sent
            block = b""


def _names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


class HubService:
    """`rabbit2docker hub`."""

    fork = False
    """Whether it is a fork of a process that has imported it, else it is the console script."""

    def __init__(self, directory: Path, amqp: AmqpSettings, **variables: str) -> None:
        self.log = directory / "hub.log"
        self.bind = f"127.0.0.1:{free_port()}"
        self.address = f"http://{self.bind}/"
        self.process: programs.Program | None = None
        self.variables = {
            "RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value(),
            "RABBIT2DOCKER_AMQP__HEARTBEAT": str(amqp.heartbeat),
            "RABBIT2DOCKER_LOG__FORMAT": "json",
            "RABBIT2DOCKER_HUB__AUTH": "none",
            "RABBIT2DOCKER_HUB__DRAIN_SECONDS": "0",
            "RABBIT2DOCKER_HUB__BIND": self.bind,
            "RABBIT2DOCKER_HUB__STORE_URL": f"sqlite:///{directory / 'hub.sqlite'}",
            **variables,
        }

    @property
    def viewer(self) -> Viewer:
        return Viewer(self.address)

    def start(self) -> None:
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("RABBIT2DOCKER_", "JUPYTERHUB_"))
        }
        with self.log.open("ab") as log:
            self.process = programs.start("hub", {**inherited, **self.variables}, log, fork=self.fork)

    def start_and_wait(self) -> None:
        """Start it and wait until builds can be requested."""
        self.start()
        eventually_blocking(lambda: self.is_ready() or self.has_ended())
        assert not self.has_ended(), self.log.read_text()

    def has_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def is_ready(self) -> bool:
        try:
            return asyncio.run(self.viewer.raw("health"))[0] == 200
        except aiohttp.ClientError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


class MemoryBuilds:
    """Builds in memory, with the events that a test plans."""

    def __init__(self) -> None:
        self.asked: list[BuildRequest] = []
        self.priorities: list[Priority] = []
        self.cancelled: list[tuple[str, str]] = []
        self.spared: list[bool] = []
        self.problem: Exception | None = None
        self.plan: list[events.AnyEventData] = []
        """The events of every request; ids are filled in."""
        self.reading = 0
        """Readers at this moment."""
        self.readings = 0
        """Readers so far."""
        self._more = asyncio.Condition()

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        if self.problem:
            raise self.problem
        self.asked.append(request)
        self.priorities.append(priority)
        assert request.request_id
        return RequestId(request.request_id)

    async def add(self, *data: events.AnyEventData) -> None:
        """Add further events."""
        async with self._more:
            self.plan.extend(data)
            self._more.notify_all()

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        if self.problem:
            raise self.problem
        self.cancelled.append((id_, by))
        self.spared.append(spare_joined)

    def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        [request_id] = [
            request.request_id
            for request in self.asked
            if request.request_id and ids.build_id_of("default", request.request_id) == build_id
        ]
        return self.of_request(request_id)

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        self.reading += 1
        self.readings += 1
        try:
            build_id, at = ids.build_id_of("default", request_id), 0
            while True:
                async with self._more:
                    await self._more.wait_for(lambda at=at: len(self.plan) > at)  # type: ignore[misc]
                data = self.plan[at]
                if isinstance(data, Exception):
                    raise data
                named = {"request_id": request_id, "build_id": build_id}
                known = {name: value for name, value in named.items() if name in type(data).model_fields}
                event_id = ids.progress_event_id(build_id, 0, f"{at}")
                event = Event(event_id, "default", datetime.now(UTC), data.model_copy(update=known))
                at += 1
                yield event
                if event.is_terminal or isinstance(data, events.Rejected):
                    return
        finally:
            self.reading -= 1


@cache
def _with_tables() -> bytes:
    """Return an empty database with all tables: creating them takes most of the time of a test that needs them."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "hub.sqlite"
        migrate(parse_url(f"sqlite:///{file}"))
        return file.read_bytes()


@asynccontextmanager
async def a_store(directory: Path, **more: Any) -> AsyncIterator[Store]:
    """Give a store on a database of its own, which has its tables already."""
    file = directory / "hub.sqlite"
    if not file.exists():
        file.write_bytes(await asyncio.to_thread(_with_tables))
    async with Store(f"sqlite:///{file}", "default", **more) as store:
        yield store


@asynccontextmanager
async def serving(
    builds: MemoryBuilds,
    records: BuildRecords | None = None,
    catch_up_seconds: float = 0.0,
    **hub: Any,
) -> AsyncIterator[Viewer]:
    """Serve builds in memory over real HTTP; without `records` on a database that is gone afterwards.

    Answers wait for `catch_up_seconds` for events in the store, into which nothing but the test brings them.
    """
    if records is None:
        with TemporaryDirectory() as directory:
            async with (
                a_store(Path(directory)) as store,
                serving(builds, store, catch_up_seconds, **hub) as viewer,
            ):
                yield viewer
        return
    settings = Settings(hub=HubSettings.model_validate({"auth": "none", **hub}))

    async def run_checks() -> list[HealthCheck]:
        return [HealthCheck("RabbitMQ", builds.problem is None, str(builds.problem or ""))]

    application = make_application(
        settings,
        base_url_of(settings.hub),
        builds=builds,
        records=records,
        run_checks=run_checks,
    )
    server = WebServer(application, "127.0.0.1", 0)
    try:
        address = f"http://127.0.0.1:{server.port}{settings.hub.base_url or '/'}"
        with patch.object(streamed, "WAIT_SECONDS", catch_up_seconds):
            yield Viewer(address, server=server)
    finally:
        await server.close()


AWAY = BrokerUnavailable("RabbitMQ is away.")
