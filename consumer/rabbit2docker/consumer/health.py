"""HTTP for operators: /health/live, /health/ready and /metrics."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from rabbit2docker import metrics
from rabbit2docker.errors import ConfigurationError

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
STUCK_SECONDS: Final = 30.0
"""An event loop that has not ticked for this long counts as dead. The broker is no part of liveness: its outage
must not restart the fleet."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition for readiness."""

    name: str
    ok: bool
    detail: str


class Health:
    """The HTTP server for health and metrics."""

    def __init__(
        self,
        bind: str,
        readiness: Callable[[], Sequence[Check]],
        degraded: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Listen on `bind`, as host:port with port 0 for a free one; `readiness` returns the current checks.

        `degraded` returns what does not work although the service is ready, as sentences.
        Raises ConfigurationError when `bind` has another form.
        """
        host, separator, port = bind.rpartition(":")
        if not separator or not port.isdigit():
            raise ConfigurationError(f"http.bind must be host:port, such as 127.0.0.1:8090, not {bind!r}.")
        self._host, self._port = host.strip("[]"), int(port)
        self._readiness = readiness
        self._degraded = degraded
        self._ticked = time.monotonic()
        self.address = ""
        self.started = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled. Raises ConfigurationError when the address is not available."""
        app = web.Application()
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            try:
                await site.start()
            except OSError as error:
                raise ConfigurationError(
                    f"Cannot listen on {self._host}:{self._port} ({error.strerror or error}). "
                    "Set RABBIT2DOCKER_HTTP__BIND to another address; port 0 takes a free one."
                ) from error
            host, port = runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            self.started.set()
            log.info("health server started", address=self.address)
            await self._tick()
        finally:
            await runner.cleanup()

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)

    async def _live(self, request: web.Request) -> web.Response:
        # The response itself proves that the loop runs; the age shows how smoothly.
        age = time.monotonic() - self._ticked
        return web.json_response(
            {"ok": age < STUCK_SECONDS, "tick_age_seconds": round(age, 3)},
            status=200 if age < STUCK_SECONDS else 503,
        )

    async def _ready(self, request: web.Request) -> web.Response:
        checks = self._readiness()
        ok = all(check.ok for check in checks)
        return web.json_response(
            {
                "ok": ok,
                "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks],
                "degraded": list(self._degraded()),
            },
            status=200 if ok else 503,
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})
