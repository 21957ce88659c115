"""Repositories on GitLab.com or another GitLab server. Spec: `<url-escaped namespace>/<url-escaped ref>`."""

import re
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
from rabbit2docker.consumer.providers.git import GitProvider
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
from rabbit2docker.consumer.providers.specs import GitLabSpec, pin_gitlab, ref_hint
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

MAX_MOVED: Final = 1024

_KINDS: Final = {"refs/heads/": "branches", "refs/tags/": "tags"}
_MERGE_REQUEST: Final = re.compile(r"refs/merge-requests/(\d{1,9})/head")


class GitLabProvider:
    """Resolves specs with GitLab's REST API, version 4."""

    prefix = PROVIDERS["gl"].prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
        login: Login | None = None,
    ) -> None:
        """Take host and token from the settings. Without `session`, `resolve` is not possible.

        `login`: the token of the only tenant that it is for.
        """
        self._breakers = breakers or Breakers()
        self._host = settings.gitlab_hostname
        self._login = login
        self._git = GitProvider(settings, session, self._breakers)
        self._of_tenants = ByLogin(lambda own: GitLabProvider(settings, session, self._breakers, own))
        own = settings.gitlab_token.get_secret_value() if settings.gitlab_token else None
        token = login.password if login else own
        self._api = HostApi(
            HttpClient(settings, session),
            provider=self.prefix,
            host=self._host,
            base_url=settings.gitlab_api,
            headers={"PRIVATE-TOKEN": token} if token else {},
            token_setting="providers.gitlab_token",
            is_tenants=login is not None,
        )
        self._moved: LRUCache[str, bool] = LRUCache(MAX_MOVED)

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec cannot be read."""
        check_ref(GitLabSpec.parse(spec).ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the project at the commit that a branch, tag, merge request or (short) commit id names now."""
        self.check(spec)
        login = await access.login(f"https://{self._host}")
        if login and not login.is_token:
            return await self._resolve_by_git(spec, access)
        if login:
            return await self._of_tenants.get(login).resolve(spec)
        with self._breakers.guard(self._api.dependency):
            return await self._resolve(spec, GitLabSpec.parse(spec))

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the project at `ref`."""
        return pin_gitlab(spec, ref, self._host)

    async def _resolve(self, spec: str, parsed: GitLabSpec) -> Repository:
        found, notice = await found_or_default(partial(self._find, parsed), parsed.ref, parsed.namespace)
        if found is None:
            project = await self._project(parsed)
            raise RequestRejected(RejectReason.REF_NOT_FOUND, self._no_such_ref(parsed, project))
        is_private = self._login is not None and (await self._project(parsed)).get("visibility") != "public"
        repository = replace(self.pin(spec, found), notice=notice, is_private=is_private)
        return await self._followed(repository, parsed) if self._moved.get(parsed.namespace) else repository

    async def _resolve_by_git(self, spec: str, access: TenantAccess) -> Repository:
        """Resolve with git itself: a deploy token can read the repository, but has no access to the API."""
        parsed = GitLabSpec.parse(spec)
        address = quote(self.pin(spec, parsed.ref).repo_url, safe="")

        async def find(ref: str) -> Repository | None:
            try:
                return await self._git.resolve(f"{address}/{quote(ref, safe='')}", access)
            except RequestRejected as error:
                if error.reason is RejectReason.REF_NOT_FOUND:
                    return None
                raise

        found, notice = await found_or_default(find, parsed.ref, parsed.namespace)
        if found is None:
            raise RequestRejected(RejectReason.REF_NOT_FOUND, self._no_such_ref(parsed, {}))
        return replace(
            self.pin(spec, found.resolved_ref),
            source_ref=found.source_ref,
            notice=notice,
            is_private=found.is_private,
        )

    async def _find(self, parsed: GitLabSpec, ref: str) -> str | None:
        if ref == HEAD:
            return await self._commit(parsed, f"commits/{HEAD}")
        if is_full_commit(ref):
            found = await self._commit(parsed, f"commits/{ref.lower()}")
            # A branch may have such a name, and then stand for another commit.
            return found if found == ref.lower() else None
        if found := await self._named(parsed, ref):
            return found
        found = await self._commit(parsed, f"commits/{ref.lower()}") if is_short_commit(ref) else None
        return found if found and found.startswith(ref.lower()) else None

    async def _named(self, parsed: GitLabSpec, ref: str) -> str | None:
        """Return the commit of a branch, a tag or a merge request."""
        for name in full_names(ref):
            if request := _MERGE_REQUEST.fullmatch(name):
                return await self._merge_request(parsed, request[1])
            for start, kind in _KINDS.items():
                if name.startswith(start):
                    short = quote(name.removeprefix(start), safe="")
                    if found := await self._commit(parsed, f"{kind}/{short}"):
                        return found
        return None

    async def _commit(self, parsed: GitLabSpec, rest: str) -> str | None:
        """Return the commit of a part of the repository's API, None if it does not exist."""
        answer = await self._get(parsed, f"/repository/{rest}", (200, 404))
        if answer.status == 404:
            return None
        content = answer.json_object()
        # An annotated tag has its own id as `target`, and that of the commit here.
        commit = content if rest.startswith("commits/") else content.get("commit")
        return self._id(parsed, commit.get("id") if isinstance(commit, dict) else None)

    async def _merge_request(self, parsed: GitLabSpec, number: str) -> str | None:
        answer = await self._get(parsed, f"/merge_requests/{number}", (200, 404))
        return self._id(parsed, answer.json_object().get("sha")) if answer.status == 200 else None

    def _id(self, parsed: GitLabSpec, value: object) -> str:
        if not is_object_id(value):
            raise ProviderUnavailable(
                f"{self._host} returned no commit for {parsed.namespace} at {parsed.ref}."
            )
        return str(value)

    async def _project(self, parsed: GitLabSpec) -> dict[str, Any]:
        """Return the project. Raises RequestRejected if there is none."""
        answer = await self._get(parsed, "", (200, 404))
        if answer.status == 404:
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND,
                f"{self._host} shows no project {parsed.namespace}: it does not exist, or it is private. Check groups and "
                "name; for a private project the operator must configure a token that can read it.",
            )
        return answer.json_object()

    async def _followed(self, repository: Repository, parsed: GitLabSpec) -> Repository:
        """Return a project with its address after it was renamed or transferred; its names stay those of the spec."""
        path = (await self._project(parsed)).get("path_with_namespace")
        if not isinstance(path, str) or path.lower() == parsed.namespace.lower():
            return repository
        moved = GitLabSpec.parse(f"{quote(path, safe='')}/{HEAD}").namespace
        return repository.moved(f"https://{self._host}/{moved}.git", old=parsed.namespace, new=moved)

    def _no_such_ref(self, parsed: GitLabSpec, project: dict[str, Any]) -> str:
        if parsed.ref == HEAD or project.get("empty_repo") is True:
            return (
                f"{parsed.namespace} on {self._host} has no default branch: it is empty. Commit files to it."
            )
        hint = ref_hint(parsed.ref) or "HEAD stands for the default branch."
        return f"{parsed.namespace} on {self._host} has no branch, tag or commit {parsed.ref!r}. {hint}"

    async def _get(self, parsed: GitLabSpec, rest: str, expected: tuple[int, ...]) -> Response:
        path = f"projects/{quote(parsed.namespace, safe='')}{rest}"
        answer = await self._api.get(path, subject=f"project {parsed.namespace}", expected=expected)
        self._moved[parsed.namespace] = answer.is_moved
        return answer
