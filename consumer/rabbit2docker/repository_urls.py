"""Maps a pasted repository URL or DOI to a provider and a spec, for the command line and the hub alike."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import HEAD, PROVIDERS, ProviderDescriptor, find_doi
from rabbit2docker_schemas.reasons import RejectReason

_SCP_LIKE: Final = re.compile(r"[\w-]+@([\w.-]+):(.+)")
_SCHEMES: Final = ("https", "http", "ssh", "git")
_WEB: Final = ("https", "http")


class _Parts(NamedTuple):
    """The parts of a URL that decide about its provider."""

    host: str | None
    """Lower-cased and without `www.`; None for URLs that only `git` may read."""
    path: str = ""
    query: str = ""
    is_web: bool = False


def from_url(
    url: str, ref: str | None = None, *, hosts: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, str]:
    """Return provider and spec for a repository's URL or a DOI, without contacting any host.

    The first provider whose grammar matches is taken, else `git`; `hosts` are the operator's host names by provider.
    `ref` takes precedence over a version in the URL; without either it is HEAD. Raises RequestRejected(INVALID_SPEC) if
    the URL is empty, or `ref` is given for a dataset.
    """
    url = url.strip()
    if not url:
        raise RequestRejected(
            RejectReason.INVALID_SPEC, "There is no address. Paste the URL of a repository."
        )
    provider, spec = _found(url, ref, hosts)
    if ref and not PROVIDERS[provider].has_ref:
        raise RequestRejected(
            RejectReason.INVALID_SPEC,
            f"{url} is a dataset, which has no branches, tags or commits. Leave {ref!r} out; another version of a dataset "
            "has an address of its own.",
        )
    return provider, spec


def _found(url: str, ref: str | None, hosts: Mapping[str, str]) -> tuple[str, str]:
    if doi := find_doi(url):
        for provider in PROVIDERS.values():
            if spec := provider.spec_of_doi(doi):
                return provider.prefix, spec
    parts = _parts(url)
    for provider in PROVIDERS.values():
        if spec := _spec(provider, parts, url, ref, hosts):
            return provider.prefix, spec
    return "git", f"{quote(url, safe='')}/{quote(ref or HEAD, safe='')}"


def _spec(
    provider: ProviderDescriptor, parts: _Parts, url: str, ref: str | None, hosts: Mapping[str, str]
) -> str | None:
    grammar = provider.url_grammar
    if grammar is None or parts.host is None:
        return None
    host = provider.host_among(hosts)
    if not (grammar.any_host and parts.is_web) and (host is None or parts.host != _plain(host)):
        return None
    return grammar.parse(parts.path, ref, query=parts.query, url=url, encode=provider.url_encoded)


def _parts(url: str) -> _Parts:
    if scp_like := _SCP_LIKE.fullmatch(url):
        return _Parts(_plain(scp_like[1]), scp_like[2])
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None
    except ValueError:
        return _Parts(None)
    # `git` refuses a password in an address with an explanation; a provider's spec would silently drop it.
    if parts.scheme not in _SCHEMES or ("@" in parts.netloc and parts.scheme != "ssh"):
        return _Parts(None)
    is_web = parts.scheme in _WEB
    host = parts.netloc.rpartition("@")[2] if has_port and is_web else parts.hostname or ""
    if has_port and not is_web:
        return _Parts(None)
    return _Parts(_plain(host), parts.path, parts.query, is_web)


def _plain(host: str) -> str:
    return host.lower().removeprefix("www.")
