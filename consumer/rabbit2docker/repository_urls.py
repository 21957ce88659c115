"""Which provider a repository's URL belongs to, as people paste it: one answer for the command line and the web."""

import re
from typing import Final
from urllib.parse import quote, urlsplit

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

HEAD: Final = "HEAD"
_GITHUB_SCP = re.compile(r"[\w-]+@([\w.-]+):(.+)")
_NOT_A_REPOSITORY = {"orgs", "settings", "topics", "marketplace", "features", "sponsors"}


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
