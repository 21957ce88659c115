"""Tokens of GitHub Apps: for an hour, for single repositories, with the right to read contents."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urljoin

import aiohttp
import jwt
from cachetools import LRUCache
from gidgethub import BadRequest, HTTPException, RedirectionException
from gidgethub.abc import GitHubAPI
from gidgethub.apps import get_jwt

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import (
    AccountToken,
    AppToken,
    GitHubApp,
    Login,
    names_of,
    repository_path,
)
from rabbit2docker.consumer.providers.host_api import rate_limited
from rabbit2docker.consumer.providers.http import HttpClient, Response, user_agent
from rabbit2docker.errors import AppRefused, Dependency, DependencyKind, ProviderUnavailable
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

MAX_TOKENS: Final = 4096
MAX_REPOSITORIES: Final = 50
"""Repositories of the tokens of one build: its own and its submodules."""
MAX_SUBMODULES: Final = 200
"""Repositories that are tried for a build, which cannot have more submodules."""
LOOKUP_SECONDS: Final = 300.0
"""Validity that a token must have left for a look-up."""
BUILD_SECONDS: Final = 3000.0
"""Validity that a token must have left for a build, whose pod may wait for a node."""
REFUSED_SECONDS: Final = 60.0
"""Time for which a refusal is believed without asking again."""
MAX_SKEW_SECONDS: Final = 30.0
"""Difference of clocks that can make GitHub refuse a signature, which it accepts for a minute before its time."""
TOKEN_USER: Final = "x-access-token"

_GITMODULES: Final = re.compile(r"^[ \t]*url[ \t]*=[ \t]*(\S+)", re.MULTILINE)
_MOVED: Final = re.compile(r"/repositories/(\d{1,18})/installation")
_RAW: Final = "application/vnd.github.raw+json"


@dataclass(slots=True)
class _Slot:
    """The state of the token for some repositories of an App."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: AppToken | None = None
    refused: AppRefused | None = None
    refused_until: float = 0.0


class InstallationTokens:
    """Mints tokens with the keys of Apps, and keeps them until shortly before they expire."""

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None,
        breakers: Breakers | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Use the caller's `session`, which stays open."""
        self._settings = settings
        self._client = HttpClient(settings, session)
        self._breakers = breakers or Breakers()
        self._now = now
        self._slots: LRUCache[tuple[GitHubApp, tuple[str, ...]], _Slot] = LRUCache(MAX_TOKENS)

    async def get(self, app: GitHubApp, path: str) -> AppToken:
        """Return a token for the repository `owner/name`. Raises AppRefused and ProviderUnavailable."""
        return await self._token(app, (path.lower(),), LOOKUP_SECONDS)

    async def for_build(
        self, app: GitHubApp, path: str, ref: str, accounts: Iterable[str] = ()
    ) -> list[AccountToken]:
        """Return tokens that last, by account: that of the repository first, and then `accounts`.

        They are for the repository and its submodules in these accounts, also nested ones. Raises ProviderUnavailable.
        """
        own = await self._of_account(app, [path.lower()])
        tokens = {own.account: own}
        tokens.update((name, AccountToken(name)) for name in accounts if name != own.account)
        problems: dict[str, str] = {}
        paths, seen = [path.lower()], {path.lower()}
        # A repository without a token may be public, and have private submodules.
        unread = {path.lower(): ref} if own.token or len(tokens) > 1 else {}
        while unread and len(paths) < MAX_REPOSITORIES:
            # The commit of a submodule is known to git alone, so those inside of it are looked for where it is now.
            found = {
                name for at, ref in unread.items() for name in await self._submodules(app, at, ref, tokens)
            }
            asked = sorted(name for name in found - seen if not tokens[_account(name)].problem)
            asked = asked[: MAX_SUBMODULES - len(seen)]
            seen.update(asked)
            refusals = {name: await self._refusal(app, name, own.account) for name in asked}
            problems.update((_account(name), said) for name, said in refusals.items() if said)
            new = [name for name, said in refusals.items() if not said][: MAX_REPOSITORIES - len(paths)]
            paths += new
            for account in dict.fromkeys(map(_account, new)):
                tokens[account] = await self._of_account(app, [at for at in paths if _account(at) == account])
            unread = {name: "" for name in new if tokens[_account(name)].token}
        return [
            found if found.token else replace(found, problem=found.problem or problems.get(account))
            for account, found in tokens.items()
        ]

    async def installation(self, app: GitHubApp, account: str) -> int:
        """Return the number of the App's installation on an account. Raises AppRefused and ProviderUnavailable."""
        async with self._signing(app, account) as (api, signed):
            return await api.installation(signed, account)

    def forget(self, app: GitHubApp, path: str) -> None:
        """Mint new tokens for the repository from now on."""
        for key in [key for key in self._slots if key[0] == app and path.lower() in key[1]]:
            self._slots[key].token = None

    async def _token(self, app: GitHubApp, paths: tuple[str, ...], seconds: float) -> AppToken:
        slot = self._slots.setdefault((app, paths), _Slot())
        async with slot.lock:
            if slot.token and slot.token.expires_at - self._now() >= seconds:
                return slot.token
            if slot.refused and self._now() < slot.refused_until:
                raise AppRefused(slot.refused.message, slot.refused.reason)
            try:
                slot.token = await self._mint(app, paths)
            except AppRefused as refused:
                slot.refused, slot.refused_until = refused, self._now() + REFUSED_SECONDS
                raise
            return slot.token

    async def _mint(self, app: GitHubApp, paths: tuple[str, ...]) -> AppToken:
        async with self._signing(app, paths[0]) as (api, signed):
            return await api.mint(signed, paths)

    @asynccontextmanager
    async def _signing(self, app: GitHubApp, path: str) -> "AsyncIterator[tuple[_AppApi, str]]":
        """Have the API, and what proves to it that the App asks; `path` is named in messages."""
        with self._breakers.guard(Dependency(DependencyKind.HOST, app.host)):
            signed = await asyncio.to_thread(_signed, app)
            api = _AppApi(self._client, self._settings.github_api_at(app.host), app, path, self._now)
            yield api, signed

    async def _of_account(self, app: GitHubApp, paths: list[str]) -> AccountToken:
        """Return what there is for repositories of one account."""
        try:
            return AccountToken(_account(paths[0]), await self._token(app, tuple(paths), BUILD_SECONDS))
        except AppRefused as refused:
            return AccountToken(_account(paths[0]), problem=refused.message)

    async def _refusal(self, app: GitHubApp, path: str, own: str) -> str | None:
        """Return the reason for which there is no token for a submodule of a repository of the account `own`."""
        try:
            token = await self.get(app, path)
        except AppRefused as refused:
            return refused.message
        if token.account == _account(path) or _account(path) == own:
            return None
        return f"{path} belongs to the account {token.account} on {app.host} by now. Its submodule must have that address."

    async def _submodules(
        self, app: GitHubApp, path: str, ref: str, tokens: Mapping[str, AccountToken]
    ) -> set[str]:
        """Return the submodules of a repository that belong to the accounts of `tokens` on the same host."""
        at = f"?ref={quote(ref, safe='')}" if ref else ""
        found = tokens[_account(path)].token
        token = found.login.password if found else self._settings.github_token_at(app.host)
        answer = await self._client.get(
            f"{self._settings.github_api_at(app.host)}/repos/{path}/contents/.gitmodules{at}",
            title=app.host,
            headers={"Accept": _RAW, **({"Authorization": f"Bearer {token}"} if token else {})},
            is_trusted=True,
        )
        if answer.status >= 500 or rate_limited(answer) is not None:
            raise _away(app, answer)
        names = _same_host(app.host, path, answer.body) if answer.status == 200 else iter(())
        return {name for name in names if _account(name) in tokens}


