"""The spellings of a repository that one ban must cover."""

import posixpath
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, split_url
from rabbit2docker.consumer.providers.specs import GitHubSpec, GitSpec
from rabbit2docker.errors import RequestRejected

_PORTS: Final = {**DEFAULT_PORTS, "ssh": 22}


def spellings(prefix: str, spec: str, *, github_hostname: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of provider and spec that name the same repository, unescaped, and first the spec as written.

    Case is left to the patterns. No scheme, standard port, final dot of the host, repeated or escaped slash, login or
    `.git` evades a ban, nor does the other provider.
    """
    yield prefix, spec
    yield prefix, unquote(spec)
    try:
        if prefix == "gh":
            github = GitHubSpec.parse(spec)
            host, path, ref = github_hostname.lower(), f"/{github.path}", github.ref
        else:
            git = GitSpec.parse(spec)
            host, path = _place(git.url)
            ref = git.ref
    except RequestRejected:
        return  # such a request gets no build, whatever the operator allows
    for suffix in ("", ".git"):
        for scheme in _PORTS:
            yield "git", f"{scheme}://{host}{path}{suffix}/{ref}"
        if host == github_hostname.lower():
            yield "gh", f"{path[1:]}{suffix}/{ref}"


def _place(url: str) -> tuple[str, str]:
    """Return host, with a port that is not the standard one, and path of a repository."""
    parts = split_url(url)
    host = (parts.hostname or "").rstrip(".").removeprefix("www.")
    if parts.port not in (None, _PORTS.get(parts.scheme)):
        host = f"{host}:{parts.port}"
    path = posixpath.normpath("/" + unquote(parts.path).lstrip("/")).removesuffix(".git")
    return host, path
