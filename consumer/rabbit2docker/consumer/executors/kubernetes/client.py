"""The connection to the API server: authentication and TLS by kubernetes_asyncio, requests as plain JSON.

The library's generated methods are not used: they decode into models that cost thirty times as much as ours, have no
timeouts by default, and share one pool of connections with log streams, which locks up when that is full.
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
import yaml
from kubernetes_asyncio import config
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority, RateLimiter
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable, Rabbit2DockerError
from rabbit2docker.settings import KubernetesSettings

log = structlog.get_logger()

CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 30.0
LOGIN_AGAIN_SECONDS: Final = 5.0
"""Credentials that were refused are fetched anew at most this often."""
STREAMS_PER_SECOND: Final = 150.0
STREAMS_AT_ONCE: Final = 100
LOG_BUFFER_BYTES: Final = 1 << 16
"""The library's 2 MiB would be held for every log that is not read at once."""
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON: Final = "application/json"
_CLIENT_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError)


class ApiStatusError(Rabbit2DockerError):
    """The API server said no; stays inside this package."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Take the HTTP status and the Status object's reason and message."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class ApiTemporarilyUnavailable(ExecutorUnavailable):
    """The API server answered that it, or the node behind it, cannot do this now; stays inside this package."""

    def __init__(self, message: str, *, status: int = 500, retry_after: float | None = None) -> None:
        """Take the HTTP status beside what every TransientError has."""
        super().__init__(message, retry_after=retry_after)
        self.status = status


class ApiClient:
    """Calls and streams. All methods raise ExecutorUnavailable for what may pass, Refused for the rest."""

    def __init__(self, settings: KubernetesSettings) -> None:
        """Take where the cluster is; nothing is opened yet."""
        self._settings = settings
        self._pace = RateLimiter(settings.requests_per_second, settings.burst)
        self._stream_pace = RateLimiter(STREAMS_PER_SECOND, STREAMS_AT_ONCE)
        self._configuration = Configuration()
        self._logged_in = 0.0
        self._calls: RESTClientObject | None = None
        self._streams: RESTClientObject | None = None
        self._logging_in = asyncio.Lock()

    async def open(self) -> None:
        """Find the cluster. Raises ConfigurationError when nothing says where it is."""
        await self._log_in()
        self._calls = RESTClientObject(self._configuration)
        # One connection a stream, without limit: they may never wait for each other, nor keep calls waiting.
        self._streams = RESTClientObject(self._configuration, maxsize=0)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._streams, self._calls):
            if client is not None and client.pool_manager.connector is not None:
                # A farewell in TLS takes until the other side answers, and would outlive the event loop.
                await client.pool_manager.connector.close(abort_ssl=True)
                await client.close()
        # Transports let go of their sockets in the loop's next turns.
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
        urgency: CallPriority,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        seconds: float = CALL_SECONDS,
    ) -> bytes:
        """Make one call and return the body of its answer."""
        await self._pace.turn(urgency)
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        data = json.dumps(body) if body is not None else None
        response, answer = await self._once(method, path, query, data, content_type, timeout)
        if response.status == 401 and await self._log_in_again():
            response, answer = await self._once(method, path, query, data, content_type, timeout)
        _check(response, answer)
        return answer

    async def _once(
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
            raise self._away(error) from error
        metrics.KUBERNETES_CALLS.labels(verb=method, result=str(response.status)).inc()
        return response, answer

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, read_seconds: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a watch or a log; `read_seconds` of silence end it with TimeoutError.

        Streams have no part in the pace of calls, as the API server does not count them either; but each costs both
        sides a handshake, so they have a pace of their own. The answer to a log may begin with its first line only.
        """
        assert self._streams is not None
        await self._stream_pace.turn(CallPriority.READ)
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
            raise self._away(error) from error
        try:
            metrics.KUBERNETES_CALLS.labels(verb="GET", result=str(response.status)).inc()
            if response.status != 200:
                if response.status == 401:
                    await self._log_in_again()
                _check(response, await _read_error(response))
            yield response
        finally:
            # Never released into the pool: a follow stream that is left has to be cut, or the kubelet goes on.
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
                f"The credentials for the API server cannot be read: {error}"
            ) from error
        return {auth["key"]: auth["value"] for auth in found.values() if auth["in"] == "header"}

    async def _log_in(self) -> None:
        """Read address and credentials from where the settings, the pod or the environment say they are."""
        self._logged_in = time.monotonic()
        try:
            # Reads files and may run programs, all of it blocking: in a loop of its own, beside ours.
            await asyncio.to_thread(asyncio.run, self._read_configuration())
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"No Kubernetes cluster can be found: {error}. Set RABBIT2DOCKER_KUBERNETES__KUBECONFIG or KUBECONFIG "
                "to a kubeconfig file, or run in a pod with a service account."
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

    async def _log_in_again(self) -> bool:
        """Fetch credentials anew after a 401: tokens of plugins expire. False when that was done a moment ago."""
        async with self._logging_in:
            if time.monotonic() - self._logged_in < LOGIN_AGAIN_SECONDS:
                return False
            try:
                await self._log_in()
            except ConfigurationError as error:
                log.warning("no new credentials for the API server", error=str(error))
                return False
            return True

    def _away(self, error: BaseException) -> ExecutorUnavailable:
        what = str(error) or type(error).__name__
        return ExecutorUnavailable(f"The Kubernetes API server at {self.host} does not answer: {what}")


def as_unavailable(error: ApiStatusError) -> ExecutorUnavailable:
    """Return the error for what the API server does not accept: the operator can mend it, so the request may wait."""
    if error.status == 403 and "exceeded quota" in error.message:
        return ExecutorUnavailable(f"Waiting for room in the cluster's quota: {error.message}")
    return ExecutorUnavailable(f"The Kubernetes API server refuses: {error.message}")


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await response.content.read(1 << 16)
    except _CLIENT_ERRORS:
        return b""


def _check(response: aiohttp.ClientResponse, answer: bytes) -> None:
    """Raise what the status means, in the server's own words."""
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
            f"The Kubernetes API server refuses for now: {message}",
            status=status,
            retry_after=_retry_after(response),
        )
    raise ApiStatusError(status, reason, message)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
