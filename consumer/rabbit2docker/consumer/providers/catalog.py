"""All providers by prefix, and the specs that the operator allows."""

from collections.abc import Callable
from typing import Final

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.providers.base import Provider, Repository
from rabbit2docker.consumer.providers.ckan import CkanProvider
from rabbit2docker.consumer.providers.dataverse import DataverseProvider
from rabbit2docker.consumer.providers.figshare import FigshareProvider
from rabbit2docker.consumer.providers.gh import GitHubProvider
from rabbit2docker.consumer.providers.gist import GistProvider
from rabbit2docker.consumer.providers.git import GitProvider
from rabbit2docker.consumer.providers.gl import GitLabProvider
from rabbit2docker.consumer.providers.hydroshare import HydroshareProvider
from rabbit2docker.consumer.providers.spec_rules import SpecRules
from rabbit2docker.consumer.providers.specs import unknown_provider
from rabbit2docker.consumer.providers.zenodo import ZenodoProvider
from rabbit2docker.settings import ProviderSettings

_PROVIDERS: Final[tuple[Callable[..., Provider], ...]] = (
    GitHubProvider,
    GitProvider,
    GistProvider,
    GitLabProvider,
    ZenodoProvider,
    FigshareProvider,
    HydroshareProvider,
    DataverseProvider,
    CkanProvider,
)
"""One class per descriptor."""


def connect_apps(
    credentials: GitCredentials,
    settings: ProviderSettings,
    session: aiohttp.ClientSession,
    breakers: Breakers | None = None,
) -> None:
    """Let credentials have tokens of GitHub Apps, if a tenant has one."""
    if credentials.have_apps:
        # The library for their signatures takes its time to load.
        from rabbit2docker.consumer.providers.github_app import InstallationTokens

        credentials.use_apps(InstallationTokens(settings, session, breakers))


class Providers:
    """The providers, each with its settings."""

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
        credentials: GitCredentials | None = None,
    ) -> None:
        """Create all providers; without `session` they can check and pin, but not resolve.

        Raises ConfigurationError when a pattern for specs is not a regular expression.
        """
        providers = [make(settings, session, breakers) for make in _PROVIDERS]
        self._providers = {provider.prefix: provider for provider in providers}
        if credentials is not None:
            self._providers[GitProvider.prefix] = GitProvider(
                settings, session, breakers, ssh_hosts=credentials.ssh_hosts()
            )
        self._rules = SpecRules(settings)

    def get(self, prefix: str) -> Provider:
        """Return the provider. Raises RequestRejected(UNKNOWN_PROVIDER), which lists the existing ones."""
        if provider := self._providers.get(prefix):
            return provider
        raise unknown_provider(prefix)

    def use_rules(self, rules: SpecRules) -> None:
        """Apply other rules from the next request on."""
        self._rules = rules

    def check_allowed(self, prefix: str, spec: str) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when the operator does not allow builds of a spec."""
        self._rules.check_allowed(prefix, spec)

    def check_resolved(self, repository: Repository) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when the operator does not allow what a spec stands for."""
        self._rules.check_resolved(repository)
