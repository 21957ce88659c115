"""Authentication and authorization: open to all, by token, or by JupyterHub."""

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
from rabbit2docker.hub.web.errors import Forbidden
from rabbit2docker.settings import HubAuth, HubSettings

NAME_CHARACTERS: Final = 256
"""The limit of a request's `requester`."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADER = re.compile(r"(?:token|bearer)\s+(\S+)\s*", re.IGNORECASE)
_BASIC = re.compile(r"basic\s+([A-Za-z0-9+/=]+)\s*", re.IGNORECASE)
_CHALLENGE: Final = 'Basic realm="builds", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class User:
    """The client of a request."""

    name: str | None
    """None without authentication."""
    admin: bool = False
    """May see and cancel all builds."""
    is_service: bool = False
    """A program with an account of its own, not a person."""
    acts_for_people: bool = False
    """A service that may name the person it requests a build for."""
    by_browser: bool = False
    """Identified by what a browser attaches to any page's requests: a cookie, or a remembered password."""

    def can_view(self, build: Build) -> bool:
        """Return whether this user may see a build; to all others it does not exist."""
        return self.admin or self.acts_for_people or (self.name is not None and self.name in build.requesters)

    def can_cancel(self, build: Build) -> bool:
        """Return whether this user may cancel a build: an admin, or its only requester or a service that acts for them."""
        requesters = set(build.requesters)
        is_own = requesters == {self.name} or (self.acts_for_people and len(requesters) == 1)
        return self.admin or (self.name is not None and is_own)

    def acting_for(self, requester: str | None) -> "User":
        """Return the person that this client names as the requester of a build, itself without a name.

        Limits then count for that person. Raises Forbidden unless the client is a service that acts for people.
        """
        if not requester or requester == self.name:
            return self
        if not self.acts_for_people:
            raise Forbidden(
                "Only a service that acts for people may name a `requester`. Ask the operator to make the service an "
                "administrator of the JupyterHub, or to list it in RABBIT2DOCKER_HUB__SERVICES.",
                403,
            )
        return User(requester)


def check_origin(handler: RequestHandler) -> None:
    """Raise Forbidden if the browser says that a page of another site makes the request."""
    site = handler.request.headers.get("Sec-Fetch-Site")
    origin = handler.request.headers.get("Origin")
    if origin is not None and origin == handler.settings.get("allow_origin"):
        return
    if site is None and origin is not None:
        # Browsers send Sec-Fetch-Site over TLS only.
        site = "same-origin" if urlsplit(origin).netloc == handler.request.host else "cross-site"
    if site not in (None, "none", "same-origin"):
        raise Forbidden("Pages of other sites are not allowed to do this.", 403)


def check_browser(handler: RequestHandler, user: User) -> None:
    """Raise Forbidden if a page of another site may be behind a GET that starts a build."""
    site = handler.request.headers.get("Sec-Fetch-Site")
    if user.by_browser and site not in (None, "none", "same-origin", "same-site"):
        raise Forbidden("Pages of other sites are not allowed to request builds.", 403)
    is_basic = _BASIC.fullmatch(handler.request.headers.get("Authorization", "")) is not None
    if is_basic and site not in ("none", "same-origin"):
        # Without TLS browsers do not name the page, but send the remembered password all the same.
        raise Forbidden("Programs must send their token as `Authorization: Bearer …`.", 403)


