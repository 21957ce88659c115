"""Maps a pasted repository URL to a provider and a spec, for the command line and the hub alike."""

import re
from typing import Final
from urllib.parse import quote, urlsplit

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import AVAILABLE, HEAD, ProviderDescriptor
from rabbit2docker_schemas.reasons import RejectReason

_SCP_LIKE: Final = re.compile(r"[\w-]+@([\w.-]+):(.+)")
_SCHEMES: Final = ("https", "http", "ssh", "git")


def from_url(url: str, ref: str | None = None, *, github_hostname: str = "github.com") -> tuple[str, str]:
    """Return provider and spec for a repository's URL, without contacting any host.

    The first available provider whose URL grammar matches is taken, else `git`. `ref` takes precedence over a
    version in the URL; without either it is HEAD. Raises RequestRejected(INVALID_SPEC) if the URL is empty.
    """
    url = url.strip()
    if not url:
        raise RequestRejected(
            RejectReason.INVALID_SPEC, "There is no address. Paste the URL of a repository."
        )
    host, path = _host_and_path(url)
    for provider in AVAILABLE.values():
        is_its_host = host is not None and host == _host_of(provider, github_hostname)
        if is_its_host and provider.url_grammar and (spec := provider.url_grammar.parse(path, ref)):
            return provider.prefix, spec
    return "git", f"{quote(url, safe='')}/{quote(ref or HEAD, safe='')}"


def _host_of(provider: ProviderDescriptor, github_hostname: str) -> str | None:
    host = github_hostname if provider.prefix == "gh" else provider.host
    return host and _plain(host)


def _host_and_path(url: str) -> tuple[str | None, str]:
    """Return host, lower-cased and without `www.`, and path; no host for URLs that only `git` may read."""
    if scp_like := _SCP_LIKE.fullmatch(url):
        return _plain(scp_like[1]), scp_like[2]
    try:
        parts = urlsplit(url)
        if parts.port is not None or parts.scheme not in _SCHEMES:
            return None, ""
    except ValueError:
        return None, ""
    # `git` refuses a password in an address with an explanation; a provider's spec would silently drop it.
    if "@" in parts.netloc and parts.scheme != "ssh":
        return None, ""
    return _plain(parts.hostname or ""), parts.path


def _plain(host: str) -> str:
    return host.lower().removeprefix("www.")
