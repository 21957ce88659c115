"""Credentials for repositories, of tenants and of single requests: one for each host, for look-ups and builds alike."""

import asyncio
import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import structlog

from rabbit2docker.errors import ExecutorUnavailable, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import GitCredential, TenantSettings
from rabbit2docker_schemas.reasons import RejectReason

log = structlog.get_logger()

TOKEN_USER: Final = "oauth2"
"""User name with an access token, which GitHub and GitLab accept with any name or with this one."""

_NO_LOGIN: Final[dict[str, Any]] = {
    **dict.fromkeys(("user", "token_file", "app_id", "app_key_file")),
    "submodule_accounts": [],
}
_NONE: Final = GitCredential.model_construct()
_REPOSITORY: Final = re.compile(r"/([\w.-]+)/([\w.-]+?)(?:\.git)?/?", re.ASCII)
_PORTS: Final = {"https": 443, "ssh": 22}


@dataclass(frozen=True, slots=True)
class Login:
    """User and password for HTTPS."""

    user: str
    password: str = field(repr=False)
    is_token: bool = False
    """True if it is an access token, which the API of the host accepts, too."""

    @property
    def authorization(self) -> str:
        """The value of the header Authorization for git's requests."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"


@dataclass(frozen=True, slots=True)
class SshKey:
    """A private key, and the keys by which its host is known."""

    private: str = field(repr=False)
    known_hosts: str


@dataclass(frozen=True, slots=True)
class GitHubApp:
    """A GitHub App of a tenant on one host."""

    host: str
    app_id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AppToken:
    """A token of an installation of a GitHub App, for some of its repositories."""

    login: Login
    installation: int
    account: str
    """The account that has the installation, in lower case."""
    expires_at: float
    """The end of its validity, by the clock of this machine."""


@dataclass(frozen=True, slots=True)
class AccountToken:
    """The token of a GitHub App for the repositories of a build in one account, whose name is in lower case."""

    account: str
    token: AppToken | None = None
    """None if it is refused, or if no submodule is the account's."""
    problem: str | None = None
    """The reason for which it is refused."""


class AppTokens(Protocol):
    """Has tokens of GitHub Apps. Methods raise AppRefused and ProviderUnavailable."""

    async def get(self, app: GitHubApp, path: str) -> AppToken:
        """Return a token for the repository `path`, such as `owner/name`."""

    async def for_build(
        self, app: GitHubApp, path: str, ref: str, accounts: Iterable[str]
    ) -> list[AccountToken]:
        """Return tokens that last, for the repository and those that are its submodules at a version.

        The first one is that of its own account; the others are those of `accounts`.
        """

    async def installation(self, app: GitHubApp, account: str) -> int:
        """Return the number of the App's installation on an account."""

    def forget(self, app: GitHubApp, path: str) -> None:
        """Get another token for the repository the next time."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The request to which credentials belong that are a person's own."""

    tenant: str
    request_id: str
    reference: str
    """The name under which the credentials were left for the request."""


class PersonalCredentials(Protocol):
    """Has the credentials that hubs leave for single requests. Methods raise ExecutorUnavailable."""

    async def read(self, key: RequestKey) -> tuple[str, Login]:
        """Return the host and the login for it. Raises CredentialsRefused if there are none for this request."""

    async def discard(self, key: RequestKey) -> None:
        """Delete what belongs to a request that needs it no more; ignores what does not exist."""


@dataclass(frozen=True, slots=True)
class HostCredential:
    """All that a tenant has for one host."""

    host: str
    """As in a URL, with the port if it is for that port alone."""
    login: Login | None
    ssh: SshKey | None
    account: str | None = None
    """The account to whose repositories the login is restricted."""
    expires_at: float | None = None
    """The end of the login's validity, if it is known."""
    problem: str | None = None
    """The reason for which a GitHub App has no login."""


