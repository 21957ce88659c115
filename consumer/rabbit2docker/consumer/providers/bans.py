"""The spellings of a repository that one ban must cover."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, unquote

from rabbit2docker.consumer.providers import datasets
from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, split_url
from rabbit2docker.consumer.providers.specs import GistSpec, GitHubSpec, GitLabSpec, GitSpec
from rabbit2docker.errors import RequestRejected

_PORTS: Final = {**DEFAULT_PORTS, "ssh": 22}


def spellings(prefix: str, spec: str, *, hosts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of provider and spec that name the same repository, unescaped, and first the spec as written.

    Case is left to the patterns. No scheme, standard port, final dot of the host, repeated or escaped slash, login or
    `.git` evades a ban, nor does another provider. `hosts`: by provider.
    """
    yield prefix, spec
    yield prefix, unquote(spec)
    try:
        if prefix in ("gh", "gist", "gl", "git"):
            yield from _of_git(*_git_place(prefix, spec, hosts), hosts)
        else:
            yield prefix, _dataset(prefix, spec)
    except RequestRejected:
        return  # such a request gets no build, whatever the operator allows


def repository_key(repo_url: str) -> str:
    """Return what is equal for the usual spellings of a repository's URL; of a dataset, its address."""
    try:
        host, path = _place(repo_url)
    except (RequestRejected, ValueError):
        return repo_url.lower()
    return f"{host}{path}".lower()


def _of_git(host: str, path: str, ref: str, hosts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for suffix in ("", ".git"):
        for scheme in _PORTS:
            yield "git", f"{scheme}://{host}{path}{suffix}/{ref}"
        for provider, own in hosts.items():
            if host == own.lower():
                yield provider, f"{path[1:]}{suffix}/{ref}"
        if host == hosts.get("gl", "").lower():
            yield "gl", f"{quote(path[1:], safe='')}{suffix}/{ref}"


def _git_place(prefix: str, spec: str, hosts: Mapping[str, str]) -> tuple[str, str, str]:
    """Return host, path and ref of a git repository."""
    match prefix:
        case "gh":
            github = GitHubSpec.parse(spec)
            return hosts["gh"].lower(), f"/{github.path}", github.ref
        case "gist":
            gist = GistSpec.parse(spec)
            return hosts["gist"].lower(), f"/{gist.user}/{gist.gist_id}", gist.ref
        case "gl":
            gitlab = GitLabSpec.parse(spec)
            return hosts["gl"].lower(), f"/{gitlab.namespace}", gitlab.ref
        case _:
            git = GitSpec.parse(spec)
            return *_place(git.url), git.ref


def _dataset(prefix: str, spec: str) -> str:
    """Return the spec of a dataset without what does not matter in it."""
    match prefix:
        case "hydroshare":
            return datasets.hydroshare_id(spec)
        case "ckan":
            parsed = datasets.CkanSpec.parse(spec)
            host, _ = _place(parsed.url)
            start = parsed.api.partition("://")[2].partition("/")[2].removesuffix("api/3/action")
            return f"https://{host}/{start}dataset/{parsed.dataset}"
        case _:
            return datasets.parse_doi(spec)


def _place(url: str) -> tuple[str, str]:
    """Return host, with a port that is not the standard one, and path of a repository."""
    parts = split_url(url)
    host = (parts.hostname or "").rstrip(".").removeprefix("www.")
    if parts.port not in (None, _PORTS.get(parts.scheme)):
        host = f"{host}:{parts.port}"
    path = posixpath.normpath("/" + unquote(parts.path).lstrip("/")).removesuffix(".git")
    return host, path
