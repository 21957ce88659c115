"""Who asks, what they may see, and from where: nobody in particular, whoever has a token, a user of the JupyterHub."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr
from tornado.web import HTTPError, RequestHandler

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.hub.store.models import Build
from rabbit2docker.settings import HubAuth, HubSettings

NAME_CHARACTERS: Final = 256
"""What a request's `requester` may have at most."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADER = re.compile(r"(?:token|bearer)\s+(\S+)\s*", re.IGNORECASE)
_BASIC = re.compile(r"basic\s+([A-Za-z0-9+/=]+)\s*", re.IGNORECASE)
_CHALLENGE: Final = 'Basic realm="builds", charset="UTF-8"'


class HttpError(HTTPError):
    """What was asked for cannot be had; says so in words for a person."""

    def __init__(self, message: str, status_code: int) -> None:
        """Take the message and the status of the answer, where answers have one."""
        super().__init__(status_code)
        self.message = message


class Forbidden(HttpError):
    """Who asks may not, or cannot be told."""

    def __init__(
        self,
        message: str,
        status_code: int,
        *,
        login_url: str | None = None,
        challenge: str | None = None,
    ) -> None:
        """Take message and status, and how a person with a browser logs in: at an address, or by this challenge."""
        super().__init__(message, status_code)
        self.login_url = login_url
        self.challenge = challenge


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str | None
    """None where nobody is asked who they are."""
    admin: bool = False
    """May see and end everybody's builds."""
    by_browser: bool = False
    """Known by what a browser sends by itself, on the wish of whichever page: a cookie, or a password it remembers."""

    def can_view(self, build: Build) -> bool:
        """Tell whether a build is theirs to see; to others it does not exist."""
        return self.admin or (self.name is not None and self.name in build.requesters)

    def can_cancel(self, build: Build) -> bool:
        """Tell whether ending a build takes it from nobody else."""
        return self.admin or (self.name is not None and set(build.requesters) == {self.name})


def check_origin(handler: RequestHandler) -> None:
    """Raise NotAllowed when a browser says that another site's page makes the request."""
    site = handler.request.headers.get("Sec-Fetch-Site")
    origin = handler.request.headers.get("Origin")
    if origin is not None and origin == handler.settings.get("allow_origin"):
        return
    if site is None and origin is not None:
        # Browsers do not say it to addresses without TLS.
        site = "same-origin" if urlsplit(origin).netloc == handler.request.host else "cross-site"
    if site not in (None, "none", "same-origin"):
        raise Forbidden("Pages of other sites may not do this.", 403)


def check_browser(handler: RequestHandler, user: User) -> None:
    """Raise NotAllowed when another site's page may be behind a GET that changes something."""
    site = handler.request.headers.get("Sec-Fetch-Site")
    if user.by_browser and site not in (None, "none", "same-origin", "same-site"):
        raise Forbidden("Pages of other sites may not ask for builds.", 403)
    is_basic = _BASIC.fullmatch(handler.request.headers.get("Authorization", "")) is not None
    if is_basic and site not in ("none", "same-origin"):
        # Without TLS browsers do not say which page it was, and send the password all the same.
        raise Forbidden("Here programs send their token as `Authorization: Bearer …`.", 403)


