"""`rabbit2docker hub`: wires the parts of the service and runs them."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog

from rabbit2docker.client.build_events import BuildEvents
from rabbit2docker.errors import BrokerUnavailable, ConfigurationError, TopologyMismatch
from rabbit2docker.garbage import collect_less_often
from rabbit2docker.hub.commit_status import CommitStatusWriter
from rabbit2docker.hub.health import (
    CachedCheck,
    DatabaseCheck,
    HealthCheck,
    JupyterHubCheck,
    RegistryCheck,
    check_ingester,
)
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.app import WebServer, make_application, public_url_of
from rabbit2docker.hub.web.open_files import allow_open_files
from rabbit2docker.settings import HubAuth, HubSettings, Settings
from rabbit2docker.tasks import cancel_and_wait, run_together
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority

log = structlog.get_logger()

DEFAULT_BIND: Final = "127.0.0.1:8585"
RETRY_SECONDS: Final = 5.0


class BuildsConnection:
    """The builds over a connection to RabbitMQ; calls made before it is up wait for a few seconds."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings. Raises ConfigurationError for an invalid URL."""
        self._open_events = partial(BuildEvents, settings.amqp, settings.tenant)
        self._connect_seconds = settings.hub.connect_seconds
        self._events = self._open_events()
        self._connected = asyncio.Event()
        self._problem = "not connected yet"

    async def run(self) -> None:
        """Keep the connection until cancelled. Raises AccessRefused if RabbitMQ refuses the credentials."""
        while True:
            try:
                async with self._events:
                    self._connected.set()
                    await asyncio.get_running_loop().create_future()
            except TopologyMismatch as error:
                # The first start of a consumer declares what is missing.
                self._problem = str(error)
                log.warning("topology missing", reason=str(error), retry_seconds=RETRY_SECONDS)
            finally:
                self._connected.clear()
            self._events = self._open_events()
            await asyncio.sleep(RETRY_SECONDS)

    @property
    def problem(self) -> str:
        """Return the reason why builds can be neither requested nor followed; empty if they can."""
        return self._events.problem if self._connected.is_set() else self._problem

    async def _wait(self) -> BuildEvents:
        """Return the builds once RabbitMQ is connected. Raises BrokerUnavailable if that takes too long."""
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._connected.wait()
        except TimeoutError as error:
            raise BrokerUnavailable(f"RabbitMQ is unavailable ({self._problem}).") from error
        return self._events

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Publish a request for a build. Raises BrokerUnavailable."""
        return await (await self._wait()).submit(request, priority)

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """Cancel a build, or withdraw a request. Raises BrokerUnavailable."""
        await (await self._wait()).cancel(id_, by=by, spare_joined=spare_joined)

    async def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a build. Raises BrokerUnavailable, TopologyMismatch."""
        # A viewer of a requested build can wait for longer than one who requests it: comments keep the stream open.
        await self._connected.wait()
        events = self._events.of_build(build_id, since=since)
        async with aclosing(events):
            async for event in events:
                yield event

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a request and its build. Raises BrokerUnavailable, TopologyMismatch."""
        await self._connected.wait()
        events = self._events.of_request(request_id, since=since)
        async with aclosing(events):
            async for event in events:
                yield event


def base_url_of(settings: HubSettings) -> str:
    """Return the path that all routes start with; it ends with a slash."""
    path = settings.base_url or os.environ.get("JUPYTERHUB_SERVICE_PREFIX") or "/"
    return path if path.endswith("/") else f"{path}/"


def bind_address(settings: HubSettings) -> tuple[str, int]:
    """Return host and port to listen on. Raises ConfigurationError."""
    url = os.environ.get("JUPYTERHUB_SERVICE_URL", "")
    bind = settings.bind or (urlsplit(url).netloc if url else DEFAULT_BIND)
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdigit():
        raise ConfigurationError(f"hub.bind must be host:port, such as {DEFAULT_BIND}, not {bind!r}.")
    return host.strip("[]"), int(port)


class Checks:
    """The health checks of this service."""

    def __init__(
        self, settings: Settings, connection: BuildsConnection, ingester: Ingester, store: Store
    ) -> None:
        """Take the parts that are checked."""
        self._connection = connection
        self._ingester = ingester
        api_url = os.environ.get("JUPYTERHUB_API_URL") if settings.hub.auth is HubAuth.JUPYTERHUB else None
        self._cached: list[CachedCheck] = [DatabaseCheck(store)]
        if api_url:
            self._cached.append(JupyterHubCheck(api_url))
        # The hub may not know the registry: the consumers push, and the default is a registry on their own machine.
        if settings.images.model_fields_set & {"prefix", "registry_url"}:
            self._cached.append(RegistryCheck(settings.images))

    async def run(self) -> list[HealthCheck]:
        """Return all results."""
        problem = self._connection.problem
        return [
            HealthCheck("RabbitMQ", not problem, problem),
            check_ingester(self._ingester),
            *await asyncio.gather(*(each.check() for each in self._cached)),
        ]


async def serve(settings: Settings, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Serve until `stop` is set; `hurry` cuts short the time in which streams may end.

    Raises ConfigurationError, or AccessRefused if RabbitMQ refuses the credentials.
    """
    hub, connection = settings.hub, BuildsConnection(settings)
    store = Store(hub.store_url, settings.tenant, log_bytes=hub.store_log_bytes)
    ingester = Ingester(store, settings)
    statuses = CommitStatusWriter(
        store, settings, public_url=public_url_of(hub), is_standby=lambda: ingester.is_standby
    )
    base_url = base_url_of(hub)
    application = make_application(
        settings,
        base_url,
        builds=connection,
        records=store,
        run_checks=Checks(settings, connection, ingester, store).run,
        broker_is_down=lambda: bool(connection.problem),
    )
    server = WebServer(application, *bind_address(hub))
    log.info(
        "hub service started",
        address=f"http://{server.host}:{server.port}{base_url}",
        auth=hub.auth.value,
        tenant=settings.tenant,
        database=store.address,
    )
    work = [
        asyncio.create_task(connection.run(), name="builds"),
        asyncio.create_task(_ingest(store, ingester, statuses), name="ingest"),
    ]
    await _run_until(stop, work, server, partial(server.close, hub.drain_seconds, hurry))
    log.info("hub service stopped")


async def _run_until(
    stop: asyncio.Event,
    work: list["asyncio.Task[None]"],
    server: WebServer,
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Run until `stop` is set or a task ends, then close the server and the tasks. Raises what a task has raised."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await drain()
    finally:
        # First the server: its viewers reconnect to another instance and resume, without an error from here.
        await server.close()
        await cancel_and_wait((stopping, *work))
    for task in work:
        if not task.cancelled() and (error := task.exception()):
            raise error


async def _ingest(store: Store, ingester: Ingester, statuses: CommitStatusWriter) -> None:
    """Keep the store open and fed until cancelled. Raises AccessRefused if RabbitMQ refuses the credentials."""
    async with store:
        await run_together(ingester.run(), statuses.run())


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError, AccessRefused."""
    collect_less_often()
    allow_open_files(settings.hub.viewers)
    stop, hurry, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await serve(settings, stop, hurry)
