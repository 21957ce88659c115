"""The grammar of specs, and the names that follow from a spec and a version.

Without any I/O, and without the settings and the HTTP client, whose imports take long: the command `name` needs this
module only.
"""

import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, shown, split_url, with_escaped_blanks
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import AVAILABLE, HEAD, PROVIDERS, in_words
from rabbit2docker_schemas.reasons import RejectReason

_GITHUB_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]+")
_GIT_SCHEMES: Final = {*DEFAULT_PORTS, "ssh"}
_SCP_LIKE: Final = re.compile(r"([\w\-]+@[\w\-.]+):(.+)")


@dataclass(frozen=True, slots=True)
class GitHubSpec:
    """`<owner>/<repository>/<ref>`; the ref may hold slashes."""

    owner: str
    name: str
    ref: str

    @property
    def path(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC)."""
        parts = spec.rstrip("/").split("/", 2)
        if len(parts) != 3:
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f'The spec must have the form "owner/repository/ref", not {spec!r}.{_github_hint(parts)}',
            )
        owner, name = parts[0], parts[1].removesuffix(".git")
        if wrong := [part for part in (owner, name) if not _GITHUB_NAME.fullmatch(part)]:
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f"{wrong[0]!r} cannot be an owner or a repository on GitHub: only letters, digits, dots, hyphens and "
                "underscores are allowed.",
            )
        return cls(owner, name, unquote(parts[2]))


def _github_hint(parts: list[str]) -> str:
    """Return what a spec of too few parts may have meant."""
    if parts[-1] == HEAD:
        return " The owner is missing in front of the repository." if len(parts) == 2 else ""
    return f' Did you mean "{"/".join(parts)}/{HEAD}"?' if len(parts) == 2 else ""


def ref_hint(ref: str) -> str:
    """Return what a ref that does not exist may have meant, as a sentence; empty if there is nothing to suggest.

    Clients append `/HEAD` to what users paste, also where that names a version already.
    """
    shorter = ref.removesuffix(f"/{HEAD}")
    return f"Did you mean {shorter!r}? {HEAD} at the end is a version of its own." if shorter != ref else ""


@dataclass(frozen=True, slots=True)
class GitSpec:
    """`<url-escaped URL>/<url-escaped ref>`."""

    url: str
    ref: str

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC or REFUSED_URL)."""
        escaped_url, slash, escaped_ref = spec.rstrip("/").partition("/")
        if not slash or not escaped_url or not escaped_ref:
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f'{spec!r} does not have the form "<url-escaped address>/<ref>", such as '
                "https%3A%2F%2Fexample.org%2Frepository.git/HEAD.",
            )
        url = unquote(escaped_url)
        if scp_like := _SCP_LIKE.match(url):
            url = f"ssh://{scp_like[1]}/{scp_like[2]}"
        url = with_escaped_blanks(url)
        scheme = split_url(url).scheme
        if scheme not in _GIT_SCHEMES:
            raise RequestRejected(
                RejectReason.REFUSED_URL,
                f"{shown(url)} begins with `{scheme}:`, which requests may not use. Use an https:// address.",
            )
        return cls(url, unquote(escaped_ref))


def pin(prefix: str, spec: str, ref: str, *, github_hostname: str) -> Repository:
    """Return the repository of a spec at version `ref`, which is not verified.

    Raises RequestRejected(UNKNOWN_PROVIDER, INVALID_SPEC or REFUSED_URL).
    """
    match prefix:
        case "gh":
            return pin_github(spec, ref, github_hostname)
        case "git":
            return pin_git(spec, ref)
        case _:
            raise unknown_provider(prefix)


def pin_github(spec: str, ref: str, hostname: str) -> Repository:
    """Return the GitHub repository of a spec at version `ref`."""
    parsed = GitHubSpec.parse(spec)
    return Repository(
        provider="gh",
        spec=spec,
        repo_url=f"https://{hostname}/{parsed.path}",
        resolved_ref=ref,
        build_slug=f"{parsed.owner}-{parsed.name}",
        content_provider="Git",
        display_name=parsed.path,
    )


def pin_git(spec: str, ref: str) -> Repository:
    """Return the git repository of a spec at version `ref`; the build slug is the whole URL, as in BinderHub."""
    url = GitSpec.parse(spec).url
    return Repository(
        provider="git",
        spec=spec,
        repo_url=url,
        resolved_ref=ref,
        build_slug=url,
        content_provider="Git",
        display_name=url.partition("://")[2].rstrip("/").removesuffix(".git"),
    )


def unknown_provider(prefix: str) -> RequestRejected:
    """Return the error for a prefix without a provider, which lists the available ones."""
    what = (
        f"The provider {prefix!r} is not available in this version"
        if prefix in PROVIDERS
        else f"There is no provider {prefix!r}"
    )
    return RequestRejected(RejectReason.UNKNOWN_PROVIDER, f"{what}. There are {in_words(sorted(AVAILABLE))}.")