class Authenticator(Protocol):
    """One way to tell who asks."""

    async def user(self, handler: RequestHandler) -> User:
        """Return who asks. Raises NotAllowed."""

    def made(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler with whatever it needs so that it can be guarded."""

    def routes(self, base_url: str) -> list[Any]:
        """Return the routes that logging in needs."""

    def cookie_secret(self) -> bytes | None:
        """Return what cookies are signed with, None if there are none."""


class NoAuth:
    """Everybody may ask."""

    async def user(self, handler: RequestHandler) -> User:
        """Return nobody in particular, who may do everything."""
        return User(None, admin=True)

    def made(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return it as it is."""
        return handler

    def routes(self, base_url: str) -> list[Any]:
        """Return none."""
        return []

    def cookie_secret(self) -> bytes | None:
        """Return None."""
        return None


class TokenAuth(NoAuth):
    """Who has a token may ask, under its name."""

    def __init__(self, tokens: Mapping[str, SecretStr], admins: Collection[str] = ()) -> None:
        """Take tokens by name. Raises ConfigurationError when there are none, or an empty one."""
        if not tokens or not all(token.get_secret_value().strip() for token in tokens.values()):
            raise ConfigurationError(
                'RABBIT2DOCKER_HUB__AUTH=tokens needs RABBIT2DOCKER_HUB__TOKENS={"name": "token", …}, none of them empty.'
            )
        self._digests = {name: _digest(token.get_secret_value()) for name, token in tokens.items()}
        self._admins = frozenset(admins)

    async def user(self, handler: RequestHandler) -> User:
        """Return whose token it is. Raises NotAllowed."""
        header = handler.request.headers.get("Authorization", "")
        basic = _basic(header)
        match = _HEADER.fullmatch(header)
        if basic is None and match is None:
            raise Forbidden("A token is needed: `Authorization: Bearer …`.", 403, challenge=_CHALLENGE)
        claimed, token = basic or (None, match[1] if match else "")
        given = _digest(token)
        # All are compared, so that the time says nothing.
        found = [name for name, digest in self._digests.items() if hmac.compare_digest(given, digest)]
        if not found or (claimed is not None and claimed not in found):
            raise Forbidden("This token is not known here.", 403, challenge=_CHALLENGE)
        name = claimed or found[0]
        return User(name[:NAME_CHARACTERS], admin=name in self._admins, by_browser=basic is not None)


def _basic(header: str) -> tuple[str, str] | None:
    """Return the name and the token of HTTP Basic, which is what browsers can send to pages."""
    if not (match := _BASIC.fullmatch(header)):
        return None
    try:
        name, separator, token = base64.b64decode(match[1], validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, token) if separator else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


class JupyterHubAuth:
    """Users and services of the hub may ask if they have the scope to access this service."""

    def __init__(self, base_url: str, admins: Collection[str] = ()) -> None:
        """Read what JupyterHub gives its services in the environment. Raises ConfigurationError.

        `admins`: who is one beside the administrators of the hub.
        """
        try:
            from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
        except ImportError as error:
            raise ConfigurationError(
                f"The service for a JupyterHub needs {error.name}: pip install 'rabbit2docker[hub]'."
            ) from error
        # Addresses are written into logs: a token in one is none, not even where a header speaks of a websocket.
        without = type("WithoutTokensInAddresses", (HubOAuth,), {"_get_token_url": lambda self, handler: ""})
        self._hub_auth: Any = without(base_url=base_url)
        self._admins = frozenset(admins)
        self._mixin: type = HubOAuthenticated
        self._callback: type[RequestHandler] = HubOAuthCallbackHandler
        if not self._hub_auth.api_token:
            raise ConfigurationError(
                "There is no JUPYTERHUB_API_TOKEN: register this as a service of the JupyterHub, or set "
                "RABBIT2DOCKER_HUB__AUTH to tokens or none."
            )
        if not self._hub_auth.access_scopes:
            # Without any, jupyterhub would let in everybody whom the hub knows.
            raise ConfigurationError(
                "JUPYTERHUB_SERVICE_NAME must say the name under which the JupyterHub has this service."
            )

    async def user(self, handler: RequestHandler) -> User:
        """Return the user or service. Raises NotAllowed."""
        from jupyterhub.services.auth import UserNotAllowed

        guarded: Any = handler
        try:
            model = await self._hub_auth.get_user(handler, sync=False)
        except HTTPError as error:
            raise Forbidden(
                "JupyterHub does not answer who you are. Please try again.", error.status_code
            ) from error
        try:
            user = guarded.check_hub_user(model) if model else None
        except UserNotAllowed as error:
            guarded._hub_auth_user_cache = None
            raise Forbidden(f"{model['name']} may not use this service.", 403) from error
        # Where jupyterhub's own code looks before it asks the hub, blocking everybody.
        guarded._hub_auth_user_cache = user
        if user is None:
            message = "Log in to JupyterHub, or send a token: `Authorization: Bearer …`."
            if handler.request.method not in SAFE_METHODS and self._hub_auth._get_token_cookie(handler):
                message = (
                    "Send the value of the cookie `_xsrf` as `X-Xsrftoken`, or log in to JupyterHub again."
                )
            raise Forbidden(message, 403, login_url=self._login_url(guarded))
        name = str(user["name"])
        by_browser = not getattr(handler, "_token_authenticated", False)
        admin = user.get("admin") is True or name in self._admins
        return User(name[:NAME_CHARACTERS], admin=admin, by_browser=by_browser)

    @staticmethod
    def _login_url(handler: Any) -> str | None:
        """Return where to log in, for somebody who has come with a browser to look at a page."""
        # Making it sets a cookie, so it is not made for programs.
        return (
            str(handler.get_login_url()) if "text/html" in handler.request.headers.get("Accept", "") else None
        )

    def made(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler with jupyterhub's own methods for logins, scopes and XSRF in front."""
        return type(f"Hub{handler.__name__}", (self._mixin, handler), {"_hub_auth": self._hub_auth})

    def routes(self, base_url: str) -> list[Any]:
        """Return where the hub sends people back to after they have logged in."""
        callback = type(
            "Callback", (self._callback,), {"_hub_auth": self._hub_auth, "prepare": _known_before}
        )
        return [(f"{re.escape(base_url)}oauth_callback", callback)]

    def cookie_secret(self) -> bytes | None:
        """Return the same for all instances and after restarts, so that people stay logged in."""
        token = str(self._hub_auth.api_token).encode()
        return hmac.digest(token, b"rabbit2docker hub cookies", "sha256")


async def _known_before(handler: Any) -> None:
    """Find out who asks before jupyterhub's code needs it: it would block everybody for as long as the hub takes."""
    model = await handler.hub_auth.get_user(handler, sync=False)
    handler._hub_auth_user_cache = model


def make_authenticator(settings: HubSettings, base_url: str) -> Authenticator:
    """Return the guard that the settings name. Raises ConfigurationError."""
    match settings.auth:
        case HubAuth.NONE:
            return NoAuth()
        case HubAuth.TOKENS:
            return TokenAuth(settings.tokens, settings.admins)
        case HubAuth.JUPYTERHUB:
            return JupyterHubAuth(base_url, settings.admins)