def _account(path: str) -> str:
    """Return the account of a repository `owner/name`."""
    return path.partition("/")[0]


def _same_host(host: str, path: str, text: str) -> Iterator[str]:
    """Yield the repositories of a host that a file `.gitmodules` names."""
    for address in _GITMODULES.findall(text):
        try:
            url = urljoin(f"https://{host}/{path}/", address)
            if host in names_of(url) and (found := repository_path(url)):
                yield found.lower()
        except ValueError:  # no URL; git will say so
            continue


def _signed(app: GitHubApp) -> str:
    """Return what proves to GitHub that the App asks. Raises AppRefused."""
    try:
        return get_jwt(app_id=app.app_id, private_key=app.key)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise AppRefused(
            f"The private key of the GitHub App {app.app_id} for {app.host} cannot be used: it must be an RSA key in the "
            "format PEM, without a passphrase, as GitHub generates it. The operator must repair the file."
        ) from error


class _AppApi(GitHubAPI):
    """The part of GitHub's API for Apps, through our own client."""

    def __init__(
        self, client: HttpClient, base_url: str, app: GitHubApp, path: str, now: Callable[[], float]
    ) -> None:
        super().__init__(user_agent(), base_url=base_url.rstrip("/"))
        self._client = client
        self._app = app
        self._path = path
        self._now = now
        self._skew = 0.0
        self._last_url = ""

    async def mint(self, signed: str, paths: tuple[str, ...]) -> AppToken:
        """Return a token for repositories of one account. Raises AppRefused and ProviderUnavailable."""
        with self._explained():
            found = await self._installation(f"/repos/{quote(self._path)}/installation", signed)
            # The first one may have another name by now, under which it would not be found.
            moved = _MOVED.search(self._last_url)
            chosen = (
                {"repository_ids": [int(moved[1])]}
                if moved and len(paths) == 1
                else {"repositories": [path.partition("/")[2] for path in paths]}
            )
            url = f"/app/installations/{int(found['id'])}/access_tokens"
            token = await self.post(url, data={**chosen, "permissions": {"contents": "read"}}, jwt=signed)
            return self._as_token(found, token)

    async def installation(self, signed: str, account: str) -> int:
        """Return the number of the installation on an account. Raises AppRefused and ProviderUnavailable."""
        with self._explained():
            try:
                found = await self._installation(f"/orgs/{quote(account)}/installation", signed)
            except BadRequest as error:
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                found = await self._installation(f"/users/{quote(account)}/installation", signed)
            return int(found["id"])

    async def _installation(self, url: str, signed: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self.getitem(url, jwt=signed)
        if found.get("suspended_at"):
            raise self._suspended()
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise AppRefused or ProviderUnavailable in the place of other errors."""
        try:
            yield
        except HTTPException as error:
            raise self._translated(error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProviderUnavailable(
                f"{self._app.host} sent a response of an unknown form: waiting for its repair."
            ) from error

    def _as_token(self, installation: Mapping[str, Any], token: Mapping[str, Any]) -> AppToken:
        ends = datetime.fromisoformat(token["expires_at"]).timestamp()
        login = Login(TOKEN_USER, str(token["token"]), is_token=True)
        account = str((installation.get("account") or {}).get("login") or "").lower()
        return AppToken(login, int(installation["id"]), account, ends - self._skew)

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        host = self._app.host
        sent = {name: value for name, value in headers.items() if name != "content-length"}
        if method == "GET":
            answer = await self._client.get(url, title=host, headers=sent, is_trusted=True)
        else:
            answer = await self._client.post(url, body, title=host, headers=sent)
        if answer.status >= 500 or rate_limited(answer) is not None:
            raise _away(self._app, answer)
        answer.json_object()
        self._last_url = answer.url
        self._skew = _skew(answer, self._now())
        return answer.status, answer.headers, answer.body.encode()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _translated(self, error: HTTPException) -> AppRefused | ProviderUnavailable:
        app, said = self._app, str(error)
        match int(error.status_code):
            case 401 if abs(self._skew) > MAX_SKEW_SECONDS:
                where = "behind" if self._skew > 0 else "ahead of"
                return AppRefused(
                    f"{app.host} refuses what the GitHub App {app.app_id} signs, because the clock of the service is "
                    f"{abs(self._skew):.0f} seconds {where} that of {app.host}. The operator must set the clock."
                )
            case 401:
                return AppRefused(
                    f"{app.host} refuses the private key of the GitHub App {app.app_id}: it is another App's, or was deleted "
                    f"there ({said}). The operator must generate a new key for the App, and renew the file."
                )
            case 404 if "integration" in said.lower():
                return AppRefused(
                    f"{app.host} has no GitHub App {app.app_id}. The operator must correct app_id: the App's page shows its id."
                )
            case 403 if "suspended" in said.lower():
                return self._suspended()
            case 422 if "permission" in said.lower():
                return AppRefused(
                    f"The GitHub App {app.app_id} has no right to read the contents of {self._path} on {app.host}. The "
                    "operator must give the App the permission Contents: read, and accept it for the installation."
                )
            case 404 if "/" not in self._path:
                return AppRefused(
                    f"The GitHub App {app.app_id} is not installed on the account {self._path} on {app.host}, or there is no such "
                    "account. Check its name; if it is right, an owner of the account must install the App.",
                    RejectReason.REPOSITORY_PRIVATE,
                )
            case 404 | 422:
                return AppRefused(
                    f"The GitHub App {app.app_id} is not installed on {self._path} on {app.host}, or there is no such "
                    "repository. Check owner and name; if they are right, the operator must have the App installed on it.",
                    # As without an App: most such names are mistyped, and an operator need not look at each.
                    RejectReason.REPOSITORY_PRIVATE,
                )
            case _ if isinstance(error, BadRequest) and not isinstance(error, RedirectionException):
                return AppRefused(
                    f"{app.host} gives the GitHub App {app.app_id} no token for {self._path}: {said}. The operator must "
                    "check the App and its installation."
                )
            case status:
                return ProviderUnavailable(f"{app.host} answered with status {status}: waiting for it.")

    def _suspended(self) -> AppRefused:
        return AppRefused(
            f"The installation of the GitHub App {self._app.app_id} that covers {self._path} on {self._app.host} is suspended. "
            "The operator, or the owner of the account, must unsuspend it."
        )


def _skew(answer: Response, now: float) -> float:
    """Return how many seconds the clock of the host is ahead."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0


def _away(app: GitHubApp, answer: Response) -> ProviderUnavailable:
    if (wait := rate_limited(answer)) is not None:
        # Other tenants have limits of their own.
        return ProviderUnavailable(
            f"{app.host} limits the requests of the GitHub App {app.app_id}: waiting for the end.",
            retry_after=wait,
        )
    return ProviderUnavailable(
        f"{app.host} answered with status {answer.status}: waiting for it.",
        outage_of=Dependency(DependencyKind.HOST, app.host),
    )
