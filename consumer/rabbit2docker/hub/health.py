"""Health checks: what the service depends on, and whether it can be reached."""

import asyncio
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog

from rabbit2docker.errors import StoreFull, StoreUnavailable
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.store import Store
from rabbit2docker.registry_urls import api_url, split_registry
from rabbit2docker.settings import ImageSettings

log = structlog.get_logger()

CHECK_TIMEOUT_SECONDS: Final = 5.0
JUPYTERHUB_CACHE_SECONDS: Final = 15.0
DATABASE_CACHE_SECONDS: Final = 2.0
REGISTRY_CACHE_SECONDS: Final = 15.0
REGISTRY_TRIES: Final = 3
REGISTRY_SERVICE: Final = "Docker registry"
"""BinderHub's name of the check."""
DISK_FULL: Final = (
    "its disk is full; free some space, then delete old builds with `rabbit2docker store prune`"
)
LAG_SECONDS: Final = 10.0
"""A store that lags less than this counts as up to date."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The result of one check."""

    service: str
    ok: bool
    detail: str = ""


class CachedCheck:
    """A check that runs at most once in a few seconds, since `/health` is open to everyone."""

    def __init__(self, cache_seconds: float) -> None:
        """Keep each result for `cache_seconds`."""
        self._cache_seconds = cache_seconds
        self._lock = asyncio.Lock()
        self._cached: tuple[float, HealthCheck] | None = None

    async def check(self) -> HealthCheck:
        """Return the cached result, or a new one once it has expired."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._cached is None or now - self._cached[0] > self._cache_seconds:
                self._cached = (now, await self._run())
            return self._cached[1]

    async def _run(self) -> HealthCheck:
        raise NotImplementedError


class JupyterHubCheck(CachedCheck):
    """Checks that JupyterHub's API answers; without it no user can be identified."""

    def __init__(self, url: str) -> None:
        """Take the URL of the API."""
        super().__init__(JUPYTERHUB_CACHE_SECONDS)
        self._url = url

    async def _run(self) -> HealthCheck:
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self._url) as response:
                ok, detail = response.status < 500, f"answers {response.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            ok, detail = False, f"does not answer ({type(error).__name__})"
        return HealthCheck("JupyterHub API", ok, "" if ok else detail)


class RegistryCheck(CachedCheck):
    """Checks that the registry answers, as BinderHub does: images can neither be pushed nor started without it."""

    def __init__(self, images: ImageSettings) -> None:
        """Take the settings that name the registry."""
        super().__init__(REGISTRY_CACHE_SECONDS)
        self._url = f"{registry_url(images)}/v2/"

    async def _run(self) -> HealthCheck:
        problem = ""
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_SECONDS / REGISTRY_TRIES)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for _ in range(REGISTRY_TRIES):
                try:
                    async with session.get(self._url, allow_redirects=False) as response:
                        # 401 and 403 are answers, too: most registries want a login.
                        if response.status < 500:
                            return HealthCheck(REGISTRY_SERVICE, True)
                        problem = f"answers {response.status}"
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    problem = f"does not answer ({type(error).__name__})"
        return HealthCheck(REGISTRY_SERVICE, False, f"{problem}; builds cannot push their images")


def registry_url(images: ImageSettings) -> str:
    """Return the base URL of the registry's API."""
    return api_url(split_registry(images.prefix)[0], images.registry_url, images.insecure_registries)


class DatabaseCheck(CachedCheck):
    """Checks that the database answers."""

    def __init__(self, store: Store) -> None:
        """Take the store."""
        super().__init__(DATABASE_CACHE_SECONDS)
        self._store = store

    async def _run(self) -> HealthCheck:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._store.check()
        except TimeoutError:
            return HealthCheck("database", False, "does not answer")
        except StoreFull as error:
            log.warning("database disk full", reason=str(error))
            return HealthCheck("database", False, DISK_FULL)
        except StoreUnavailable as error:
            # The error's own text may name the database server, and anyone can read /health.
            log.warning("database unavailable", reason=str(error))
            return HealthCheck("database", False, "is unavailable")
        return HealthCheck("database", True)


def check_ingester(ingester: Ingester) -> HealthCheck:
    """Return whether events reach the store, from this instance or another, and how far it lags."""
    service = "record of builds"
    if ingester.problem:
        # The problem's own text may name the database server, and anyone can read /health.
        return HealthCheck(service, False, "waits for RabbitMQ or for the database")
    lag = ingester.behind_seconds
    # A lag is no failure: after the very first start there may be much to catch up with.
    return HealthCheck(service, True, f"{lag:.0f} seconds behind" if lag > LAG_SECONDS else "")
