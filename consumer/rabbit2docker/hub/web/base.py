"""BinderHub's routes: builds as server-sent events, versions, health, metrics and the kinds of repositories."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from rabbit2docker import metrics
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, StoreUnavailable, TopologyMismatch
from rabbit2docker.hub.store.models import Allowance, BuildRecords
from rabbit2docker.hub.web.auth import (
    SAFE_METHODS,
    Authenticator,
    Forbidden,
    HttpError,
    User,
    check_browser,
    check_origin,
)
from rabbit2docker.hub.web.binderhub_stream import failure, frame
from rabbit2docker.hub.web.build_form import check_password
from rabbit2docker.hub.web.build_tokens import BuildTokens, InvalidBuildToken, origin_of
from rabbit2docker.hub.web.limits import Address, Limits, RateLimited, limit_headers
from rabbit2docker.hub.web.repositories import NoProvider, check_provider
from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker.hub.web.submissions import Builds, Submissions, start
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.providers import AVAILABLE
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.validation_messages import describe

log = structlog.get_logger()

BODY_BYTES: Final = 64 * 1024
"""What a request's body may have at most."""
AWAY: Final = (AccessRefused, BrokerUnavailable, TopologyMismatch)
"""Why builds can be neither asked for nor followed for now."""
NOT_UNDERSTOOD: Final = "Something went wrong inside the service. Please try again, or tell the operator."


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One thing this service needs."""

    service: str
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class AppContext:
    """What handlers need."""

    settings: Settings
    guard: Authenticator
    builds: Builds
    records: BuildRecords
    submissions: Submissions
    checks: Callable[[], Awaitable[list[HealthCheck]]]
    limits: Limits
    build_tokens: BuildTokens
    viewers: int = 0


class Handler(RequestHandler):
    """What all have in common."""

    parts: AppContext

    def initialize(self, parts: AppContext) -> None:
        """Take the parts."""
        self.parts = parts

    def set_default_headers(self) -> None:
        """Let pages of the named origin read the answers."""
        self.clear_header("Server")
        if origin := self.settings.get("allow_origin"):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Headers", "cache-control")

    def prepare(self) -> Awaitable[None] | None:
        """Let in who may come. Raises Banned."""
        self.check_network()
        return None

    @property
    def client(self) -> Address | None:
        """Return the address of who asks, whatever proxies are between."""
        forwarded_for = self.request.headers.get_list("X-Forwarded-For")
        return self.parts.limits.address(self.request.remote_ip or "", forwarded_for)

    def check_network(self) -> None:
        """Raise Banned when it comes from where the operator lets nobody ask from."""
        self.parts.limits.check_network(self.client)

    async def check_rate(self, user: User) -> None:
        """Count a wish for a build, and tell what is left. Raises TooMany."""
        allowance = await self.parts.limits.check_rate(user, self.client)
        if allowance is not None:
            self.tell_limit(allowance)

    def tell_limit(self, allowance: Allowance) -> None:
        """Put what is left into headers."""
        for name, value in limit_headers(allowance).items():
            self.set_header(name, value)

    def answer(self, data: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(data))

    def write_error(self, status_code: int, **about: Any) -> None:
        """Answer an error in words."""
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, RateLimited):
            self.tell_limit(error.allowance)
            self.set_header("Retry-After", str(error.retry_after))
        words = error.message if isinstance(error, HttpError) else _WORDS.get(status_code, NOT_UNDERSTOOD)
        self.answer({"message": words, "status": status_code}, status_code)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Tell the operator of what nobody has foreseen. Not the address, which may hold a token put there by mistake."""
        if not isinstance(error, HTTPError | StreamClosedError):
            log.error("a request failed", handler=type(self).__name__, exc_info=error)

    async def send(self, chunk: bytes) -> bool:
        """Return when who asked has taken it; False when they take nothing and are let go. Raises StreamClosedError."""
        self.write(chunk)
        taken = self.flush()
        if taken.done():
            # The kernel has it, as with everybody who reads: no timer is needed.
            taken.result()
            return True
        try:
            async with asyncio.timeout(self.parts.settings.hub.stalled_seconds):
                await taken
        except TimeoutError:
            self.detach().close()
            return False
        return True

    async def user_of_page(self) -> User | None:
        """Return who looks at a page; None when they were sent to log in, or refused, and all is answered."""
        try:
            return await self.parts.guard.user(self)
        except Forbidden as refusal:
            if refusal.login_url:
                self.redirect(refusal.login_url)
                return None
            if refusal.challenge and "text/html" in self.request.headers.get("Accept", ""):
                self.set_header("WWW-Authenticate", refusal.challenge)
                self.answer({"message": refusal.message, "status": 401}, 401)
                return None
            raise


_WORDS: Final = {
    400: "The request cannot be read.",
    404: "There is nothing here.",
    405: "This address does not know this method.",
}


