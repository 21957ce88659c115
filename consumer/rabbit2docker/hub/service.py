"""`rabbit2docker hub`: the parts put together, and the HTTP server around them."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import structlog
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from rabbit2docker.amqp import queue_depth
from rabbit2docker.client.build_events import BuildEvents
from rabbit2docker.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable, TopologyMismatch
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.models import BuildRecords
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.api import API_ROUTES
from rabbit2docker.hub.web.auth import make_authenticator
from rabbit2docker.hub.web.base import (
    BODY_BYTES,
    AppContext,
    BuildHandler,
    Handler,
    HealthCheck,
    HealthHandler,
    MetricsHandler,
    RepositoriesHandler,
    VersionsHandler,
)
from rabbit2docker.hub.web.build_tokens import BuildTokens
from rabbit2docker.hub.web.limits import Limits
from rabbit2docker.hub.web.open_files import allow_open_files
from rabbit2docker.hub.web.openapi import OpenApiHandler
from rabbit2docker.hub.web.pages import PAGE_ROUTES, STATIC_ROUTE, NotFoundPage, prepare_pages
from rabbit2docker.hub.web.queue_position import Looking, QueuePositions
from rabbit2docker.hub.web.submissions import Builds, Submissions
from rabbit2docker.settings import HubAuth, HubSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import REQUESTS_QUEUE

log = structlog.get_logger()

DEFAULT_BIND: Final = "127.0.0.1:8585"
CONNECT_SECONDS: Final = 10.0
"""Viewers who come before RabbitMQ has answered wait so long."""
RETRY_SECONDS: Final = 5.0
CHECK_SECONDS: Final = 5.0
REMEMBER_SECONDS: Final = 15.0
REMEMBER_DATABASE_SECONDS: Final = 2.0
BEHIND_SECONDS: Final = 10.0
"""A record of builds that is no further behind is up to date, for people."""
HEADER_BYTES: Final = 32 * 1024
"""Of the request's first line and headers together; JupyterHub's cookies take a few thousand."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""What the kernel may hold for one viewer; by itself it would take megabytes for each slow one."""


class Connection:
    """The builds, from when RabbitMQ is there; until then viewers wait a little and are told to try again."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; raises ConfigurationError for a URL that cannot be one."""
        self._events = BuildEvents(settings.amqp, settings.tenant)
        self._make: Callable[[], BuildEvents] = lambda: BuildEvents(settings.amqp, settings.tenant)
        self._open = asyncio.Event()
        self.problem = "not connected yet"

    async def run(self) -> None:
        """Keep it until cancelled. Raises AccessRefused when RabbitMQ refuses us."""
        while True:
            try:
                async with self._events:
                    self._open.set()
                    await asyncio.get_running_loop().create_future()
            except TopologyMismatch as error:
                # A consumer that starts for the first time makes what is missing.
                self.problem = str(error)
                log.warning("RabbitMQ is not prepared yet", why=str(error), seconds=RETRY_SECONDS)
            finally:
                self._open.clear()
            self._events = self._make()
            await asyncio.sleep(RETRY_SECONDS)

    @property
    def trouble(self) -> str:
        """Return why builds can be neither asked for nor followed; empty if they can."""
        return self._events.problem if self._open.is_set() else self.problem

    async def _connected(self) -> BuildEvents:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._open.wait()
        except TimeoutError as error:
            raise BrokerUnavailable(f"RabbitMQ is not there ({self.problem}).") from error
        return self._events

    async def submit(self, request: BuildRequest) -> RequestId:
        """Ask for a build. Raises BrokerUnavailable."""
        return await (await self._connected()).submit(request)

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """End a build, or take back a request. Raises BrokerUnavailable."""
        await (await self._connected()).cancel(id_, by=by, spare_joined=spare_joined)

    async def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens to a build. Raises BrokerUnavailable, TopologyMismatch."""
        events = (await self._connected()).of_build(build_id, since=since)
        async with aclosing(events):
            async for event in events:
                yield event

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield what happens to a request and its build. Raises BrokerUnavailable, TopologyMismatch."""
        events = (await self._connected()).of_request(request_id, since=since)
        async with aclosing(events):
            async for event in events:
                yield event