class Authenticator(Protocol):
    """One way to identify the client of a request."""

    async def user(self, handler: RequestHandler) -> User:
        """Return the client. Raises Forbidden."""

    def wrap(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler class with the mixins that authentication needs."""

    def routes(self, base_url: str) -> list[Any]:
        """Return the routes that logging in needs."""

    def cookie_secret(self) -> bytes | None:
        """Return the key that signs cookies; None if there are no cookies."""


class NoAuth:
    """No authentication: every client is an admin without a name."""

    async def user(self, handler: RequestHandler) -> User:
        """Return a nameless admin."""
        return User(None, admin=True)

    def wrap(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler class unchanged."""
        return handler

    def routes(self, base_url: str) -> list[Any]:
        """Return no routes."""
        return []

    def cookie_secret(self) -> bytes | None:
        """Return None."""
        return None


class TokenAuth(NoAuth):
    """Authentication by tokens from the settings; the client gets the name of its token."""

    def __init__(
        self,
        tokens: Mapping[str, SecretStr],
        admins: Collection[str] = (),
        services: Collection[str] = (),
    ) -> None:
        """Take tokens by name, and which names are admins or services that act for people.

        Raises ConfigurationError if there are no tokens, or if one is empty.
        """
        if not tokens or not all(token.get_secret_value().strip() for token in tokens.values()):
            raise ConfigurationError(
                'RABBIT2DOCKER_HUB__AUTH=tokens needs RABBIT2DOCKER_HUB__TOKENS={"name": "token", …}, none of them empty.'
            )
        self._digests = {name: _digest(token.get_secret_value()) for name, token in tokens.items()}
        self._admins = frozenset(admins)
        self._services = frozenset(services)

    async def user(self, handler: RequestHandler) -> User:
        """Return the owner of the token. Raises Forbidden."""
        header = handler.request.headers.get("Authorization", "")
        basic = _basic(header)
        match = _HEADER.fullmatch(header)
        if basic is None and match is None:
            raise Forbidden("A token is required: `Authorization: Bearer …`.", 403, challenge=_CHALLENGE)
        claimed, token = basic or (None, match[1] if match else "")
        given = _digest(token)
        # Compare with all of them, so that the time taken reveals nothing.
        found = [name for name, digest in self._digests.items() if hmac.compare_digest(given, digest)]
        if not found or (claimed is not None and claimed not in found):
            raise Forbidden("This token is not valid.", 403, challenge=_CHALLENGE)
        name = claimed or found[0]
        is_service = name in self._services
        return User(
            name[:NAME_CHARACTERS],
            admin=name in self._admins,
            is_service=is_service,
            acts_for_people=is_service,
            by_browser=basic is not None,
        )


def _basic(header: str) -> tuple[str, str] | None:
    """Return name and token of HTTP Basic, the one scheme that browsers can use for pages."""
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
    """Authentication by JupyterHub: users and services need the scope to access this service."""

    def __init__(self, base_url: str, admins: Collection[str] = (), services: Collection[str] = ()) -> None:
        """Read the environment that JupyterHub gives its services. Raises ConfigurationError.

        `admins`: admins in addition to those of the hub; `services`: services that act for people, in addition to those
        that are admins.
        """
        try:
            from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
        except ImportError as error:
            raise ConfigurationError(
                f"The service for a JupyterHub needs {error.name}: pip install 'rabbit2docker[hub]'."
            ) from error
        # URLs end up in logs, so a token in a URL is ignored, even where a header claims a websocket.
        hub_auth = type("HubOAuthWithoutUrlTokens", (HubOAuth,), {"_get_token_url": lambda self, handler: ""})
        self._hub_auth: Any = hub_auth(base_url=base_url)
        self._admins = frozenset(admins)
        self._services = frozenset(services)
        self._mixin: type = HubOAuthenticated
        self._callback: type[RequestHandler] = HubOAuthCallbackHandler
        if not self._hub_auth.api_token:
            raise ConfigurationError(
                "JUPYTERHUB_API_TOKEN is not set. Register this program as a service of the JupyterHub, or set "
                "RABBIT2DOCKER_HUB__AUTH to tokens or none."
            )
        if not self._hub_auth.access_scopes:
            # Without any scope, jupyterhub would let in every user of the hub.
            raise ConfigurationError(
                "JUPYTERHUB_SERVICE_NAME is not set. Set it to the name that this service has in JupyterHub."
            )

    async def user(self, handler: RequestHandler) -> User:
        """Return the user or service. Raises Forbidden."""
        from jupyterhub.services.auth import UserNotAllowed

        wrapped: Any = handler
        try:
            model = await self._hub_auth.get_user(handler, sync=False)
        except HTTPError as error:
            raise Forbidden(
                "JupyterHub could not identify you. Please try again.", error.status_code
            ) from error
        try:
            user = wrapped.check_hub_user(model) if model else None
        except UserNotAllowed as error:
            wrapped._hub_auth_user_cache = None
            raise Forbidden(f"{model['name']} is not allowed to use this service.", 403) from error
        # jupyterhub's own code looks here first; otherwise it would ask the hub and block the event loop.
        wrapped._hub_auth_user_cache = user
        if user is None:
            message = "Log in to JupyterHub, or send a token: `Authorization: Bearer …`."
            if handler.request.method not in SAFE_METHODS and self._hub_auth._get_token_cookie(handler):
                message = (
                    "Send the value of the cookie `_xsrf` as `X-Xsrftoken`, or log in to JupyterHub again."
                )
            raise Forbidden(message, 403, login_url=self._login_url(wrapped))
        name = str(user["name"])
        by_browser = not getattr(handler, "_token_authenticated", False)
        admin = user.get("admin") is True or name in self._admins
        is_service = user.get("kind") == "service"
        return User(
            name[:NAME_CHARACTERS],
            admin=admin,
            is_service=is_service,
            acts_for_people=is_service and (admin or name in self._services),
            by_browser=by_browser,
        )

    @staticmethod
    def _login_url(handler: Any) -> str | None:
        """Return the URL of the login, for browsers only."""
        # Making the URL sets a cookie, so programs get none.
        return (
            str(handler.get_login_url()) if "text/html" in handler.request.headers.get("Accept", "") else None
        )

    def wrap(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler class with jupyterhub's mixin for logins, scopes and XSRF checks."""
        return type(f"Hub{handler.__name__}", (self._mixin, handler), {"_hub_auth": self._hub_auth})

    def routes(self, base_url: str) -> list[Any]:
        """Return the OAuth callback, to which the hub redirects after a login."""
        callback = type(
            "Callback", (self._callback,), {"_hub_auth": self._hub_auth, "prepare": _prefetch_user}
        )
        return [(f"{re.escape(base_url)}oauth_callback", callback)]

    def cookie_secret(self) -> bytes | None:
        """Return a key that is the same in all instances and after restarts, so that logins last."""
        token = str(self._hub_auth.api_token).encode()
        return hmac.digest(token, b"rabbit2docker hub cookies", "sha256")


async def _prefetch_user(handler: Any) -> None:
    """Look up the user without blocking; jupyterhub's own code would block the event loop."""
    model = await handler.hub_auth.get_user(handler, sync=False)
    handler._hub_auth_user_cache = model


def make_authenticator(settings: HubSettings, base_url: str) -> Authenticator:
    """Return the authenticator that the settings name. Raises ConfigurationError."""
    match settings.auth:
        case HubAuth.NONE:
            return NoAuth()
        case HubAuth.TOKENS:
            return TokenAuth(settings.tokens, settings.admins, settings.services)
        case HubAuth.JUPYTERHUB:
            return JupyterHubAuth(base_url, settings.admins, settings.services)