class JsonHandler(Handler):
    """What the addresses of the JSON API have in common: true status codes, errors in words, no orders from elsewhere."""

    user: User

    def set_default_headers(self) -> None:
        """Let pages of the named origin give orders, too; keep answers, which are for one person, out of caches."""
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
        """Find out who asks, and refuse what a page of another site may have sent. Raises Refusal."""
        self.check_network()
        if self.request.method == "OPTIONS":
            return
        if self.request.method not in SAFE_METHODS:
            check_origin(self)
            kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            # Forms and plain texts are what pages of other sites can send without being asked.
            if (kind or self.request.body) and kind != "application/json":
                raise HttpError("Send JSON, with `Content-Type: application/json`.", 415)
        if len(self.request.body) > BODY_BYTES:
            raise HttpError(f"A request may have {BODY_BYTES} bytes.", 413)
        self.user = await self.parts.guard.user(self)

    def options(self, *parts: str) -> None:
        """Answer what browsers ask before they let a page of the named origin give an order."""
        self.set_status(204)
        self.finish()

    def write_error(self, status_code: int, **about: Any) -> None:
        """Answer an error in words; what is away for now is no error of ours."""
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, StoreUnavailable):
            words = "The record of builds cannot be read at the moment. Please try again in a minute."
        elif isinstance(error, AWAY):
            words = "Builds cannot be asked for at the moment. Please try again in a minute."
        else:
            super().write_error(status_code, **about)
            return
        self.set_header("Retry-After", "30")
        self.answer({"message": words, "status": 503}, 503)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Tell the operator what is away, and of what nobody has foreseen."""
        if isinstance(error, (StoreUnavailable, *AWAY)):
            log.warning("a request could not be answered", handler=type(self).__name__, why=str(error))
        else:
            super().log_exception(kind, error, trace)


class Streaming(Handler):
    """What tells one viewer what happens to a build, for as long as it takes. Nobody who leaves stops a build."""

    _telling: "asyncio.Task[str] | None" = None

    async def stream(self, chunks: AsyncGenerator[bytes, None]) -> None:
        """Send all chunks as server-sent events, or as many as the viewer stays for."""
        self._telling = asyncio.create_task(self._tell(chunks), name=f"viewer of {self.request.path}")
        metrics.HUB_VIEWERS.inc()
        self.parts.viewers += 1
        try:
            await asyncio.wait({self._telling})
        finally:
            self._telling.cancel()
            self.parts.viewers -= 1
            metrics.HUB_VIEWERS.dec()
        metrics.HUB_STREAMS.labels(end=await self._end()).inc()

    def check_room(self, more: int = 0) -> None:
        """Raise NotAllowed when, with so many more, more are being told of builds than may be."""
        if self.parts.viewers + more > self.parts.settings.hub.viewers:
            raise Forbidden("Too many builds are being watched. Please try again in a minute.", 503)

    def result(self) -> str:
        """Return how a stream has ended that was sent whole."""
        return "interrupted"

    def last_words(self) -> bytes:
        """Return what is sent after a defect of ours."""
        return b""

    def on_connection_close(self) -> None:
        """Stop telling: nobody listens."""
        if self._telling is not None:
            self._telling.cancel()

    async def _end(self) -> str:
        """Return how the stream ended, and tell of what nobody has foreseen."""
        assert self._telling is not None
        if self._telling.cancelled():
            return "left"
        error = self._telling.exception()
        if error is None:
            return self._telling.result()
        if isinstance(error, StreamClosedError):
            return "left"
        if isinstance(error, (StoreUnavailable, *AWAY)):
            # Viewers come back by themselves, and go on where they are.
            log.warning("a viewer cannot be told about a build for now", why=str(error))
            return "unavailable"
        log.error("a viewer could not be told about a build", exc_info=error)
        with suppress(StreamClosedError):
            await self.send(self.last_words())
        return "error"

    async def _tell(self, chunks: AsyncGenerator[bytes, None]) -> str:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        async with aclosing(chunks):
            async for chunk in chunks:
                if not await self.send(chunk):
                    return "stalled"
        return self.result()


class BuildHandler(Streaming):
    """Asks for a build and tells what becomes of it, or goes on telling, in BinderHub's words."""

    async def get(self, provider: str, spec: str) -> None:
        """Stream the events of one build."""
        provider, spec = self._target()
        resumed = BinderHubCursor.read(self.request.headers.get("Last-Event-ID"), provider, spec)
        if resumed is not None and resumed.ended:
            # The one answer after which a browser's EventSource does not come back once more.
            self.set_status(204)
            metrics.HUB_STREAMS.labels(end="ended").inc()
            return
        self.set_header("Access-Control-Allow-Headers", "cache-control")
        await self.stream(self._chunks(provider, spec, resumed))

    def options(self, provider: str, spec: str) -> None:
        """Answer what browsers ask before they let a page of the named origin send a token."""
        self.set_header("Access-Control-Allow-Methods", "GET")
        headers = "authorization, cache-control, last-event-id, x-xsrftoken"
        self.set_header("Access-Control-Allow-Headers", headers)
        self.set_status(204)

    _result = "interrupted"

    def result(self) -> str:
        """Return how the stream has ended."""
        return self._result

    def last_words(self) -> bytes:
        """Return a failure, which is all that these clients understand."""
        return frame(failure(NOT_UNDERSTOOD, 500))

    async def _chunks(
        self, provider: str, spec: str, resumed: BinderHubCursor | None
    ) -> AsyncGenerator[bytes, None]:
        try:
            self.check_network()
            user = await self.parts.guard.user(self)
            check_browser(self, user)
            is_free = self._has_build_token(provider, spec)
            request = self._wish(provider, spec, user)
            self.check_room()

            async def permit() -> None:
                if not is_free:
                    await self.check_rate(user)

            telling = await start(self.parts.submissions, request, resumed, permit)
        except HttpError as refusal:
            self._result = "refused"
            if isinstance(refusal, RateLimited):
                self.tell_limit(refusal.allowance)
            # BinderHub gives this one error no status.
            status = None if isinstance(refusal, NoProvider) else refusal.status_code
            yield frame(failure(refusal.message, status))
            return
        except AWAY as error:
            log.warning("a build could not be asked for", why=str(error))
            self._result = "unavailable"
            yield frame(
                failure("Builds cannot be asked for at the moment. Please try again in a minute.", 503)
            )
            return
        async with aclosing(self.parts.submissions.follow(telling)) as chunks:
            async for chunk in chunks:
                self._result = telling.result or self._result
                yield chunk

    def prepare(self) -> None:
        """Let everybody in: these clients read refusals in the stream only."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Return an argument as text, and garbage as garbage: no error is to end in another answer than a stream."""
        return value.decode(errors="replace")

    def _has_build_token(self, provider: str, spec: str) -> bool:
        """Tell whether there is one. Raises NotAllowed, with BinderHub's words, for one that is not valid."""
        token = self.get_query_argument("build_token", "")
        if not token:
            return False
        try:
            self.parts.build_tokens.check(token, provider, spec, origin_of(self.request.headers))
        except InvalidBuildToken as error:
            metrics.HUB_REFUSALS.labels(limit="token").inc()
            log.info("a build token is not valid", why=str(error))
            raise Forbidden("Invalid build token", 403) from error
        return True

    def _target(self) -> tuple[str, str]:
        """Return provider and spec as they are written: what is escaped in a spec belongs to it."""
        path = self.request.path.removeprefix(f"{self.settings['base_url']}build/")
        provider, _, spec = path.partition("/")
        return provider, spec.rstrip("/")

    def _wish(self, provider: str, spec: str, user: User) -> BuildRequest:
        """Return the request. Raises NotAllowed when there can be none."""
        if self.get_query_argument("build_only", "").lower() != "true":
            raise Forbidden(
                "This service builds images and launches nothing: add build_only=true to the address.", 400
            )
        check_provider(provider)
        check_password(spec)
        try:
            return BuildRequest(provider=provider, spec=spec, requester=user.name)
        except ValidationError as error:
            raise Forbidden(describe(error, BuildRequest.model_fields), 400) from error


