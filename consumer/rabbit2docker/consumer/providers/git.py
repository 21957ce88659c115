"""Any git repository, public or with the credentials of a tenant. Spec: `<url-escaped URL>/<url-escaped ref>`."""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.git_remote import GitRemote
from rabbit2docker.consumer.providers.git_urls import refused, shown
from rabbit2docker.consumer.providers.refs import (
    HEAD,
    PEELED,
    check_ref,
    full_names,
    is_full_commit,
    is_short_commit,
)
from rabbit2docker.consumer.providers.specs import GitSpec, pin_git, ref_hint
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason


class GitProvider:
    """Resolves specs with git itself."""

    prefix = PROVIDERS["git"].prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
        *,
        ssh_hosts: Collection[str] = (),
    ) -> None:
        """Take limits from the settings. `session` is needed only to follow redirects; `ssh_hosts` may be asked by SSH."""
        self._policy = AddressPolicy(settings, ssh_hosts)
        self._remote = GitRemote(self._policy, session, breakers or Breakers(), settings.timeout)

    def check(self, spec: str) -> None:
        """Raise RequestRejected when the spec cannot be read or names a refused address."""
        parsed = GitSpec.parse(spec)
        self._policy.check(parsed.url)
        check_ref(parsed.ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the repository at the commit. A full commit id is not verified: only a fetch shows whether it exists."""
        self.check(spec)
        parsed = GitSpec.parse(spec)
        if parsed.url.startswith("ssh:") and not access.has_ssh_key(parsed.url):
            raise refused(
                f"{shown(parsed.url)} is an address for SSH, for which no key is configured. Use the https:// address of "
                "the repository, or ask the operator for a key."
            )
        addresses = await self._policy.resolve(parsed.url)
        if is_full_commit(parsed.ref) and not access.has_any(parsed.url):
            return self.pin(spec, parsed.ref.lower())
        found = await self._look_up(parsed, addresses, access)
        repository = replace(self.pin(spec, found.commit), source_ref=found.name, is_private=found.is_private)
        if found.moved_to is None:
            return repository
        # The old address may become another's.
        return repository.moved(found.moved_to, old=shown(parsed.url), new=shown(found.moved_to))

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository at `ref`; the build slug is the whole URL, as in BinderHub."""
        return pin_git(spec, ref)

    async def _look_up(self, parsed: GitSpec, addresses: list[str], access: TenantAccess) -> "_Found":
        """Return the commit that the ref points to."""
        names = [HEAD] if is_full_commit(parsed.ref) else full_names(parsed.ref)
        patterns = [*names, *(name + PEELED for name in names)]
        listing = await self._remote.list_refs(parsed.url, patterns, addresses, access)
        if is_full_commit(parsed.ref):
            # Only whether it is private matters, and where it is now.
            return _Found(parsed.ref.lower(), None, listing.moved_to, listing.is_private)
        for name in names:
            # The peeled line of an annotated tag has the commit, its own line only the tag object.
            found = listing.refs.get(name + PEELED) or listing.refs.get(name)
            if found:
                return _Found(found, name, listing.moved_to, listing.is_private)
        if is_short_commit(parsed.ref):
            commit = await self._remote.find_commit(listing.url, parsed.ref.lower(), access)
            if commit:
                return _Found(commit, None, listing.moved_to, listing.is_private)
        raise RequestRejected(RejectReason.REF_NOT_FOUND, _no_such_ref(parsed))


class _Found(NamedTuple):
    """A version of a repository."""

    commit: str
    name: str | None
    """The full name of the ref, if there is one."""
    moved_to: str | None
    """The address to which the repository has moved for good."""
    is_private: bool


def _no_such_ref(parsed: GitSpec) -> str:
    if parsed.ref == HEAD:
        return f"{shown(parsed.url)} has no default branch: it may be empty. Use a branch, tag or commit."
    hint = (
        "Use the full id of 40 characters for a commit"
        if re.fullmatch(r"[0-9a-fA-F]+", parsed.ref)
        else "Use a branch, a tag, the full id of a commit, or HEAD for the default branch"
    )
    hint = ref_hint(parsed.ref) or f"{hint}."
    return f"{shown(parsed.url)} has no branch or tag {parsed.ref!r}. {hint}"
