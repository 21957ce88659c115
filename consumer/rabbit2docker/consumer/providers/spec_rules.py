"""The specs that the operator allows and bans."""

from urllib.parse import quote, unquote

from rabbit2docker.consumer.providers.bans import spellings
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.patterns import SpecPatterns
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason


class SpecRules:
    """Compares specs with `providers.allowed_specs` and `providers.banned_specs`."""

    def __init__(self, settings: ProviderSettings) -> None:
        """Compile the patterns. Raises ConfigurationError when one is not a regular expression."""
        self._hosts = settings.hosts
        self._banned = SpecPatterns("providers.banned_specs", settings.banned_specs)
        self._allowed = SpecPatterns("providers.allowed_specs", settings.allowed_specs)

    def check_allowed(self, prefix: str, spec: str) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when a banned pattern matches, or allowed ones exist and none does.

        Bans are matched with all spellings of the repository, also as another provider's: none must evade a ban.
        """
        if self._is_banned(prefix, spec):
            raise _not_allowed(prefix, spec)
        if self._allowed.has(prefix) and not self._allowed.match([(prefix, spec), (prefix, unquote(spec))]):
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"{prefix} {spec} is not among the repositories that the operator allows. Ask the operator to add it.",
            )

    def check_resolved(self, repository: Repository) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when what a spec stands for is banned.

        A DOI of all versions and the old name of a renamed repository are not spellings of it.
        """
        prefix, resolved = repository.provider, repository.resolved_spec
        address = f"{quote(repository.repo_url, safe='')}/{repository.resolved_ref}"
        if self._is_banned(prefix, resolved):
            raise _not_allowed(prefix, resolved)
        if repository.content_provider == "Git" and self._is_banned("git", address):
            raise _not_allowed("git", repository.repo_url)

    def _is_banned(self, prefix: str, spec: str) -> bool:
        return bool(self._banned) and self._banned.match(spellings(prefix, spec, hosts=self._hosts))


def _not_allowed(prefix: str, spec: str) -> RequestRejected:
    return RequestRejected(
        RejectReason.NOT_ALLOWED,
        f"The operator does not allow builds of {prefix} {spec}. Contact the operator for the reason.",
    )
