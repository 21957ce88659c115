"""All providers by prefix, and the specs that the operator allows."""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.providers.bans import spellings
from rabbit2docker.consumer.providers.base import Provider
from rabbit2docker.consumer.providers.gh import GitHubProvider
from rabbit2docker.consumer.providers.git import GitProvider
from rabbit2docker.consumer.providers.specs import unknown_provider
from rabbit2docker.errors import ConfigurationError, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

_PROVIDERS: Final = (GitHubProvider, GitProvider)
"""One class per available descriptor."""


class Providers:
    """The providers, each with its settings."""

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Create all providers; without `session` they can check and pin, but not resolve.

        Raises ConfigurationError when a pattern for specs is not a regular expression.
        """
        self._providers: dict[str, Provider] = {
            provider.prefix: provider(settings, session, breakers) for provider in _PROVIDERS
        }
        self._github_hostname = settings.github_hostname
        self._banned = _compiled("banned_specs", settings.banned_specs)
        self._allowed = _compiled("allowed_specs", settings.allowed_specs)

    def get(self, prefix: str) -> Provider:
        """Return the provider. Raises RequestRejected(UNKNOWN_PROVIDER), which lists the existing ones."""
        if provider := self._providers.get(prefix):
            return provider
        raise unknown_provider(prefix)

    def check_allowed(self, prefix: str, spec: str) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when a banned pattern matches, or allowed ones exist and none does.

        Bans are matched with all spellings of the repository, also as another provider's: none must evade a ban.
        """
        if self._banned and any(
            pattern.match(text)
            for provider, text in spellings(prefix, spec, github_hostname=self._github_hostname)
            for pattern in self._banned.get(provider, ())
        ):
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"The operator does not allow builds of {prefix} {spec}. Contact the operator for the reason.",
            )
        allowed = self._allowed.get(prefix, ())
        if allowed and not any(pattern.match(text) for pattern in allowed for text in (spec, unquote(spec))):
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"{prefix} {spec} is not among the repositories that the operator allows. Ask the operator to add it.",
            )


def _compiled(name: str, patterns: dict[str, list[str]]) -> dict[str, list[re.Pattern[str]]]:
    return {prefix: [_compile(name, text) for text in texts] for prefix, texts in patterns.items()}


@lru_cache(maxsize=1024)
def _compile(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ConfigurationError(
            f"providers.{name} holds {text!r}, which is not a regular expression: {error}."
        ) from error