def base_url_of(settings: HubSettings) -> str:
    """Return the path before all addresses; it ends with a slash."""
    path = settings.base_url or os.environ.get("JUPYTERHUB_SERVICE_PREFIX") or "/"
    return path if path.endswith("/") else f"{path}/"


def address_of(settings: HubSettings) -> tuple[str, int]:
    """Return host and port to listen on. Raises ConfigurationError."""
    url = os.environ.get("JUPYTERHUB_SERVICE_URL", "")
    bind = settings.bind or (urlsplit(url).netloc if url else DEFAULT_BIND)
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdigit():
        raise ConfigurationError(f"hub.bind must be host:port, such as {DEFAULT_BIND}, not {bind!r}.")
    return host.strip("[]"), int(port)


def listening(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen there. Raises ConfigurationError when the address cannot be had."""
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}). "
            "Set RABBIT2DOCKER_HUB__BIND to another address; port 0 takes a free one."
        ) from error
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return sockets


def make_application(
    settings: Settings,
    builds: Builds,
    checks: Callable[[], Awaitable[list[HealthCheck]]],
    records: BuildRecords,
    looking: Looking | None = None,
    is_away: Callable[[], bool] = lambda: False,
) -> Application:
    """Return the routes over these builds, and what is remembered of them. Raises ConfigurationError.

    `looking`: how to find out how many requests wait; without it nobody is told a place in the queue. `is_away`: whether
    RabbitMQ is not there; what is asked for then counts for no limit.
    """
    hub, base = settings.hub, base_url_of(settings.hub)
    guard = make_authenticator(hub, base)
    submissions = Submissions(
        builds,
        records,
        QueuePositions(looking),
        tenant=settings.tenant,
        share_seconds=hub.share_seconds,
        keepalive_seconds=hub.keepalive_seconds,
    )
    parts = {
        "parts": AppContext(
            settings=settings,
            guard=guard,
            builds=builds,
            records=records,
            submissions=submissions,
            checks=checks,
            limits=Limits(hub, records, is_away),
            build_tokens=BuildTokens(hub.build_token_secret),
        )
    }
    prepare_pages()
    plain: list[tuple[str, type[Handler]]] = [
        ("versions", VersionsHandler),
        ("health", HealthHandler),
        ("metrics", MetricsHandler),
        ("api/repoproviders", RepositoriesHandler),
        ("api/openapi.json", OpenApiHandler),
    ]
    prefix = re.escape(base)
    routes: list[Any] = [
        (rf"{prefix}build/([^/]+)/(.+)", guard.made(BuildHandler), parts),
        *((rf"{prefix}{path}", guard.made(handler), parts) for path, handler in (*PAGE_ROUTES, *API_ROUTES)),
        *((f"{prefix}{path}", handler, parts) for path, handler in (*plain, STATIC_ROUTE)),
        *guard.routes(base),
    ]
    return Application(
        routes,
        base_url=base,
        allow_origin=hub.allow_origin,
        cookie_secret=guard.cookie_secret(),
        default_handler_class=NotFoundPage,
        default_handler_args=parts,
        # Addresses may hold what somebody has put there by mistake, such as a token.
        log_function=lambda handler: None,
    )


def http_server(application: Application) -> HTTPServer:
    """Return a server that takes no more than an order for a build needs."""
    # Twice as much is still read, so that whoever sends it can be told what is too much.
    return HTTPServer(application, xheaders=False, max_body_size=2 * BODY_BYTES, max_header_size=HEADER_BYTES)


class Seldom:
    """A check that is made once every few seconds at most: our health is open to everybody."""

    def __init__(self, seconds: float) -> None:
        """Remember what was found for so long."""
        self._seconds = seconds
        self._asking = asyncio.Lock()
        self._known: tuple[float, HealthCheck] | None = None

    async def check(self) -> HealthCheck:
        """Return what was found a moment ago, or now."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._known is None or now - self._known[0] > self._seconds:
                self._known = (now, await self._ask())
            return self._known[1]

    async def _ask(self) -> HealthCheck:
        raise NotImplementedError


class HubApi(Seldom):
    """Whether the JupyterHub answers: nobody else could say who asks."""

    def __init__(self, url: str) -> None:
        """Take the address of its API."""
        super().__init__(REMEMBER_SECONDS)
        self._url = url

    async def _ask(self) -> HealthCheck:
        timeout = aiohttp.ClientTimeout(total=CHECK_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self._url) as answer:
                ok, detail = answer.status < 500, f"answers {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            ok, detail = False, f"does not answer ({type(error).__name__})"
        return HealthCheck("JupyterHub API", ok, "" if ok else detail)


class DatabaseCheck(Seldom):
    """Whether builds can be looked up."""

    def __init__(self, store: Store) -> None:
        """Take the store."""
        super().__init__(REMEMBER_DATABASE_SECONDS)
        self._store = store

    async def _ask(self) -> HealthCheck:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._store.check()
        except TimeoutError:
            return HealthCheck("database", False, "does not answer")
        except StoreUnavailable as error:
            # Not in its own words: everybody may read this.
            log.warning("the database is away", why=str(error))
            return HealthCheck("database", False, "is away")
        return HealthCheck("database", True)


def check_feeding(feeder: Ingester) -> HealthCheck:
    """Tell whether what happens to builds is remembered, by whichever instance, and how far behind that is."""
    service = "record of builds"
    if feeder.problem:
        # Its own words name the database, and everybody may read these.
        return HealthCheck(service, False, "waits for RabbitMQ or for the database")
    behind = feeder.behind_seconds
    # No reason to send anybody away: after the very first start there may be much to catch up with.
    return HealthCheck(service, True, f"{behind:.0f} seconds behind" if behind > BEHIND_SECONDS else "")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises ConfigurationError, or AccessRefused when RabbitMQ refuses us."""
    hub, connection = settings.hub, Connection(settings)
    store = Store(hub.store_url, settings.tenant, log_bytes=hub.store_log_bytes)
    feeder = Ingester(store, settings)
    api_url = os.environ.get("JUPYTERHUB_API_URL") if hub.auth is HubAuth.JUPYTERHUB else None
    seldom = [DatabaseCheck(store), *([HubApi(api_url)] if api_url else [])]

    async def checks() -> list[HealthCheck]:
        trouble = connection.trouble
        return [
            HealthCheck("RabbitMQ", not trouble, trouble),
            check_feeding(feeder),
            *[await each.check() for each in seldom],
        ]

    looking = partial(queue_depth.looking, settings.amqp, REQUESTS_QUEUE)
    application = make_application(
        settings, connection, checks, store, looking, lambda: bool(connection.trouble)
    )
    server = http_server(application)
    sockets = listening(*address_of(hub))
    server.add_sockets(sockets)
    host, port = sockets[0].getsockname()[:2]
    log.info(
        "builds are served to the hub",
        address=f"http://{host}:{port}{base_url_of(hub)}",
        auth=hub.auth.value,
        tenant=settings.tenant,
        database=store.address,
    )
    work = [
        asyncio.create_task(connection.run(), name="builds"),
        asyncio.create_task(_remember(store, feeder), name="records"),
    ]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.stop()
        # Viewers come back to whoever listens next, and go on where they are.
        await server.close_all_connections()
        for task in (stopping, *work):
            task.cancel()
        await asyncio.wait(work)
    for task in work:
        if not task.cancelled() and (error := task.exception()):
            raise error
    log.info("stopped")


async def _remember(store: Store, feeder: Ingester) -> None:
    """Keep the store open, and feed it, until cancelled. Raises AccessRefused when RabbitMQ refuses us."""
    async with store:
        await feeder.run()


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises what makes it senseless to go on."""
    allow_open_files(settings.hub.viewers)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)
