"""Refuses requests for a provider that this version does not have, with BinderHub's sentence."""

from rabbit2docker.hub.web.auth import HttpError
from rabbit2docker_schemas.providers import AVAILABLE, in_words


class NoProvider(HttpError):
    """No provider has this prefix."""


def check_provider(prefix: str) -> None:
    """Raise NoProvider, which names the available providers; such a request is not even published."""
    if prefix not in AVAILABLE:
        raise NoProvider(
            f"No provider found for prefix {prefix[:64]}. There are {in_words(list(AVAILABLE))}.", 404
        )
