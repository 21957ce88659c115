"""Client of the Kubernetes API server: kubernetes_asyncio for authentication and TLS, plain JSON for requests.

The generated methods of kubernetes_asyncio are not used: their models are thirty times slower to decode than ours, they
have no default timeouts, and they share one connection pool with log streams, which deadlocks once the pool is full.
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar
from urllib.request import getproxies_environment

import aiohttp
import structlog
import yaml
from kubernetes_asyncio import config
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.kubernetes.models import ListMetadata
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority, RateLimiter
from rabbit2docker.errors import EXECUTOR, ConfigurationError, ExecutorUnavailable, Rabbit2DockerError
from rabbit2docker.settings import KubernetesSettings

log = structlog.get_logger()

CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 30.0
PAGE_OBJECTS: Final = 500
"""Usual size of a page of a list."""
RELOAD_INTERVAL_SECONDS: Final = 5.0
"""Minimum time between two reloads of credentials that the API server rejected."""
STREAMS_PER_SECOND: Final = 150.0
STREAMS_BURST: Final = 100
LOG_BUFFER_BYTES: Final = 1 << 16
"""Read buffer of each stream; the 2 MiB of kubernetes_asyncio would be held for every log that is read slowly."""
CALL_BUFFER_BYTES: Final = 1 << 21
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON: Final = "application/json"
_CLIENT_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError)


class Page(Protocol):
    """One page of a list."""

    @property
    def metadata(self) -> ListMetadata:
        """Version, and the token for the next page."""


PageT = TypeVar("PageT", bound=Page)


class ApiStatusError(Rabbit2DockerError):
    """A rejection by the API server that retrying does not change. Never leaves this package."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Store the HTTP status, and the reason and message of the Status object."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class ApiTemporarilyUnavailable(ExecutorUnavailable):
    """A temporary rejection by the API server or the node behind it, with the HTTP status. Never leaves this package."""

    def __init__(self, message: str, *, status: int = 500, retry_after: float | None = None) -> None:
        """Store the HTTP status in addition to the fields of a TransientError."""
        super().__init__(message, retry_after=retry_after, outage_of=EXECUTOR)
        self.status = status


