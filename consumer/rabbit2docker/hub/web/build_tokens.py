"""BinderHub's build tokens, with which a server vouches for builds that its own form requests.

A token is a JWT (HS256) for one provider and spec, made for pages of one origin, and valid for minutes. It does not
identify the user; it lifts the rate limit and nothing else. A hub's own code makes one with `mint`:

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
"""BinderHub's value."""
SECRET_BYTES: Final = 32
"""A shorter key than HS256's own digest could be guessed (RFC 7518, 3.2)."""
_ALGORITHM: Final = "HS256"
_CLAIMS: Final = ["exp", "aud", "origin"]


class InvalidBuildToken(Exception):
    """A build token is malformed, expired, or made for something else."""


def read_secret(secret: SecretStr | str) -> bytes:
    """Decode a hexadecimal secret. Raises ConfigurationError that does not show it."""
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
    """Return the JWT's audience: provider and spec as they stand in the URL, escapes included."""
    return f"{provider}/{spec}"


def origin_of(headers: Mapping[str, str]) -> str:
    """Return the origin as host[:port]: that of the page, or else the host that the request was sent to."""
    origin = headers.get("Origin")
    return headers.get("Host", "") if origin is None else urlsplit(origin).netloc


def mint(
    secret: SecretStr | str, provider: str, spec: str, *, origin: str, valid_seconds: float = VALID_SECONDS
) -> str:
    """Return a build token for pages of `origin`, which is host[:port] without a scheme.

    `spec` is escaped as in the URL. Raises ConfigurationError for an invalid secret.
    """
    claims = {
        "aud": audience_of(provider, spec),
        "origin": origin,
        "exp": int(time.time() + valid_seconds),
    }
    return jwt.encode(claims, key=read_secret(secret), algorithm=_ALGORITHM)


class BuildTokens:
    """Checks build tokens."""

    def __init__(self, secret: SecretStr | None) -> None:
        """Take the secret; without one no token is valid. Raises ConfigurationError for an invalid one."""
        self._key = None if secret is None else read_secret(secret)

    def check(self, token: str, provider: str, spec: str, origin: str) -> None:
        """Raise InvalidBuildToken unless the token is for this build and this origin."""
        if self._key is None:
            raise InvalidBuildToken("No secret is configured.")
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
