"""The grammar of the specs of git repositories, and the names that follow from a spec and a version.

Without any I/O, and without the settings and the HTTP client, whose imports take long: the command `name` needs this
module only.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote

from rabbit2docker.consumer.providers import datasets
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, shown, split_url, with_escaped_blanks
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import GITHUB, GITLAB, HEAD, PROVIDERS, in_words
from rabbit2docker_schemas.reasons import RejectReason

_GITHUB_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]+")
_GIST_ID: Final = re.compile(r"[0-9a-fA-F]+")
_GITLAB_NAME: Final = re.compile(r"(?![-.])[\w.-]+", re.ASCII)
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


@dataclass(frozen=True, slots=True)
class GistSpec:
    """`<user>/<id>[/<ref>]`; without a ref, the newest version."""

    user: str
    gist_id: str
    ref: str

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC)."""
        parts = spec.rstrip("/").split("/")
        if len(parts) not in (2, 3):
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f'The spec of a gist must have the form "user/id" or "user/id/version", not {spec!r}.',
            )
        user, gist_id = parts[0], parts[1].removesuffix(".git")
        if not _GITHUB_NAME.fullmatch(user) or not _GIST_ID.fullmatch(gist_id):
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f"{spec!r} names no gist: the id of a gist consists of the digits 0-9 and a-f, and stands after its user.",
            )
        return cls(user, gist_id, unquote(parts[2]) if len(parts) == 3 else HEAD)


@dataclass(frozen=True, slots=True)
class GitLabSpec:
    """`<url-escaped namespace>/<url-escaped ref>`."""

    namespace: str
    ref: str

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC)."""
        escaped, _, escaped_ref = spec.rstrip("/").partition("/")
        namespace, ref = unquote(escaped).strip("/").removesuffix(".git"), unquote(escaped_ref)
        if not ref:
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f'An unresolved ref is required: {spec!r} does not have the form "<url-escaped project>/<ref>", such as '
                "group%2Fproject/HEAD.",
            )
        names = namespace.split("/")
        if len(names) < 2:
            hint = f"{namespace}%2F{ref.replace('/', '%2F', ref.count('/') - 1)}"
            advice = f' Did you mean "{hint}"?' if "/" in ref else ""
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f"{namespace!r} is no project of GitLab: its group or user is missing, with %2F between the two.{advice}",
            )
        if wrong := [name for name in names if not _GITLAB_NAME.fullmatch(name)]:
            raise RequestRejected(
                RejectReason.INVALID_SPEC,
                f"{wrong[0]!r} cannot be a group or a project of GitLab: only letters, digits, dots, hyphens and "
                "underscores are allowed.",
            )
        return cls(namespace, ref)


def pin(prefix: str, spec: str, ref: str, *, hosts: Mapping[str, str]) -> Repository:
    """Return the repository of a spec at version `ref`, which is not verified; `hosts` by provider.

    Raises RequestRejected(UNKNOWN_PROVIDER, INVALID_SPEC or REFUSED_URL).
    """
    if prefix in _PINNED_ON_A_HOST:
        function, default = _PINNED_ON_A_HOST[prefix]
        return function(spec, ref, hosts.get(prefix, default))
    if function_of := _PINNED.get(prefix):
        return function_of(spec, ref)
    raise unknown_provider(prefix)


def pin_github(spec: str, ref: str, hostname: str) -> Repository:
    """Return the GitHub repository of a spec at version `ref`."""
    parsed = GitHubSpec.parse(spec)
    repo_url = f"https://{hostname}/{parsed.path}"
    return Repository(
        provider="gh",
        spec=spec,
        repo_url=repo_url,
        resolved_ref=ref,
        build_slug=f"{parsed.owner}-{parsed.name}",
        content_provider="Git",
        display_name=parsed.path,
        resolved_spec=f"{parsed.path}/{ref}",
        ref_url=f"{repo_url}/tree/{ref}",
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
        resolved_spec=f"{spec.partition('/')[0]}/{ref}",
        ref_url=url,
    )


def pin_gist(spec: str, ref: str, hostname: str) -> Repository:
    """Return the gist of a spec at version `ref`; its build slug has no user, as in BinderHub."""
    parsed = GistSpec.parse(spec)
    return Repository(
        provider="gist",
        spec=spec,
        repo_url=f"https://{hostname}/{parsed.user}/{parsed.gist_id}.git",
        resolved_ref=ref,
        build_slug=parsed.gist_id,
        content_provider="Git",
        display_name=f"{parsed.user}/{parsed.gist_id}",
        resolved_spec=f"{parsed.user}/{parsed.gist_id}/{ref}",
        ref_url=f"https://{hostname}/{parsed.user}/{parsed.gist_id}/{ref}",
    )


def pin_gitlab(spec: str, ref: str, hostname: str) -> Repository:
    """Return the GitLab project of a spec at version `ref`."""
    namespace = GitLabSpec.parse(spec).namespace
    return Repository(
        provider="gl",
        spec=spec,
        repo_url=f"https://{hostname}/{namespace}.git",
        resolved_ref=ref,
        build_slug="-".join(part.replace("-", "_-") for part in namespace.split("/")),
        content_provider="Git",
        display_name=namespace,
        resolved_spec=f"{quote(namespace, safe='')}/{ref}",
        ref_url=f"https://{hostname}/{namespace}/tree/{ref}",
    )


_PINNED_ON_A_HOST: Final[Mapping[str, tuple[Callable[[str, str, str], Repository], str]]] = {
    "gh": (pin_github, GITHUB),
    "gist": (pin_gist, f"gist.{GITHUB}"),
    "gl": (pin_gitlab, GITLAB),
}
_PINNED: Final[Mapping[str, Callable[[str, str], Repository]]] = {
    "git": pin_git,
    "zenodo": datasets.pin_zenodo,
    "figshare": datasets.pin_figshare,
    "dataverse": datasets.pin_dataverse,
    "hydroshare": datasets.pin_hydroshare,
    "ckan": datasets.pin_ckan,
}


def unknown_provider(prefix: str) -> RequestRejected:
    """Return the error for a prefix without a provider, which lists the existing ones."""
    return RequestRejected(
        RejectReason.UNKNOWN_PROVIDER,
        f"There is no provider {prefix!r}. There are {in_words(sorted(PROVIDERS))}.",
    )
