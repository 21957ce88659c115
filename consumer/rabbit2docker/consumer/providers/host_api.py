"""The JSON API of one host: cached responses, its limit on requests, and its errors in words."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker.consumer.providers.http import HttpClient, Response
from rabbit2docker.errors import (
    CredentialsRefused,
    Dependency,
    DependencyKind,
    ProviderUnavailable,
    RequestRejected,
)
from rabbit2docker.rate_headers import requests_left, retry_after, seconds_to_wait, seconds_until_reset
from rabbit2docker_schemas.reasons import RejectReason

MAX_CACHED_RESPONSES: Final = 4096
JSON: Final = "application/json"


class HostApi:
    """Gets JSON from one host. Cached responses are revalidated by ETag, which costs no rate limit."""

    def __init__(
        self,
        client: HttpClient,
        *,
        provider: str,
        host: str,
        base_url: str,
        headers: Mapping[str, str] | None = None,
        token_setting: str | None = None,
        is_trusted: bool = True,
        is_tenants: bool = False,
    ) -> None:
        """Take what messages call the host, and the base of its URLs.

        `headers` may hold a token, which `token_setting` names for the operator. `is_trusted`: the operator chose the
        host. `is_tenants`: the token is one tenant's.
        """
        self._is_tenants = is_tenants
        self._client = client
        self._provider = provider
        self.host = host
        self.base_url = base_url.rstrip("/")
        self.dependency = Dependency(DependencyKind.HOST, host)
        self._headers = dict(headers or {})
        self._token_setting = token_setting
        self._has_token = any(name.lower() in ("authorization", "private-token") for name in self._headers)
        self._is_trusted = is_trusted
        self._cache: LRUCache[tuple[str, str], Response] = LRUCache(MAX_CACHED_RESPONSES)
        self._limited_until = 0.0

    async def get(
        self,
        path: str,
        *,
        subject: str,
        expected: tuple[int, ...] = (200,),
        accept: str = JSON,
        has_body: bool = True,
    ) -> Response:
        """Request `path` below the base URL; statuses other than the expected become errors about `subject`."""
        if (remaining := self._limited_until - time.time()) > 0:
            # GitHub bans clients that go on asking while they are limited.
            raise self._limited(remaining)
        url = f"{self.base_url}/{path}"
        known = self._cache.get((url, accept))
        headers = {**self._headers, "Accept": accept}
        if known:
            headers["If-None-Match"] = known.headers["ETag"]
        answer = await self._client.get(
            url, title=self.host, headers=headers, is_trusted=self._is_trusted, has_body=has_body
        )
        self._note_quota(answer)
        if answer.status == 304 and known:
            return known
        if answer.status == 200 and answer.headers.get("ETag"):
            self._cache[url, accept] = answer
        if answer.status not in expected:
            raise self._translated(subject, answer)
        return answer

    def _note_quota(self, answer: Response) -> None:
        """Remember how many requests are left, and wait where none is."""
        remaining = requests_left(answer.headers)
        if remaining is None:
            return
        metrics.HOST_REQUESTS_LEFT.labels(
            provider=self._provider,
            host=self.host if self._is_trusted else "other",
            credential="tenant" if self._is_tenants else "token" if self._has_token else "none",
        ).set(remaining)
        if (
            remaining == 0
            and answer.status < 400
            and (wait := seconds_until_reset(answer.headers)) is not None
        ):
            self._limited_until = time.time() + wait

    def away(self, message: str, retry_after: float | None = None) -> ProviderUnavailable:
        """Return the error that makes requests wait for the host."""
        return ProviderUnavailable(message, retry_after=retry_after, outage_of=self.dependency)

    def _limited(self, wait: float) -> ProviderUnavailable:
        end = datetime.fromtimestamp(time.time() + wait, UTC)
        advice = (
            f" The operator can raise the limit by setting {self._token_setting}."
            if self._token_setting and not self._has_token
            else ""
        )
        return self.away(f"{self.host} limits this service's requests until {end:%H:%M} UTC.{advice}", wait)

    def _translated(self, subject: str, answer: Response) -> RequestRejected | ProviderUnavailable:
        status, detail = answer.status, answer.message
        if (wait := rate_limited(answer)) is not None:
            self._limited_until = time.time() + wait
            return self._limited(wait)
        if status == 401 and self._is_tenants:
            return CredentialsRefused(
                f"{self.host} refuses the token that the operator has configured for it: it has expired or was withdrawn. "
                "The operator must renew it."
            )
        if status == 401 and self._has_token:
            return self.away(
                f"{self.host} rejects the token in {self._token_setting}. The operator must renew it."
            )
        if status in (401, 403, 451):
            advice = (
                ", or ask the operator to configure a token that can read it" if self._token_setting else ""
            )
            return RequestRejected(
                RejectReason.REPOSITORY_PRIVATE,
                f"{self.host} denies access to {subject}: {detail or f'status {status}'}. Make it public{advice}.",
            )
        if status in (404, 410):
            return RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND,
                f"{self.host} has no {subject}: it does not exist, was deleted, or is private. Check it.",
            )
        return self.away(
            f"{self.host} answered with status {status}{f' ({detail})' if detail else ''}: waiting for it.",
            retry_after(answer.headers),
        )


def rate_limited(answer: Response) -> float | None:
    """Return the seconds to wait if the response is a primary or secondary rate limit; None otherwise."""
    if answer.status not in (403, 429):
        return None
    if (wait := seconds_to_wait(answer.headers)) is not None:
        return wait
    # GitHub's documentation asks for a minute where the response has no time.
    return 60.0 if answer.status == 429 or "rate limit" in answer.message.lower() else None
