"""All providers by prefix, what the operator lets them build, and which one a pasted URL belongs to."""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import aiohttp

from rabbit2docker.errors import ConfigurationError, RequestRejected
from rabbit2docker.providers.base import Provider
from rabbit2docker.providers.gh import GitHubProvider
from rabbit2docker.providers.git import GitProvider
from rabbit2docker.providers.refs import HEAD
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

NOT_YET: Final = ("gist", "gl", "zenodo", "figshare", "dataverse", "hydroshare", "ckan")
"""Prefixes that BinderHub has and this version has not."""

_GITHUB_SCP = re.compile(r"[\w-]+@([\w.-]+):(.+)")
_NOT_A_REPOSITORY = {"orgs", "settings", "topics", "marketplace", "features", "sponsors"}


class Providers:
    """The providers. Each reads its settings once."""

    def __init__(self, settings: ProviderSettings, session: aiohttp.ClientSession | None = None) -> None:
        """Make all providers; without `session` they can check and name, but not ask GitHub.

        Raises ConfigurationError when a pattern for specs is no regular expression.
        """
        made: tuple[Provider, ...] = (GitHubProvider(settings, session), GitProvider(settings, session))
        self._providers = {provider.prefix: provider for provider in made}
        self._banned = _compiled("banned_specs", settings.banned_specs)
        self._allowed = _compiled("allowed_specs", settings.allowed_specs)

    def get(self, prefix: str) -> Provider:
        """Return the provider. Raises RequestRejected(UNKNOWN_PROVIDER) that names those that exist."""
        if provider := self._providers.get(prefix):
            return provider
        existing = " and ".join(sorted(self._providers))
        what = (
            f"The provider {prefix!r} is not available in this version"
            if prefix in NOT_YET
            else f"There is no provider {prefix!r}"
        )
        raise RequestRejected(RejectReason.UNKNOWN_PROVIDER, f"{what}. There are {existing}.")

    def check_allowed(self, prefix: str, spec: str) -> None:
        """Raise RequestRejected(NOT_ALLOWED) when a banned pattern matches, or allowed ones exist and none does.

        Patterns of `git` and other specs that are escaped are matched with the spec as it is written and unescaped:
        a ban shall not be avoided with another spelling.
        """
        spellings = {spec, unquote(spec)}
        if any(pattern.match(text) for pattern in self._banned.get(prefix, ()) for text in spellings):
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"The operator does not allow builds of {prefix} {spec}. Ask them for the reason.",
            )
        allowed = self._allowed.get(prefix, ())
        if allowed and not any(pattern.match(text) for pattern in allowed for text in spellings):
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"{prefix} {spec} is not among the repositories that the operator allows. Ask them to add it.",
            )


def from_url(url: str, ref: str | None = None, *, github_hostname: str = "github.com") -> tuple[str, str]:
    """Return provider and spec for a repository's URL as people paste it, asking nobody.

    `ref` goes before a version that the URL names; without either it is HEAD. A version in `…/tree/…` is everything
    after it, as a branch may hold slashes. Raises RequestRejected(INVALID_SPEC).
    """
    url = url.strip()
    if not url:
        raise RequestRejected(
            RejectReason.INVALID_SPEC, "There is no address. Paste the URL of a repository."
        )
    if (found := _github_path(url, github_hostname)) is not None:
        owner, name, version = found
        return "gh", f"{owner}/{name}/{ref or version or HEAD}"
    return "git", f"{quote(url, safe='')}/{quote(ref or HEAD, safe='')}"


def _github_path(url: str, hostname: str) -> tuple[str, str, str | None] | None:
    """Return owner, repository and version of a GitHub URL, None for any other."""
    if scp_like := _GITHUB_SCP.fullmatch(url):
        host, path = scp_like[1], scp_like[2]
    else:
        try:
            parts = urlsplit(url)
            host, path = parts.hostname or "", parts.path
            if parts.port is not None or parts.scheme not in ("https", "http", "ssh", "git"):
                return None
            # A password in the address is refused by `git`, with words; it must not get lost here.
            if "@" in parts.netloc and parts.scheme != "ssh":
                return None
        except ValueError:
            return None
    if host.lower().removeprefix("www.") != hostname.lower():
        return None
    owner, name, kind, version = (*path.strip("/").split("/", 3), "", "", "", "")[:4]
    if not owner or not name or owner in _NOT_A_REPOSITORY:
        return None
    return owner, name.removesuffix(".git"), _version(kind, version)


def _version(kind: str, rest: str) -> str | None:
    match kind:
        case "tree" | "commit" | "commits":
            return rest or None
        case "blob":
            # The file's path cannot be told from the branch's: branches with a slash are the rarer case.
            return rest.partition("/")[0] or None
        case "pull":
            return f"refs/pull/{rest.partition('/')[0]}/head" if rest else None
        case "releases" if rest.startswith("tag/"):
            return f"refs/tags/{rest.removeprefix('tag/')}"
        case _:
            return None


def _compiled(name: str, patterns: dict[str, list[str]]) -> dict[str, list[re.Pattern[str]]]:
    return {prefix: [_compile(name, text) for text in texts] for prefix, texts in patterns.items()}


@lru_cache(maxsize=1024)
def _compile(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ConfigurationError(
            f"providers.{name} holds {text!r}, which is no regular expression: {error}."
        ) from error
