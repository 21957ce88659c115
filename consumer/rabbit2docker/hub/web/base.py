"""Base classes of all request handlers, and the context that they share."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, OutputTransform, RequestHandler

from rabbit2docker import metrics
from rabbit2docker.errors import StoreUnavailable
from rabbit2docker.hub.health import HealthCheck
from rabbit2docker.hub.store.models import Allowance, BuildRecords
from rabbit2docker.hub.web.auth import SAFE_METHODS, Authenticator, User, check_origin
from rabbit2docker.hub.web.broadcast import Broadcasts
from rabbit2docker.hub.web.build_tokens import BuildTokens
from rabbit2docker.hub.web.errors import (
    BROKER_ERRORS,
    BUILDS_UNAVAILABLE,
    INTERNAL_ERROR,
    NO_SUCH_PAGE,
    RECORDS_UNAVAILABLE,
    HttpError,
    RateLimited,
    TooManyStreams,
)
from rabbit2docker.hub.web.limits import Address, Limits, limit_headers, limit_subject
from rabbit2docker.hub.web.open_streams import OpenStreams, StreamSlot
from rabbit2docker.hub.web.running_requests import RunningRequests
from rabbit2docker.hub.web.streamed import Streamed
from rabbit2docker.hub.web.submissions import Builds, Submissions
from rabbit2docker.hub.web.viewers import Viewers
from rabbit2docker.settings import Settings

if TYPE_CHECKING:
    from rabbit2docker.hub.web.dead_letters import DeadLetterAccess
    from rabbit2docker.hub.web.webhooks import Webhooks

log = structlog.get_logger()

MAX_BODY_BYTES: Final = 64 * 1024
RETRY_MILLISECONDS: Final = (4000, 12_000)
"""Clients of a service that restarts reconnect after a time between these: it is back, and they do not come all at once.
An EventSource that comes too early gets an error of the proxy and gives up."""
_MESSAGES: Final = {
    400: "The request cannot be parsed.",
    404: NO_SUCH_PAGE,
    405: "This address does not support this method.",
}


@dataclass(slots=True)
class AppContext:
    """The parts of the application that handlers use."""

    settings: Settings
    authenticator: Authenticator
    builds: Builds
    records: BuildRecords
    streamed: Streamed
    submissions: Submissions
    viewers: Viewers
    broadcasts: Broadcasts
    run_checks: Callable[[], Awaitable[list[HealthCheck]]]
    limits: Limits
    build_tokens: BuildTokens
    open_streams: OpenStreams
    running: RunningRequests
    webhooks: "Webhooks"
    dead_letters: "DeadLetterAccess | None"
    """None without credentials for the queue."""
    public_url: str
    """URL, or at least the path, under which users reach the service; ends with a slash."""


class Handler(RequestHandler):
    """The base of all handlers: network bans, limits, errors as JSON."""

    context: AppContext

    def initialize(self, context: AppContext) -> None:
        """Take the application's parts."""
        self.context = context

    async def _execute(self, transforms: list[OutputTransform], *args: bytes, **kwargs: bytes) -> None:
        with self.context.running.counted():
            await super()._execute(transforms, *args, **kwargs)

    def set_default_headers(self) -> None:
        """Allow pages of the configured origin to read responses."""
        self.clear_header("Server")
        if origin := self.settings.get("allow_origin"):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Headers", "cache-control")

    def prepare(self) -> Awaitable[None] | None:
        """Check the network. Raises BannedNetwork."""
        self.check_network()
        return None

    @property
    def client_address(self) -> Address | None:
        """Return the client's address behind trusted proxies."""
        forwarded_for = self.request.headers.get_list("X-Forwarded-For")
        return self.context.limits.client_address(self.request.remote_ip or "", forwarded_for)

    def check_network(self) -> None:
        """Raise BannedNetwork if the client's network is banned."""
        self.context.limits.check_network(self.client_address)

    async def check_rate(self, user: User) -> None:
        """Count a request for a build and set the headers of the limit. Raises RateLimited."""
        allowance = await self.context.limits.check_rate(user, self.client_address)
        if allowance is not None:
            self.set_limit_headers(allowance)

    def set_limit_headers(self, allowance: Allowance) -> None:
        """Set BinderHub's headers of the rate limit."""
        for name, value in limit_headers(allowance).items():
            self.set_header(name, value)

    def write_json(self, data: object, status: int = 200) -> None:
        """Finish the response with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(data))

    def write_error(self, status_code: int, **about: Any) -> None:
        """Finish the response with a JSON object that holds a message for a person."""
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, RateLimited):
            self.set_limit_headers(error.allowance)
        if isinstance(error, RateLimited | TooManyStreams):
            self.set_header("Retry-After", str(error.retry_after))
        message = error.message if isinstance(error, HttpError) else _MESSAGES.get(status_code)
        self.write_json({"message": message or INTERNAL_ERROR, "status": status_code}, status_code)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Log unexpected errors, without the URL, which may hold a token by mistake."""
        if not isinstance(error, HTTPError | StreamClosedError):
            log.error("request failed", handler=type(self).__name__, exc_info=error)

    async def send(self, chunk: bytes) -> bool:
        """Send a chunk; False if the client has stalled and was disconnected. Raises StreamClosedError."""
        self.write(chunk)
        flushed = self.flush()
        if flushed.done():
            # The kernel has taken it, as with every client that keeps up: no timer is needed.
            flushed.result()
            return True
        try:
            async with asyncio.timeout(self.context.settings.hub.stalled_seconds):
                await flushed
        except TimeoutError:
            self.detach().close()
            return False
        return True


