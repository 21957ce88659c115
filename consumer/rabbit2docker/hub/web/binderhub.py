"""BinderHub's routes: builds as server-sent events, versions, health, metrics and providers."""

from dataclasses import replace
from typing import Any, Final

import structlog
from pydantic import ValidationError

from rabbit2docker import metrics
from rabbit2docker.hub.web.auth import User, check_browser
from rabbit2docker.hub.web.base import Handler
from rabbit2docker.hub.web.binderhub_stream import BinderHubStream, failure, frame
from rabbit2docker.hub.web.build_form import check_password, check_provider
from rabbit2docker.hub.web.build_tokens import InvalidBuildToken, origin_of
from rabbit2docker.hub.web.errors import (
    BROKER_ERRORS,
    BUILDS_UNAVAILABLE,
    INTERNAL_ERROR,
    Forbidden,
    HttpError,
    RateLimited,
    UnknownProvider,
)
from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker.hub.web.shared_streams import SharedStreamHandler
from rabbit2docker.hub.web.viewers import BuildRendering
from rabbit2docker.own_version import OWN_VERSION
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.validation_messages import describe

log = structlog.get_logger()


class BuildHandler(SharedStreamHandler):
    """Requests a build and streams its events as BinderHub does, or resumes a stream.

    Every error is a `failed` event of a response with status 200: BinderHub's clients show nothing else to people.
    """

    async def get(self, provider: str, spec: str) -> None:
        """Stream the events of one build."""
        provider, spec = self._target()
        resumed = BinderHubCursor.parse(self.request.headers.get("Last-Event-ID"), provider, spec)
        if resumed is not None and resumed.ended:
            # 204 is the one response after which a browser's EventSource does not reconnect.
            self.set_status(204)
            metrics.HUB_STREAMS.labels(end="ended").inc()
            return
        self.set_header("Access-Control-Allow-Headers", "cache-control")
        await self.stream(self._send(provider, spec, resumed))

    def options(self, provider: str, spec: str) -> None:
        """Answer the preflight request of a page that wants to send a token."""
        self.set_header("Access-Control-Allow-Methods", "GET")
        headers = "authorization, cache-control, last-event-id, x-xsrftoken"
        self.set_header("Access-Control-Allow-Headers", headers)
        self.set_status(204)

    def prepare(self) -> None:
        """Check nothing here: `_chunks` checks the network, so that the refusal is an event of the stream."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode an argument leniently, so that no error escapes the stream."""
        return value.decode(errors="replace")

    def final_chunk(self) -> bytes:
        """Return a `failed` event."""
        return frame(failure(INTERNAL_ERROR, 500))

    async def _send(self, provider: str, spec: str, resumed: BinderHubCursor | None) -> str:
        """Send the stream and return the phase of its last event, or the kind of refusal."""
        try:
            cursor = await self._open_stream(provider, spec, resumed)
        except HttpError as error:
            if isinstance(error, RateLimited):
                self.set_limit_headers(error.allowance)
            # BinderHub's event for an unknown provider has no status_code.
            status = None if isinstance(error, UnknownProvider) else error.status_code
            await self.send(frame(failure(error.message, status)))
            return "refused"
        except BROKER_ERRORS as error:
            log.warning("build not requested, RabbitMQ unavailable", reason=str(error))
            await self.send(frame(failure(BUILDS_UNAVAILABLE, 503)))
            return "unavailable"
        if resumed is None:
            # Not only once the repository's host and the registry have answered.
            stream = self._stream_at(provider, spec, cursor)
            if not await self.send(stream.waiting()):
                return "stalled"
            cursor = stream.cursor

        def open_at(cursor: BinderHubCursor) -> BuildRendering:
            return self.context.viewers.render(self._stream_at(provider, spec, cursor))

        return await self.send_build(("binderhub", cursor.request_id), open_at, cursor)

    def _stream_at(self, provider: str, spec: str, cursor: BinderHubCursor) -> BinderHubStream:
        stream = BinderHubStream(provider, spec, replace(cursor))
        stream.page = f"{self.context.public_url}builds/{cursor.request_id}"
        return stream

    async def _open_stream(
        self, provider: str, spec: str, resumed: BinderHubCursor | None
    ) -> BinderHubCursor:
        """Check the request in BinderHub's order and submit it. Raises HttpError and BROKER_ERRORS."""
        self.check_network()
        user = await self.context.authenticator.user(self)
        check_browser(self, user)
        is_unlimited = self._has_build_token(provider, spec)
        if user.is_service:
            # For others the parameter means nothing, as in BinderHub.
            user = user.acting_for(self.get_query_argument("requester", ""))
        request = self._build_request(provider, spec, user)
        self.take_slot(user)

        async def rate_check() -> None:
            if not is_unlimited:
                await self.check_rate(user)

        return await self.context.viewers.open(request, resumed, rate_check)

    def _has_build_token(self, provider: str, spec: str) -> bool:
        """Return whether the URL has a build token. Raises Forbidden, with BinderHub's text, if it is invalid."""
        token = self.get_query_argument("build_token", "")
        if not token:
            return False
        try:
            self.context.build_tokens.check(token, provider, spec, origin_of(self.request.headers))
        except InvalidBuildToken as error:
            metrics.HUB_REJECTIONS.labels(limit="token").inc()
            log.info("build token rejected", reason=str(error))
            raise Forbidden("Invalid build token", 403) from error
        return True

    def _target(self) -> tuple[str, str]:
        """Return provider and spec with their escapes, which belong to the spec."""
        path = self.request.path.removeprefix(f"{self.settings['base_url']}build/")
        provider, _, spec = path.partition("/")
        return provider, spec.rstrip("/")

    def _build_request(self, provider: str, spec: str, user: User) -> BuildRequest:
        """Return the request. Raises HttpError if it is not valid."""
        if self.get_query_argument("build_only", "").lower() != "true":
            raise Forbidden(
                "This service builds images and does not launch servers. Add build_only=true to the address.",
                400,
            )
        check_provider(provider)
        check_password(spec)
        try:
            return BuildRequest(provider=provider, spec=spec, requester=user.name)
        except ValidationError as error:
            raise Forbidden(describe(error, BuildRequest.model_fields), 400) from error