def endpoint(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL whose address was checked."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return parts.scheme, f"[{host}]" if ":" in host else host, parts.port or _PORTS.get(parts.scheme, 0)


def names_of(url: str) -> list[str]:
    """Return the names under which settings may have the host of a URL, the narrower first; none without encryption."""
    scheme, host, port = endpoint(url)
    if scheme not in _PORTS:
        return []
    return [f"{host}:{port}", *([host] if port == _PORTS[scheme] else [])]


def repository_path(url: str) -> str | None:
    """Return `owner/name` of a URL on a GitHub; None if it is that of something else, or without encryption."""
    parts = urlsplit(url)
    found = _REPOSITORY.fullmatch(parts.path)
    return f"{found[1]}/{found[2]}" if found and parts.scheme == "https" else None


class GitCredentials:
    """The credentials of all tenants."""

    def __init__(self, tenants: Mapping[str, TenantSettings] | None = None) -> None:
        """Take the settings; files are read at each use."""
        self._tenants = dict(tenants or {})
        self._apps: AppTokens | None = None
        self._personal: PersonalCredentials | None = None

    def use_personal(self, personal: PersonalCredentials) -> None:
        """Accept requests that refer to a person's own credentials."""
        self._personal = personal

    async def of_request(self, tenant: str, request_id: str, reference: str | None) -> "TenantAccess":
        """Return what a request may use: the person's own credentials if it refers to them, before the tenant's.

        Raises RequestRejected and ExecutorUnavailable.
        """
        access = self.of(tenant)
        if reference is None:
            return access
        if self._personal is None:
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                "This service takes no credentials of single persons. Send the request without `credentials`, or ask the "
                "operator to set kubernetes.personal_namespace, which the kubernetes executor alone has.",
            )
        host, login = await self._personal.read(RequestKey(tenant, request_id, reference))
        return access.with_login(host, login)

    async def discard(self, tenant: str, request_id: str, reference: str | None) -> None:
        """Delete a person's own credentials at the end of their request. Where that fails, their age ends them."""
        if reference is None or self._personal is None:
            return
        try:
            await self._personal.discard(RequestKey(tenant, request_id, reference))
        except ExecutorUnavailable as error:
            log.warning("personal credentials not deleted", error=error.message)

    def use_apps(self, apps: AppTokens) -> None:
        """Have tokens of GitHub Apps from now on."""
        self._apps = apps

    def of(self, tenant: str) -> "TenantAccess":
        """Return what a tenant may use; nothing for one that has no settings."""
        found = self._tenants.get(tenant)
        return TenantAccess(found.git if found else {}, self._apps)

    @property
    def have_apps(self) -> bool:
        """True if some tenant has a GitHub App."""
        return any(
            credential.app_id for tenant in self._tenants.values() for credential in tenant.git.values()
        )

    def ssh_hosts(self) -> frozenset[str]:
        """Return the hosts for which some tenant has a key for SSH."""
        return frozenset(
            host
            for tenant in self._tenants.values()
            for host, credential in tenant.git.items()
            if credential.ssh_key_file
        )