class ApiClient:
    """Rate-limited calls and streams. Methods raise ExecutorUnavailable if a retry may help, else ApiStatusError."""

    def __init__(self, settings: KubernetesSettings) -> None:
        """Prepare a client; `open` connects it."""
        self._settings = settings
        self._call_limiter = RateLimiter(settings.requests_per_second, settings.burst)
        self._stream_limiter = RateLimiter(STREAMS_PER_SECOND, STREAMS_BURST)
        self._configuration = Configuration()
        self._loaded_at = 0.0
        self._calls: RESTClientObject | None = None
        self._streams: RESTClientObject | None = None
        self._reload_lock = asyncio.Lock()

    async def open(self) -> None:
        """Load address and credentials of the cluster. Raises ConfigurationError if there are none."""
        await self._load_configuration()
        self._calls = _rest_client(self._configuration)
        # Unlimited: streams must wait neither for each other nor for calls, nor make calls wait.
        self._streams = _rest_client(self._configuration, maxsize=0)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._streams, self._calls):
            if client is not None and client.pool_manager.connector is not None:
                # A graceful TLS shutdown waits for the peer and would outlive the event loop.
                await client.pool_manager.connector.close(abort_ssl=True)
                await client.close()
        # Transports close their sockets in the next iterations of the loop.
        for _ in range(3):
            await asyncio.sleep(0)

    @property
    def host(self) -> str:
        """Return the URL of the API server."""
        return str(self._configuration.host)

    async def call(
        self,
        method: str,
        path: str,
        *,
        priority: CallPriority,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        timeout_seconds: float = CALL_SECONDS,
    ) -> bytes:
        """Send one request and return the response body. Repeats it once with reloaded credentials after a 401."""
        await self._call_limiter.acquire(priority)
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        data = json.dumps(body) if body is not None else None
        response, answer = await self._send(method, path, query, data, content_type, timeout)
        if response.status == 401 and await self._reload_credentials():
            response, answer = await self._send(method, path, query, data, content_type, timeout)
        _raise_for_status(response, answer)
        return answer

    async def pages(
        self,
        path: str,
        parse: Callable[[bytes], PageT],
        *,
        priority: CallPriority,
        size: int,
        query: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncGenerator[PageT, None]:
        """Yield a list page by page, of at most `size` objects each. Raises what `call` and `parse` raise."""
        place = {**query, "limit": str(size)}
        while True:
            data = await self.call("GET", path, priority=priority, query=place)
            # Parsing a page takes tens of milliseconds, too long for the event loop.
            page = await asyncio.to_thread(parse, data)
            yield page
            if not page.metadata.continue_:
                return
            # The token stands for the version of the list as well.
            place = {name: value for name, value in place.items() if name != "resourceVersion"}
            place["continue"] = page.metadata.continue_

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        data: str | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        assert self._calls is not None
        headers = {"Accept": JSON, "Content-Type": content_type, **await self._authorization()}
        request = self._calls.pool_manager.request(
            method,
            self.host + path,
            params=query,
            data=data,
            headers=headers,
            timeout=timeout,
            **self._options(),
        )
        try:
            async with request as response:
                answer = await response.read()
        except _CLIENT_ERRORS as error:
            metrics.KUBERNETES_CALLS.labels(verb=method, result="error").inc()
            raise self._no_answer(error) from error
        metrics.KUBERNETES_CALLS.labels(verb=method, result=str(response.status)).inc()
        return response, answer

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, read_seconds: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a watch or a log. Reading raises TimeoutError after `read_seconds` without data.

        Streams have a rate limit of their own: the API server does not count them among the calls, but each costs both
        sides a TLS handshake. The response to a log request may begin only with its first line.
        """
        assert self._streams is not None
        await self._stream_limiter.acquire(CallPriority.READ)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read_seconds)
        headers = {"Accept": "*/*", **await self._authorization()}
        try:
            response = await self._streams.pool_manager.get(
                self.host + path,
                params=query,
                headers=headers,
                timeout=timeout,
                read_bufsize=LOG_BUFFER_BYTES,
                **self._options(),
            )
        except _CLIENT_ERRORS as error:
            metrics.KUBERNETES_CALLS.labels(verb="GET", result="error").inc()
            raise self._no_answer(error) from error
        try:
            metrics.KUBERNETES_CALLS.labels(verb="GET", result=str(response.status)).inc()
            if response.status != 200:
                if response.status == 401:
                    await self._reload_credentials()
                _raise_for_status(response, await _read_error(response))
            yield response
        finally:
            # Abort instead of releasing to the pool: otherwise the kubelet goes on sending an abandoned log.
            if response.connection is not None and response.connection.transport is not None:
                response.connection.transport.abort()
            response.close()

    def _options(self) -> dict[str, Any]:
        assert self._calls is not None
        options: dict[str, Any] = {}
        if self._calls.proxy:
            options["proxy"] = self._calls.proxy
        if self._calls.server_hostname:
            options["server_hostname"] = self._calls.server_hostname
        return options

    async def _authorization(self) -> dict[str, str]:
        try:
            found = await self._configuration.auth_settings()
        except (OSError, config.ConfigException) as error:
            raise ExecutorUnavailable(
                f"Cannot read the credentials for the Kubernetes API server: {error}", outage_of=EXECUTOR
            ) from error
        return {auth["key"]: auth["value"] for auth in found.values() if auth["in"] == "header"}

    async def _load_configuration(self) -> None:
        """Load address and credentials from the settings' kubeconfig, the pod's service account or KUBECONFIG."""
        self._loaded_at = time.monotonic()
        try:
            # Reads files and may run credential plugins, all blocking: hence a loop of its own in a thread.
            await asyncio.to_thread(asyncio.run, self._read_configuration())
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"No Kubernetes cluster found: {error}. Set RABBIT2DOCKER_KUBERNETES__KUBECONFIG or KUBECONFIG to a "
                "kubeconfig file, or run in a pod with a service account."
            ) from error

    async def _read_configuration(self) -> None:
        settings = self._settings
        if settings.kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=self._configuration)  # type: ignore[no-untyped-call]
            return
        path = settings.kubeconfig or Path(os.environ.get("KUBECONFIG") or "~/.kube/config")
        await config.load_kube_config(
            config_file=str(path.expanduser()),
            context=settings.context,
            client_configuration=self._configuration,
            persist_config=False,
        )

    async def _reload_credentials(self) -> bool:
        """Load credentials again after a 401, as tokens of plugins expire; False if that failed or was just done."""
        async with self._reload_lock:
            if time.monotonic() - self._loaded_at < RELOAD_INTERVAL_SECONDS:
                return False
            try:
                await self._load_configuration()
            except ConfigurationError as error:
                log.warning("credentials reload failed", error=str(error))
                return False
            return True

    def _no_answer(self, error: BaseException) -> ExecutorUnavailable:
        detail = str(error) or type(error).__name__
        return ExecutorUnavailable(
            f"The Kubernetes API server at {self.host} does not answer: {detail}", outage_of=EXECUTOR
        )


def _rest_client(configuration: Configuration, **options: int) -> RESTClientObject:
    """Return the library's client, without its look-up of proxies and passwords for each call where there are none.

    That look-up reads the environment and a .netrc file, a tenth of the service's CPU time while builds are short.
    """
    client = RESTClientObject(configuration, **options)
    if not getproxies_environment():
        connector = client.pool_manager.connector
        client.pool_manager.detach()
        client.pool_manager = aiohttp.ClientSession(connector=connector, read_bufsize=CALL_BUFFER_BYTES)
    return client


def as_unavailable(error: ApiStatusError) -> ExecutorUnavailable:
    """Return the rejection as a temporary error: an operator can remove its cause, so the request is requeued."""
    if error.status == 403 and "exceeded quota" in error.message:
        return ExecutorUnavailable(
            f"Waiting for free quota in the cluster: {error.message}", outage_of=EXECUTOR
        )
    return ExecutorUnavailable(
        f"The Kubernetes API server rejected the call: {error.message}",
        # A rejected object is one request's matter, missing permissions or a missing namespace are everyone's.
        outage_of=EXECUTOR if error.status in (401, 403, 404) else None,
    )


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await response.content.read(1 << 16)
    except _CLIENT_ERRORS:
        return b""


def _raise_for_status(response: aiohttp.ClientResponse, answer: bytes) -> None:
    """Raise ApiTemporarilyUnavailable or ApiStatusError, with the server's message, unless the call succeeded."""
    status = response.status
    if status < 300:
        return
    reason, message = "", ""
    try:
        data = json.loads(answer)
        reason, message = str(data.get("reason") or ""), str(data.get("message") or "")
    except (ValueError, AttributeError):
        pass
    message = message or f"{status} {response.reason}: {answer[:300].decode('utf-8', 'replace')}".strip(": ")
    if status in (401, 408, 429) or status >= 500:
        raise ApiTemporarilyUnavailable(
            f"The Kubernetes API server cannot handle the call now: {message}",
            status=status,
            retry_after=_retry_after(response),
        )
    raise ApiStatusError(status, reason, message)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
