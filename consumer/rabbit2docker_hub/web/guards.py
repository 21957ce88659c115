"""Who asks: nobody in particular, whoever has one of the operator's tokens, or a user of the JupyterHub."""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import SecretStr
from tornado.web import HTTPError, RequestHandler

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import HubAuth, HubSettings

_HEADER = re.compile(r"(?:token|bearer)\s+(\S+)\s*", re.IGNORECASE)


class NotAllowed(Exception):
    """Who asks may not, or cannot be told; says so in words for a person."""

    def __init__(self, message: str, status_code: int, *, login_url: str | None = None) -> None:
        """Take the message, what the status would be where errors have one, and where a person could log in."""
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.login_url = login_url


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str | None
    """None where nobody is asked who they are."""


class Guard(Protocol):
    """One way to tell who asks."""

    async def user(self, handler: RequestHandler) -> User:
        """Return who asks. Raises NotAllowed."""

    def made(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return the handler with whatever it needs so that it can be guarded."""

    def routes(self, base_url: str) -> list[Any]:
        """Return the routes that logging in needs."""

    def cookie_secret(self) -> bytes | None:
        """Return what cookies are signed with, None if there are none."""


class Open:
    """Everybody may ask."""

    async def user(self, handler: RequestHandler) -> User:
        """Return nobody in particular."""
        return User(None)

    def made(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        """Return it as it is."""
        return handler

    def routes(self, base_url: str) -> list[Any]:
        """Return none."""
        return []

    def cookie_secret(self) -> bytes | None:
        """Return None."""
        return None


class Tokens(Open):
    """Who has a token may ask, under its name."""

    def __init__(self, tokens: Mapping[str, SecretStr]) -> None:
        """Take tokens by name. Raises ConfigurationError when there are none, or an empty one."""
        if not tokens or not all(token.get_secret_value().strip() for token in tokens.values()):
            raise ConfigurationError(
                'RABBIT2DOCKER_HUB__AUTH=tokens needs RABBIT2DOCKER_HUB__TOKENS={"name": "token", …}, none of them empty.'
            )
        self._digests = {name: _digest(token.get_secret_value()) for name, token in tokens.items()}

    async def user(self, handler: RequestHandler) -> User:
        """Return whose token it is. Raises NotAllowed."""
        match = _HEADER.fullmatch(handler.request.headers.get("Authorization", ""))
        if match is None:
            raise NotAllowed("A token is needed: `Authorization: Bearer …`.", 403)
        given = _digest(match[1])
        # All are compared, so that the time says nothing.
        found = [name for name, digest in self._digests.items() if hmac.compare_digest(given, digest)]
        if not found:
            raise NotAllowed("This token is not known here.", 403)
        return User(found[0])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


class JupyterHub:
    """Users and services of the hub may ask if they have the scope to access this service."""

    def __init__(self, base_url: str) -> None:
        """Read what JupyterHub gives its services in the environment. Raises ConfigurationError."""
        # It comes with the hub's database, of which there is none here, and tells what it can do.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
        except ImportError as error:
            raise ConfigurationError(
                f"The service for a JupyterHub needs {error.name}: pip install 'rabbit2docker[hub]'."
            ) from error
        self._hub_auth: Any = HubOAuth(base_url=base_url)
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
            raise NotAllowed(
                "JupyterHub does not answer who you are. Please try again.", error.status_code
            ) from error
        try:
            user = guarded.check_hub_user(model) if model else None
        except UserNotAllowed as error:
            guarded._hub_auth_user_cache = None
            raise NotAllowed(f"{model['name']} may not use this service.", 403) from error
        # Where jupyterhub's own code looks before it asks the hub, blocking everybody.
        guarded._hub_auth_user_cache = user
        if user is None:
            message = "Log in to JupyterHub, or send a token: `Authorization: Bearer …`."
            raise NotAllowed(message, 403, login_url=self._login_url(guarded))
        return User(str(user["name"]))

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


def make_guard(settings: HubSettings, base_url: str) -> Guard:
    """Return the guard that the settings name. Raises ConfigurationError."""
    match settings.auth:
        case HubAuth.NONE:
            return Open()
        case HubAuth.TOKENS:
            return Tokens(settings.tokens)
        case HubAuth.JUPYTERHUB:
            return JupyterHub(base_url)