class OpenHandler(Handler):
    """The base of routes that are open to all clients, banned networks included: probes and monitoring."""

    def check_network(self) -> None:
        """Allow every network."""


class VersionsHandler(OpenHandler):
    """The versions in use."""

    def set_default_headers(self) -> None:
        """Allow pages of every origin to read the versions, as BinderHub does, unless the operator names one."""
        super().set_default_headers()
        if not self.settings.get("allow_origin"):
            self.set_header("Access-Control-Allow-Origin", "*")

    def get(self) -> None:
        """Answer with BinderHub's fields and the version of rabbit2docker."""
        image, ours = self.context.settings.builder.image, OWN_VERSION
        self.write_json(
            {
                "builder_info": {"build_image": image},
                "binderhub": f"rabbit2docker {ours}",
                "builder": image,
                "rabbit2docker": ours,
            }
        )


class HealthHandler(OpenHandler):
    """The health checks."""

    async def get(self) -> None:
        """Answer 200, or 503 if a check has failed."""
        checks = await self.context.run_checks()
        ok = all(check.ok for check in checks)
        results: list[dict[str, Any]] = [
            {"service": check.service, "ok": check.ok, **({"detail": check.detail} if check.detail else {})}
            for check in checks
        ]
        self.write_json({"ok": ok, "checks": results}, 200 if ok else 503)

    async def head(self) -> None:
        """Answer without a body."""
        await self.get()


class MetricsHandler(OpenHandler):
    """Metrics for Prometheus."""

    def get(self) -> None:
        """Answer in Prometheus' text format."""
        self.set_header("Content-Type", metrics.CONTENT_TYPE)
        self.finish(metrics.render())


class ProvidersHandler(Handler):
    """The providers, for forms on web pages."""

    def get(self) -> None:
        """Answer with the list."""
        hosts = self.context.settings.providers.hosts
        self.write_json([provider.as_repoprovider(hosts) for provider in PROVIDERS.values()])


BUILD_ROUTE: Final[tuple[str, type[Handler]]] = (r"build/([^/]+)/(.+)", BuildHandler)
"""Needs authentication."""
OPEN_ROUTES: Final[tuple[tuple[str, type[Handler]], ...]] = (
    ("versions", VersionsHandler),
    ("health", HealthHandler),
    ("metrics", MetricsHandler),
    ("api/repoproviders", ProvidersHandler),
)
"""Need no authentication."""
