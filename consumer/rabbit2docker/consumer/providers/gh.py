"""Repositories on GitHub or a GitHub Enterprise server. Spec: `<owner>/<repository>/<ref>`."""

from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from cachetools import LRUCache

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.by_login import ByLogin
from rabbit2docker.consumer.credentials import ANYBODY, Login, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.host_api import HostApi
from rabbit2docker.consumer.providers.http import HttpClient, Response
from rabbit2docker.consumer.providers.refs import (
    HEAD,
    check_ref,
    found_or_default,
    full_names,
    is_full_commit,
    is_object_id,
    is_short_commit,
)
from rabbit2docker.consumer.providers.specs import GitHubSpec, pin_github, ref_hint
from rabbit2docker.errors import AppRefused, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

MAX_TAG_DEPTH: Final = 5
MAX_MOVED: Final = 1024

_JSON = "application/vnd.github+json"
_ID_ONLY = "application/vnd.github.sha"
_API_VERSION = "2022-11-28"
_ABSENT = (RejectReason.REPOSITORY_NOT_FOUND, RejectReason.REPOSITORY_PRIVATE)


def github_api(
    settings: ProviderSettings,
    session: aiohttp.ClientSession | None,
    provider: str,
    login: Login | None = None,
) -> HostApi:
    """Return the API of the configured GitHub, for one of the providers that use it, and perhaps for one tenant."""
    host = settings.github_hostname
    headers = {"X-GitHub-Api-Version": _API_VERSION}
    if token := login.password if login else settings.github_token_at(host):
        headers["Authorization"] = f"Bearer {token}"
    return HostApi(
        HttpClient(settings, session),
        provider=provider,
        host=host,
        base_url=settings.github_api,
        headers=headers,
        token_setting="providers.github_token",
        is_tenants=login is not None,
    )


class GitHubProvider:
    """Resolves specs with GitHub's REST API."""

    prefix = PROVIDERS["gh"].prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
        login: Login | None = None,
    ) -> None:
        """Take host, token and timeout from the settings. Without `session`, `resolve` is not possible.

        `login`: the token of the only tenant that it is for.
        """
        self._breakers = breakers or Breakers()
        self._host = settings.github_hostname
        self._login = login
        self._of_tenants = ByLogin(lambda own: GitHubProvider(settings, session, self._breakers, own))
        self._api = github_api(settings, session, self.prefix, login)
        self._moved: LRUCache[str, bool] = LRUCache(MAX_MOVED)

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec cannot be read."""
        check_ref(GitHubSpec.parse(spec).ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the repository at the commit that a branch, tag, pull request or (short) commit id names now."""
        self.check(spec)
        parsed = GitHubSpec.parse(spec)
        try:
            return await self._resolve_for(spec, parsed, access)
        except AppRefused as refused:
            try:
                return await self._resolve_for(spec, parsed, ANYBODY)
            except RequestRejected as error:
                raise (refused if error.reason in _ABSENT else error) from error

    async def _resolve_for(self, spec: str, parsed: GitHubSpec, access: TenantAccess) -> Repository:
        """Resolve with the login of a tenant, if it has one. Raises AppRefused."""
        url = f"https://{self._host}/{parsed.path}"
        if login := await access.login(url):
            try:
                return await self._of_tenants.get(login).resolve(spec)
            except RequestRejected as error:
                if error.reason not in (*_ABSENT, RejectReason.CREDENTIALS_REFUSED):
                    raise
                if not await access.withdraw(url) or (renewed := await access.login(url)) is None:
                    raise
                return await self._of_tenants.get(renewed).resolve(spec)
        with self._breakers.guard(self._api.dependency):
            return await self._resolve(spec, parsed)

    async def _resolve(self, spec: str, parsed: GitHubSpec) -> Repository:
        found, notice = await found_or_default(partial(self._find, parsed), parsed.ref, parsed.path)
        if found is None:
            raise RequestRejected(RejectReason.REF_NOT_FOUND, self._no_such_ref(parsed))
        repository = replace(self.pin(spec, found), notice=notice, is_private=await self._is_private(parsed))
        return await self._followed(repository, parsed) if self._moved.get(parsed.path) else repository

    async def _is_private(self, parsed: GitHubSpec) -> bool:
        """Return whether a tenant's token is needed to read the repository."""
        if self._login is None:
            return False
        return (await self._get(parsed, "", (200,))).json_object().get("private") is not False

    async def _followed(self, repository: Repository, parsed: GitHubSpec) -> Repository:
        """Return a repository with its address after it was renamed or transferred; its names stay those of the spec."""
        about = (await self._get(parsed, "", (200,))).json_object()
        path = about.get("full_name")
        if not isinstance(path, str) or path.lower() == parsed.path.lower():
            return repository
        moved = GitHubSpec.parse(f"{path}/{repository.resolved_ref}")
        return repository.moved(f"https://{self._host}/{moved.path}", old=parsed.path, new=moved.path)

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
        listed = answer.json()
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
            tag = (await self._get(parsed, f"git/tags/{value}", (200,))).json()
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
    ) -> Response:
        """Request `rest` below the repository's API URL; statuses other than the expected become errors."""
        path = f"repos/{parsed.path}/{rest}".rstrip("/")
        answer = await self._api.get(
            path, subject=f"repository {parsed.path}", expected=expected, accept=accept
        )
        self._moved[parsed.path] = answer.is_moved
        return answer
