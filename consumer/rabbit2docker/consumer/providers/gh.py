"""Repositories on GitHub or a GitHub Enterprise server. Spec: `<owner>/<repository>/<ref>`."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from cachetools import LRUCache
from yarl import URL

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.refs import (
    HEAD,
    check_ref,
    full_names,
    is_full_commit,
    is_object_id,
    is_short_commit,
)
from rabbit2docker.consumer.providers.specs import GitHubSpec, pin_github, ref_hint
from rabbit2docker.errors import Dependency, DependencyKind, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

MAX_CACHED_RESPONSES: Final = 4096
MAX_TAG_DEPTH: Final = 5
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024

_OLD_DEFAULTS = {"main", "master"}
_DESCRIPTOR = PROVIDERS["gh"]
_JSON = "application/vnd.github+json"
_ID_ONLY = "application/vnd.github.sha"
_API_VERSION = "2022-11-28"


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, str]
    body: str

    def read(self) -> Any:
        """Return the JSON content. Raises ProviderUnavailable."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ProviderUnavailable("GitHub sent a response that is not JSON.") from error

    @property
    def message(self) -> str:
        """The message of an error response; empty if it has none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        return str(content.get("message") or "")[:200] if isinstance(content, dict) else ""


class GitHubProvider:
    """Resolves specs with GitHub's REST API. Cached responses are revalidated by ETag, which costs no rate limit."""

    prefix = _DESCRIPTOR.prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Take host, token and timeout from the settings. Without `session`, `resolve` is not possible."""
        self._breakers = breakers or Breakers()
        self._host = settings.github_hostname
        self._dependency = Dependency(DependencyKind.HOST, self._host)
        derived = (
            f"https://api.{self._host}" if self._host == _DESCRIPTOR.host else f"https://{self._host}/api/v3"
        )
        self._api = (settings.github_api_url or derived).rstrip("/")
        self._token = settings.github_token.get_secret_value() if settings.github_token else None
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout)
        self._session = session
        self._cache: LRUCache[tuple[str, str], _Response] = LRUCache(MAX_CACHED_RESPONSES)
        self._limited_until = 0.0

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec cannot be read."""
        check_ref(GitHubSpec.parse(spec).ref)

    async def resolve(self, spec: str) -> Repository:
        """Return the repository at the commit that a branch, tag, pull request or (short) commit id names now."""
        self.check(spec)
        with self._breakers.guard(self._dependency):
            return await self._resolve(spec, GitHubSpec.parse(spec))

    async def _resolve(self, spec: str, parsed: GitHubSpec) -> Repository:
        found = await self._find(parsed, parsed.ref)
        notice = None
        if found is None and parsed.ref in _OLD_DEFAULTS:
            # Links from before the default branch was renamed keep working, as in BinderHub.
            found = await self._find(parsed, HEAD)
            notice = f"{parsed.path} has no branch {parsed.ref!r}: its default branch is used instead."
        if found is None:
            raise RequestRejected(RejectReason.REF_NOT_FOUND, self._no_such_ref(parsed))
        return replace(self.pin(spec, found), notice=notice)

    def _no_such_ref(self, parsed: GitHubSpec) -> str:
        if parsed.ref == HEAD:
            return f"{parsed.path} on {self._host} has no default branch: it may be empty. Use a branch, tag or commit."
        hint = ref_hint(parsed.ref) or f"HEAD stands for the default branch: {parsed.path}/HEAD."
        return f"{parsed.path} on {self._host} has no branch, tag or commit {parsed.ref!r}. {hint}"

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository at `ref`."""
        return pin_github(spec, ref, self._host)

    async def _find(self, parsed: GitHubSpec, ref: str) -> str | None:
        if ref == HEAD:
            return await self._commit_of(parsed, HEAD)
        if is_full_commit(ref):
            # Not `/commits/`: that would also accept a branch of this name.
            answer = await self._get(parsed, f"git/commits/{ref.lower()}", (200, 404, 409, 422))
            if answer.status == 200:
                return ref.lower()
            await self._require_repository(parsed)
            return None
        for name in full_names(ref):
            if found := await self._ref(parsed, name):
                return found
        if is_short_commit(ref):
            found = await self._commit_of(parsed, ref)
            return found if found and found.startswith(ref.lower()) else None
        return None

    async def _ref(self, parsed: GitHubSpec, name: str) -> str | None:
        """Return the commit of the ref with exactly this full name."""
        # The API lists refs with this prefix, sorted, so the exact one is on the first page. An empty list means that
        # there is no such ref; 404 means that there is no such repository.
        short = name.removeprefix("refs/")
        answer = await self._get(parsed, f"git/matching-refs/{quote(short)}", (200, 404, 409))
        if answer.status != 200:
            await self._require_repository(parsed)
            return None
        listed = answer.read()
        items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        target = next((item.get("object") for item in items if item.get("ref") == name), None)
        return await self._peeled(parsed, target) if target else None

    async def _peeled(self, parsed: GitHubSpec, target: Any) -> str:
        """Return the commit that a (possibly annotated) tag points to."""
        for _ in range(MAX_TAG_DEPTH):
            kind, value = (
                (target.get("type"), target.get("sha")) if isinstance(target, dict) else (None, None)
            )
            if not is_object_id(value):
                break
            if kind == "commit":
                return str(value)
            if kind != "tag":
                raise RequestRejected(
                    RejectReason.REF_NOT_FOUND,
                    f"{parsed.ref!r} in {parsed.path} is a tag on a {kind}, not on a commit. Use another version.",
                )
            tag = (await self._get(parsed, f"git/tags/{value}", (200,))).read()
            target = tag.get("object") if isinstance(tag, dict) else None
        raise ProviderUnavailable(f"{self._host} returned no commit for {parsed.path}/{parsed.ref}.")

    async def _commit_of(self, parsed: GitHubSpec, ref: str) -> str | None:
        answer = await self._get(parsed, f"commits/{ref}", (200, 404, 409, 422), accept=_ID_ONLY)
        if answer.status != 200:
            await self._require_repository(parsed)
            return None
        found = answer.body.strip()
        if not is_object_id(found):
            raise ProviderUnavailable(f"{self._host} returned no commit for {parsed.path}/{ref}.")
        return found

    async def _require_repository(self, parsed: GitHubSpec) -> None:
        """Return if the repository exists, so that only the ref is missing; raise RequestRejected otherwise."""
        answer = await self._get(parsed, "", (200, 404))
        if answer.status == 404:
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND,
                f"{self._host} shows no repository {parsed.path}: it does not exist, or it is private. Check owner "
                "and name; for a private repository the operator must configure a token that can read it.",
            )

    async def _get(
        self, parsed: GitHubSpec, rest: str, expected: tuple[int, ...], *, accept: str = _JSON
    ) -> _Response:
        """Request `rest` below the repository's API URL; statuses other than the expected become errors."""
        url = f"{self._api}/repos/{parsed.path}/{rest}".rstrip("/")
        known = self._cache.get((url, accept))
        answer = await self._send(url, accept, known)
        if answer.status == 304 and known:
            return known
        if answer.status == 200 and answer.headers.get("ETag"):
            self._cache[url, accept] = answer
        if answer.status not in expected:
            raise self._translated(parsed, answer)
        return answer

    async def _send(self, url: str, accept: str, known: _Response | None) -> _Response:
        if (remaining := self._limited_until - time.time()) > 0:
            # GitHub bans clients that go on asking while they are limited.
            raise self._limited(remaining)
        if self._session is None:
            raise ProviderUnavailable("GitHub cannot be reached: this command has no HTTP session.")
        headers = {"Accept": accept, "X-GitHub-Api-Version": _API_VERSION}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if known:
            headers["If-None-Match"] = known.headers["ETag"]
        try:
            async with self._session.get(
                URL(url, encoded=True), headers=headers, timeout=self._timeout
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ProviderUnavailable(f"{self._host} sent a response that is too large.")
                return _Response(response.status, response.headers.copy(), body.decode(errors="replace"))
        except TimeoutError as error:
            raise self._away(
                f"{self._host} did not answer within {self._timeout.total:g} seconds: waiting for it."
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(f"{self._host} cannot be reached: {error}. Waiting for it.") from error

    def _away(self, message: str, retry_after: float | None = None) -> ProviderUnavailable:
        return ProviderUnavailable(message, retry_after=retry_after, outage_of=self._dependency)

    def _limited(self, wait: float) -> ProviderUnavailable:
        advice = "" if self._token else " The operator can raise the limit by setting providers.github_token."
        return self._away(f"{self._host} limits this service's requests.{advice}", wait)

    def _translated(self, parsed: GitHubSpec, answer: _Response) -> RequestRejected | ProviderUnavailable:
        status, detail = answer.status, answer.message
        if (wait := _rate_limited(answer)) is not None:
            self._limited_until = time.time() + wait
            return self._limited(wait)
        if status == 401:
            return self._away(
                f"{self._host} rejects the token in providers.github_token. The operator must renew it."
            )
        if status in (403, 451):
            return RequestRejected(
                RejectReason.REPOSITORY_PRIVATE,
                f"{self._host} denies access to {parsed.path}: {detail or f'status {status}'}. "
                "Make it public, or ask the operator to configure a token that can read it.",
            )
        if status == 404:
            return RequestRejected(
                RejectReason.REF_NOT_FOUND, f"{parsed.path} on {self._host} no longer has {parsed.ref!r}."
            )
        return self._away(
            f"{self._host} answered with status {status}{f' ({detail})' if detail else ''}: waiting for it.",
            _seconds(answer.headers.get("Retry-After")),
        )


def _rate_limited(answer: _Response) -> float | None:
    """Return the seconds to wait if the response is a primary or secondary rate limit; None otherwise."""
    if answer.status not in (403, 429):
        return None
    wait = _seconds(answer.headers.get("Retry-After"))
    if wait is not None:
        return wait
    reset = _seconds(answer.headers.get("X-RateLimit-Reset"))
    if answer.headers.get("X-RateLimit-Remaining") == "0" and reset is not None:
        return max(1.0, reset - time.time())
    # GitHub's documentation asks for a minute where the response has no time.
    return 60.0 if answer.status == 429 or "rate limit" in answer.message.lower() else None


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None
