"""The web application: its routes over the parts of the service, and the HTTP server that serves it."""

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.hub.health import HealthCheck
from rabbit2docker.hub.store.models import BuildRecords
from rabbit2docker.hub.web.api import API_ROUTES
from rabbit2docker.hub.web.auth import make_authenticator
from rabbit2docker.hub.web.base import MAX_BODY_BYTES, AppContext, Handler
from rabbit2docker.hub.web.batches import BATCH_ROUTES
from rabbit2docker.hub.web.binderhub import BUILD_ROUTE, OPEN_ROUTES
from rabbit2docker.hub.web.broadcast import Broadcasts
from rabbit2docker.hub.web.build_tokens import BuildTokens
from rabbit2docker.hub.web.dead_letters import DEAD_LETTER_ROUTES, dead_letter_access
from rabbit2docker.hub.web.limits import Limits
from rabbit2docker.hub.web.open_streams import OpenStreams
from rabbit2docker.hub.web.openapi import OpenApiHandler
from rabbit2docker.hub.web.pages import PAGE_ROUTES, STATIC_ROUTE, NotFoundPage, load_pages
from rabbit2docker.hub.web.running_requests import RunningRequests
from rabbit2docker.hub.web.streamed import Streamed, StreamedBuilds
from rabbit2docker.hub.web.submissions import Builds, Submissions
from rabbit2docker.hub.web.viewers import Viewers
from rabbit2docker.hub.web.webhooks import WEBHOOK_ROUTE, Webhooks
from rabbit2docker.settings import HubSettings, Settings

MAX_HEADER_BYTES: Final = 32 * 1024
"""Request line and headers together; JupyterHub's cookies take a few thousand."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""The kernel's buffer for one viewer; its own default would take megabytes for each slow one."""

CLOSE_SECONDS: Final = 3.0
"""Time that handlers have once their connections are closed."""


def make_application(
    settings: Settings,
    base_url: str,
    *,
    builds: Builds,
    records: BuildRecords,
    run_checks: Callable[[], Awaitable[list[HealthCheck]]],
    broker_is_down: Callable[[], bool] = lambda: False,
) -> Application:
    """Return the application, with all routes below `base_url`. Raises ConfigurationError.

    While `broker_is_down`, requests do not count for limits.
    """
    context = _make_context(settings, base_url, builds, records, run_checks, broker_is_down)
    load_pages()
    return Application(
        _routes(context, base_url),
        base_url=base_url,
        allow_origin=settings.hub.allow_origin,
        cookie_secret=context.authenticator.cookie_secret(),
        open_streams=context.open_streams,
        running=context.running,
        default_handler_class=NotFoundPage,
        default_handler_args={"context": context},
        # No access log: URLs may hold secrets that were put there by mistake, such as tokens.
        log_function=lambda handler: None,
    )


def _make_context(
    settings: Settings,
    base_url: str,
    builds: Builds,
    records: BuildRecords,
    run_checks: Callable[[], Awaitable[list[HealthCheck]]],
    broker_is_down: Callable[[], bool],
) -> AppContext:
    hub, streamed = settings.hub, Streamed()
    builds = StreamedBuilds(builds, streamed)
    submissions = Submissions(builds, records, tenant=settings.tenant, share_seconds=hub.share_seconds)
    return AppContext(
        settings=settings,
        authenticator=make_authenticator(hub, base_url),
        builds=builds,
        records=records,
        streamed=streamed,
        submissions=submissions,
        viewers=Viewers(builds, submissions),
        broadcasts=Broadcasts(keepalive_seconds=hub.keepalive_seconds, stalled_seconds=hub.stalled_seconds),
        run_checks=run_checks,
        limits=Limits(hub, records, broker_is_down),
        open_streams=OpenStreams(hub),
        running=RunningRequests(),
        public_url=f"{(public_url_of(hub) or base_url).rstrip('/')}/",
        build_tokens=BuildTokens(hub.build_token_secret),
        webhooks=Webhooks(hub.webhooks),
        dead_letters=dead_letter_access(settings),
    )


def public_url_of(settings: HubSettings) -> str:
    """Return the URL under which users reach the service; empty if it is unknown."""
    return settings.public_url or os.environ.get("JUPYTERHUB_PUBLIC_URL") or ""


def _routes(context: AppContext, base_url: str) -> list[Any]:
    prefix, arguments = re.escape(base_url), {"context": context}
    protected: list[tuple[str, type[Handler]]] = [
        BUILD_ROUTE,
        *PAGE_ROUTES,
        *API_ROUTES,
        *BATCH_ROUTES,
        *DEAD_LETTER_ROUTES,
    ]
    unprotected: list[tuple[str, type[Handler]]] = [
        *OPEN_ROUTES,
        ("api/openapi.json", OpenApiHandler),
        STATIC_ROUTE,
        WEBHOOK_ROUTE,
    ]
    wrap = context.authenticator.wrap
    return [
        *((f"{prefix}{path}", wrap(handler), arguments) for path, handler in protected),
        *((f"{prefix}{path}", handler, arguments) for path, handler in unprotected),
        *context.authenticator.routes(base_url),
    ]


class WebServer:
    """An HTTP server that listens on one address."""

    def __init__(self, application: Application, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises ConfigurationError if the address cannot be bound."""
        sockets = _listen(host, port)
        self.host, self.port = sockets[0].getsockname()[:2]
        self._server = HTTPServer(
            application,
            xheaders=False,
            # Twice the limit is still read, so that the client of a slightly longer body gets a 413.
            max_body_size=2 * MAX_BODY_BYTES,
            max_header_size=MAX_HEADER_BYTES,
        )
        self._server.add_sockets(sockets)
        self._open_streams: OpenStreams = application.settings["open_streams"]
        self._running: RunningRequests = application.settings["running"]

    async def close(self, drain_seconds: float = 0.0, hurry: asyncio.Event | None = None) -> None:
        """Stop listening, let streams end by themselves for `drain_seconds` or until `hurry` is set, and close the rest.

        Clients of streams that had no end reconnect, to another instance or after a restart, and resume.
        """
        self._server.stop()
        await self._open_streams.drain(drain_seconds, hurry or asyncio.Event())
        await self._server.close_all_connections()
        await self._running.wait_for_end(CLOSE_SECONDS)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets. Raises ConfigurationError if the address cannot be bound."""
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