class TenantAccess:
    """The credentials of one tenant. Methods raise ProviderUnavailable if a file cannot be read, or a host is away."""

    def __init__(
        self,
        hosts: Mapping[str, GitCredential] | None = None,
        apps: AppTokens | None = None,
        own: Mapping[str, Login] | None = None,
    ) -> None:
        """Take the settings by host, where tokens of GitHub Apps come from, and `own` logins of a person by host."""
        self._own = dict(own or {})
        self._hosts = {**dict.fromkeys(self._own, _NONE), **(hosts or {})}
        self._apps = apps

    def with_login(self, host: str, login: Login) -> "TenantAccess":
        """Return this and the own login of a person for a host, which takes the place of the tenant's."""
        ssh_only = self._hosts.get(host, _NONE).model_copy(update=_NO_LOGIN)
        return TenantAccess({**self._hosts, host: ssh_only}, self._apps, {**self._own, host: login})

    def has_login(self, url: str) -> bool:
        """Return whether there is a login for the host of a URL, or a GitHub App that may have one."""
        return any(
            host in self._own or credential.token_file or (credential.app_id and repository_path(url))
            for host, credential in self._for(url)
        )

    def has_ssh_key(self, url: str) -> bool:
        """Return whether there is a key for the host of a URL."""
        return any(credential.ssh_key_file for _, credential in self._for(url))

    def has_any(self, url: str) -> bool:
        """Return whether there are credentials for the host of a URL."""
        return next(self._for(url), None) is not None

    def ssh_hosts(self) -> list[str]:
        """Return the hosts for which there is a key."""
        return [host for host, credential in self._hosts.items() if credential.ssh_key_file]

    async def login(self, url: str) -> Login | None:
        """Return the login for a repository, or for its host. Raises AppRefused."""
        for entry in await self.for_url(url):
            if entry.login:
                return entry.login
        return None

    async def for_url(self, url: str) -> list[HostCredential]:
        """Return the credentials for the host of a URL. Raises AppRefused."""
        return [await self._read(host, credential, url) for host, credential in self._for(url)]

    async def of_files(self, url: str) -> list[HostCredential]:
        """Return the credentials for the host of a URL that files hold."""
        return [await self._from_files(host, credential) for host, credential in self._for(url)]

    async def for_build(self, url: str, ref: str) -> list[HostCredential]:
        """Return the credentials for all hosts: submodules may be on another one than the repository."""
        own = names_of(url)
        return [
            entry
            for host, credential in self._hosts.items()
            for entry in await self._read_lasting(host, credential, url if host in own else "", ref)
        ]

    def app_ids(self, url: str) -> list[str]:
        """Return the ids of the GitHub Apps for the host of a URL."""
        return [credential.app_id for _, credential in self._for(url) if credential.app_id]

    def submodule_accounts(self, url: str) -> list[str]:
        """Return the accounts on the host of a URL whose private repositories may be submodules."""
        return [account for _, credential in self._for(url) for account in credential.submodule_accounts]

    async def installation(self, url: str, account: str) -> int | None:
        """Return the number of the installation of a GitHub App on an account of a host. Raises AppRefused."""
        for host, credential in self._for(url):
            if app := await self._app(host, credential):
                return await self._issuer(host).installation(app, account)
        return None

    async def app_token(self, url: str) -> AppToken | None:
        """Return the token of a GitHub App for a repository. Raises AppRefused."""
        for host, credential in self._for(url):
            if (app := await self._app(host, credential)) and (path := repository_path(url)):
                return await self._issuer(host).get(app, path)
        return None

    async def withdraw(self, url: str) -> bool:
        """Forget tokens for a repository that a host refuses; return False if there are none that can be renewed."""
        path, found = repository_path(url), False
        for host, credential in self._for(url):
            if (app := await self._app(host, credential)) and path:
                self._issuer(host).forget(app, path)
                found = True
        return found

    def _for(self, url: str) -> Iterator[tuple[str, GitCredential]]:
        for name in sorted(names_of(url), key=lambda name: name not in self._own):
            if name in self._hosts:
                yield name, self._hosts[name]

    async def _read(self, host: str, credential: GitCredential, url: str) -> HostCredential:
        found = await self._from_files(host, credential)
        if (app := await self._app(host, credential)) and (path := repository_path(url)):
            token = await self._issuer(host).get(app, path)
            return replace(found, login=token.login, expires_at=token.expires_at)
        return found

    async def _read_lasting(
        self, host: str, credential: GitCredential, url: str, ref: str
    ) -> list[HostCredential]:
        found = await self._from_files(host, credential)
        if not ((app := await self._app(host, credential)) and (path := repository_path(url))):
            return [found]
        own, *others = await self._issuer(host).for_build(app, path, ref, credential.submodule_accounts)
        for other in others:
            if other.problem:
                log.warning(
                    "submodule account skipped", host=host, account=other.account, error=other.problem
                )
        # Repositories may be public where there is no token; if they are not, the build fails with the problem.
        return [_with_token(found, own), *(_for_account(host, other) for other in others)]

    async def _app(self, host: str, credential: GitCredential) -> GitHubApp | None:
        key = await _secret(credential.app_key_file, host)
        return GitHubApp(host, credential.app_id, key) if key and credential.app_id else None

    def _issuer(self, host: str) -> AppTokens:
        if self._apps is None:
            raise ProviderUnavailable(
                f"{host} cannot be asked for tokens of a GitHub App: there is no session."
            )
        return self._apps

    async def _from_files(self, host: str, credential: GitCredential) -> HostCredential:
        token = await _secret(credential.token_file, host)
        key = await _secret(credential.ssh_key_file, host)
        login = Login(credential.user or TOKEN_USER, token, credential.user is None) if token else None
        known = await _secret(credential.known_hosts_file, host)
        return HostCredential(host, self._own.get(host, login), SshKey(key, known or "") if key else None)


def _with_token(entry: HostCredential, found: AccountToken) -> HostCredential:
    if found.token is None:
        return replace(entry, problem=found.problem)
    return replace(entry, login=found.token.login, expires_at=found.token.expires_at)


def _for_account(host: str, found: AccountToken) -> HostCredential:
    return _with_token(HostCredential(host, None, None, found.account), found)


ANYBODY: Final = TenantAccess()
"""Access to what needs no credentials."""


async def _secret(path: Path | None, host: str) -> str | None:
    if path is None:
        return None
    try:
        text = await asyncio.to_thread(path.read_text, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ProviderUnavailable(
            f"The credentials for {host} cannot be read: {reason}. The operator must repair the file {path.name}."
        ) from error
    if not text.strip():
        raise ProviderUnavailable(
            f"The credentials for {host} are empty. The operator must repair {path.name}."
        )
    return text.strip()
