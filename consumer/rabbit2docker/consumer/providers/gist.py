"""Gists of GitHub. Spec: `<user>/<id>[/<version>]`."""

from dataclasses import replace
from typing import Any

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.gh import github_api
from rabbit2docker.consumer.providers.refs import (
    HEAD,
    OLD_DEFAULTS,
    check_ref,
    is_full_commit,
    is_object_id,
    is_short_commit,
)
from rabbit2docker.consumer.providers.specs import GistSpec, pin_gist
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason


class GistProvider:
    """Resolves specs with GitHub's REST API."""

    prefix = PROVIDERS["gist"].prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Take GitHub's host and token from the settings, and whether secret gists are built."""
        self._breakers = breakers or Breakers()
        self._host = settings.hosts[self.prefix]
        self._api = github_api(settings, session, self.prefix)
        self._allows_secret = settings.allow_secret_gists

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec cannot be read."""
        check_ref(GistSpec.parse(spec).ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the gist at the version that the spec names: any of its history, or the newest."""
        self.check(spec)
        parsed = GistSpec.parse(spec)
        with self._breakers.guard(self._api.dependency):
            gist = (
                await self._api.get(f"gists/{parsed.gist_id}", subject=f"gist {parsed.gist_id}")
            ).json_object()
            self._check_public(gist)
            commit = await self._version(parsed, gist)
        return self._of_its_owner(self.pin(spec, commit), parsed, gist)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the gist at `ref`."""
        return pin_gist(spec, ref, self._host)

    def _check_public(self, gist: dict[str, Any]) -> None:
        if gist.get("public") is False and not self._allows_secret:
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                "You seem to want to use a secret Gist, but do not have permission to do so. Make it public, or ask the "
                "operator to set providers.allow_secret_gists.",
            )

    async def _version(self, parsed: GistSpec, gist: dict[str, Any]) -> str:
        history = gist.get("history")
        entries = history if isinstance(history, list) else []
        versions = [entry["version"] for entry in entries if isinstance(entry, dict) and "version" in entry]
        if not versions or not all(map(is_object_id, versions)):
            raise ProviderUnavailable(f"{self._host} returned no versions of the gist {parsed.gist_id}.")
        ref = parsed.ref.lower()
        if parsed.ref == HEAD or parsed.ref in OLD_DEFAULTS:
            return str(versions[0])
        if ref in versions or (is_full_commit(ref) and await self._is_version(parsed, ref)):
            return ref
        found = [version for version in versions if is_short_commit(ref) and version.startswith(ref)]
        if len(found) == 1:
            return str(found[0])
        raise RequestRejected(
            RejectReason.REF_NOT_FOUND,
            f"The gist {parsed.gist_id} has no version {parsed.ref!r}. Use the id of a version in its history, or HEAD for "
            "the newest.",
        )

    async def _is_version(self, parsed: GistSpec, ref: str) -> bool:
        """Return whether the gist has this version, also if its history is too long for one response."""
        answer = await self._api.get(
            f"gists/{parsed.gist_id}/{ref}", subject=f"gist {parsed.gist_id}", expected=(200, 404, 422)
        )
        return answer.status == 200

    def _of_its_owner(self, repository: Repository, parsed: GistSpec, gist: dict[str, Any]) -> Repository:
        """Return the gist at its owner's address: GitHub accepts any user in front of the id."""
        owner = gist.get("owner")
        login = owner.get("login") if isinstance(owner, dict) else None
        if not isinstance(login, str) or login.lower() == parsed.user.lower():
            return repository
        own = GistSpec.parse(f"{login}/{parsed.gist_id}")
        return replace(repository, repo_url=f"https://{self._host}/{own.user}/{own.gist_id}.git")