class HomeHandler(Handler):
    """Where people log in with a browser; pages of this origin may ask for builds with their cookie afterwards."""

    async def get(self) -> None:
        """Send people to log in, or say what this is."""
        user = await self.user_of_page()
        if user is None:
            return
        if self.parts.guard.cookie_secret():
            self.xsrf_token  # noqa: B018 - reading it sets the cookie
        build = f"{self.settings['base_url']}build/<provider>/<spec>?build_only=true"
        self.answer({"service": "rabbit2docker", "user": user.name, "build": build})


class OpenHandler(Handler):
    """What everybody may look at, wherever they are: probes, and the programs of operators."""

    def check_network(self) -> None:
        """Let everybody in."""


class VersionsHandler(OpenHandler):
    """What runs here."""

    def get(self) -> None:
        """Answer as BinderHub does, and with our own version."""
        image, ours = self.parts.settings.builder.image, version("rabbit2docker")
        self.answer(
            {
                "builder_info": {"build_image": image},
                "binderhub": f"rabbit2docker {ours}",
                "builder": image,
                "rabbit2docker": ours,
            }
        )


class HealthHandler(OpenHandler):
    """Whether builds can be asked for and followed."""

    async def get(self) -> None:
        """Answer 200, or 503 with what is wrong."""
        checks = await self.parts.checks()
        ok = all(check.ok for check in checks)
        told: list[dict[str, Any]] = [
            {"service": check.service, "ok": check.ok, **({"detail": check.detail} if check.detail else {})}
            for check in checks
        ]
        self.answer({"ok": ok, "checks": told}, 200 if ok else 503)

    async def head(self) -> None:
        """Answer without a body."""
        await self.get()


class MetricsHandler(OpenHandler):
    """Prometheus."""

    def get(self) -> None:
        """Answer in the exposition format."""
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(metrics.render())


class RepositoriesHandler(Handler):
    """Which kinds of repositories can be built, for the forms of web pages."""

    def get(self) -> None:
        """Answer with the list."""
        self.answer([provider.as_repoprovider() for provider in AVAILABLE.values()])


class NotFoundHandler(Handler):
    """Everything else."""

    def prepare(self) -> None:
        """Answer 404."""
        self.check_network()
        raise HttpError("There is nothing here.", 404)
