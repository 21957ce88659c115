"""BinderHub's build tokens: whoever serves a form says that its build is one of theirs.

A token is a JWT (HS256) for one provider and spec, made for pages of one origin, and valid for minutes. It says nothing
about who asks: it lifts the limit on requests and nothing else. A hub's own code makes one with `mint`:

    from rabbit2docker.hub.web.build_tokens import mint

    token = mint(secret, "gh", "binder-examples/requirements/HEAD", origin="hub.example.org")
    address = f"build/gh/binder-examples/requirements/HEAD?build_only=true&build_token={token}"
"""

import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import jwt
from pydantic import SecretStr

from rabbit2docker.errors import ConfigurationError

VALID_SECONDS: Final = 300.0
"""What BinderHub gives its own."""
SECRET_BYTES: Final = 32
"""A shorter key than HS256's own digest could be guessed (RFC 7518, 3.2)."""
_ALGORITHM: Final = "HS256"
_CLAIMS: Final = ["exp", "aud", "origin"]


class InvalidBuildToken(Exception):
    """A build token is none, or for something else, or too old."""


def read_secret(secret: SecretStr | str) -> bytes:
    """Return the key that a hexadecimal secret stands for. Raises ConfigurationError that does not show it."""
    text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < SECRET_BYTES:
        raise ConfigurationError(
            f"RABBIT2DOCKER_HUB__BUILD_TOKEN_SECRET must be {SECRET_BYTES} bytes or more in hexadecimal, "
            f"such as `openssl rand -hex {SECRET_BYTES}` prints."
        )
    return key


def audience_of(provider: str, spec: str) -> str:
    """Return what a token is for: the address of the build, with the spec as it is written there, escapes included."""
    return f"{provider}/{spec}"


def origin_of(headers: Mapping[str, str]) -> str:
    """Return the origin of whoever asks, as host[:port]: that of the page, or else the one that was asked."""
    origin = headers.get("Origin")
    return headers.get("Host", "") if origin is None else urlsplit(origin).netloc


def mint(
    secret: SecretStr | str, provider: str, spec: str, *, origin: str, valid_seconds: float = VALID_SECONDS
) -> str:
    """Return a build token for pages of `origin`, which is host[:port] without a scheme.

    `spec` is escaped as it will be in the address. Raises ConfigurationError for a secret that cannot be one.
    """
    claims = {
        "aud": audience_of(provider, spec),
        "origin": origin,
        "exp": int(time.time() + valid_seconds),
    }
    return jwt.encode(claims, key=read_secret(secret), algorithm=_ALGORITHM)


class BuildTokens:
    """Checks tokens."""

    def __init__(self, secret: SecretStr | None) -> None:
        """Take the secret; without one no token is valid. Raises ConfigurationError for one that cannot be one."""
        self._key = None if secret is None else read_secret(secret)

    def check(self, token: str, provider: str, spec: str, origin: str) -> None:
        """Raise InvalidBuildToken unless the token is for this build, asked for from this origin."""
        if self._key is None:
            raise InvalidBuildToken("There is no secret.")
        try:
            claims = jwt.decode(
                token,
                key=self._key,
                audience=audience_of(provider, spec),
                algorithms=[_ALGORITHM],
                options={"require": _CLAIMS},
            )
        except jwt.InvalidTokenError as error:
            raise InvalidBuildToken(type(error).__name__) from error
        if not origin or claims["origin"] != origin:
            raise InvalidBuildToken("It was made for another origin.")
