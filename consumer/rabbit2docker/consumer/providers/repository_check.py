"""A repository checked step by step, as a look-up of a tenant does it, for operators."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.check_step import Step
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.catalog import connect_apps
from rabbit2docker.consumer.providers.git_remote import GitRemote
from rabbit2docker.consumer.providers.git_urls import shown
from rabbit2docker.consumer.providers.refs import HEAD
from rabbit2docker.consumer.providers.specs import GitSpec
from rabbit2docker.errors import AppRefused, RequestRejected, TransientError
from rabbit2docker.settings import Settings


class RepositoryCheck:
    """Steps from the address of a repository to its refs, with the credentials of a tenant."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, tenant: str) -> None:
        """Use the caller's `session`, which stays open."""
        credentials = GitCredentials(settings.tenants)
        connect_apps(credentials, settings.providers, session)
        self._tenant = tenant
        self._access = credentials.of(tenant)
        self._policy = AddressPolicy(settings.providers, credentials.ssh_hosts())
        self._remote = GitRemote(self._policy, session, Breakers(), settings.providers.timeout)

    async def steps(self, url: str) -> AsyncIterator[Step]:
        """Yield each step as it is done, up to the first that fails."""
        name = "address"
        try:
            # As in a request, which may have the address in the form `git@host:path`.
            url = GitSpec.parse(f"{quote(url, safe='')}/{HEAD}").url
            target = self._policy.check(url)
            yield Step(name, True, f"{shown(url)} may be requested: {target.host}, port {target.port}.")
            name = "host"
            addresses = await self._policy.resolve(url)
            where = ", ".join(addresses) or "any address, or a proxy, which connects"
            yield Step(name, True, f"{target.host} is at {where}.")
            name = "credentials"
            yield Step(name, True, await self._chosen(url))
            if self._access.app_ids(url):
                name = "token"
                yield await self._token(name, url)
            for account in self._access.submodule_accounts(url):
                name = f"account {account}"
                yield await self._account(name, url, account)
            name = "refs"
            listing = await self._remote.list_refs(url, [], addresses, self._access)
            how = "with the credentials: it is private" if listing.is_private else "without credentials"
            yield Step(name, bool(listing.refs), f"{len(listing.refs)} refs were listed {how}.")
        except (RequestRejected, TransientError) as error:
            yield Step(name, False, error.message)

    async def _chosen(self, url: str) -> str:
        """Return which credentials there are. Raises ProviderUnavailable if they cannot be read."""
        apps = [f"the GitHub App {app_id}" for app_id in self._access.app_ids(url)]
        found = await self._access.of_files(url)
        kinds = [kind for entry in found for kind in _kinds(entry.login is not None, entry.ssh is not None)]
        if not (apps or kinds):
            return f"The tenant {self._tenant} has none for this host: only public repositories can be read."
        return f"The tenant {self._tenant} has {' and '.join([*apps, *kinds])} for {found[0].host}."

    async def _token(self, name: str, url: str) -> Step:
        """Return the step in which a GitHub App gets a token. Without one, a public repository can still be read."""
        try:
            token = await self._access.app_token(url)
        except AppRefused as refused:
            return Step(name, False, refused.message)
        if token is None:
            return Step(name, False, f"{shown(url)} is not the address of a repository on a GitHub.")
        until = datetime.fromtimestamp(token.expires_at, UTC)
        return Step(
            name,
            True,
            f"Installation {token.installation} of the App has the repository, and gave a token to read it until "
            f"{until:%H:%M} UTC.",
        )

    async def _account(self, name: str, url: str, account: str) -> Step:
        """Return the step that looks for the App on another account. Without it, public submodules can still be read."""
        try:
            number = await self._access.installation(url, account)
        except AppRefused as refused:
            return Step(name, False, refused.message)
        message = f"Installation {number} of the App has repositories of {account}, which may be private submodules."
        return Step(name, True, message)


def _kinds(has_login: bool, has_key: bool) -> list[str]:
    return [
        *(["a token or password for HTTPS"] if has_login else []),
        *(["a key for SSH"] if has_key else []),
    ]