class JsonHandler(Handler):
    """The base of the JSON API: true status codes, errors with a message, protection against cross-site requests."""

    user: User

    def set_default_headers(self) -> None:
        """Allow pages of the configured origin to use the API; keep personal responses out of caches."""
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.settings.get("allow_origin"):
            self.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE")
            self.set_header(
                "Access-Control-Allow-Headers",
                "authorization, cache-control, content-type, last-event-id, x-xsrftoken",
            )

    async def prepare(self) -> None:
        """Identify the client and refuse cross-site requests. Raises HttpError."""
        self.check_network()
        if self.request.method == "OPTIONS":
            return
        if self.request.method not in SAFE_METHODS:
            check_origin(self)
            kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            # Forms and plain text are what pages of other sites can send without a preflight request.
            if (kind or self.request.body) and kind != "application/json":
                raise HttpError("Send JSON, with `Content-Type: application/json`.", 415)
        if len(self.request.body) > MAX_BODY_BYTES:
            raise HttpError(f"The body is too long: at most {MAX_BODY_BYTES} bytes are allowed.", 413)
        self.user = await self.context.authenticator.user(self)

    def options(self, *path: str) -> None:
        """Answer a browser's preflight request."""
        self.set_status(204)
        self.finish()

    def write_error(self, status_code: int, **about: Any) -> None:
        """Finish the response with an error; an unavailable dependency is 503, not 500."""
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, StoreUnavailable):
            message = RECORDS_UNAVAILABLE
        elif isinstance(error, BROKER_ERRORS):
            message = BUILDS_UNAVAILABLE
        else:
            super().write_error(status_code, **about)
            return
        self.set_header("Retry-After", "30")
        self.write_json({"message": message, "status": 503}, 503)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Log unavailable dependencies as warnings and unexpected errors as errors."""
        if isinstance(error, (StoreUnavailable, *BROKER_ERRORS)):
            log.warning(
                "request failed, dependency unavailable", handler=type(self).__name__, reason=str(error)
            )
        else:
            super().log_exception(kind, error, trace)


class StreamHandler(Handler):
    """The base of handlers that stream one build to one viewer. A viewer who leaves does not stop the build."""

    _streaming: "asyncio.Task[str] | None" = None
    _slot: StreamSlot | None = None
    _is_restart = False

    async def stream(self, sending: Coroutine[Any, Any, str]) -> None:
        """Let `sending` send server-sent events and return the result, for as long as the viewer stays."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self._streaming = asyncio.create_task(sending, name=f"stream of {self.request.path}")
        metrics.HUB_VIEWERS.inc()
        self.context.open_streams.begin(self)
        try:
            await asyncio.wait({self._streaming})
        finally:
            self._streaming.cancel()
            self.context.open_streams.finish(self)
            if self._slot is not None:
                self.context.open_streams.leave(self._slot)
            metrics.HUB_VIEWERS.dec()
        metrics.HUB_STREAMS.labels(end=await self._outcome()).inc()

    def take_slot(self, user: User) -> None:
        """Count the stream for a user until `stream` returns. Raises HttpError if too many are open."""
        self._slot = self.context.open_streams.enter(limit_subject(user, self.client_address))

    def result(self) -> str:
        """Return the result of a stream that was sent to its end, for the metrics."""
        return "interrupted"

    def final_chunk(self) -> bytes:
        """Return the chunk to send after an unexpected error."""
        return b""

    def end_for_restart(self) -> None:
        """End the stream without a final event, so that its client reconnects and resumes."""
        if self._streaming is not None:
            self._is_restart = self._streaming.cancel()

    def _send_retry(self) -> None:
        """Set the time until an EventSource reconnects. A stalled client is not waited for."""
        with suppress(StreamClosedError):
            self.write(b"retry: %d\n\n" % random.randint(*RETRY_MILLISECONDS))
            self.flush()

    def on_connection_close(self) -> None:
        """Stop the stream once the viewer has disconnected."""
        if self._streaming is not None:
            self._streaming.cancel()

    async def _outcome(self) -> str:
        """Return how the stream ended, and log what went wrong."""
        assert self._streaming is not None
        if self._streaming.cancelled():
            if self._is_restart:
                self._send_retry()
            return "restart" if self._is_restart else "left"
        error = self._streaming.exception()
        if error is None:
            return self._streaming.result()
        if isinstance(error, StreamClosedError):
            return "left"
        if isinstance(error, (StoreUnavailable, *BROKER_ERRORS)):
            # Clients reconnect by themselves and resume from their position.
            log.warning("stream interrupted, dependency unavailable", reason=str(error))
            return "unavailable"
        log.error("stream failed", exc_info=error)
        with suppress(StreamClosedError):
            await self.send(self.final_chunk())
        return "error"

    async def send_all(self, chunks: AsyncGenerator[bytes, None]) -> str:
        """Send all chunks; return the result."""
        async with aclosing(chunks):
            async for chunk in chunks:
                if not await self.send(chunk):
                    return "stalled"
        return self.result()
