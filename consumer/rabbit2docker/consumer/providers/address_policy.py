"""The policy for addresses in requests, a guard against server-side request forgery.

A requester must not reach, through us, hosts that only we can reach: our own machine, the cluster, cloud metadata.
The literal address is checked in any spelling, then every address that the name resolves to.
"""

import asyncio
import os
import re
import socket
import unicodedata
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import SplitResult

from rabbit2docker.consumer.credentials import names_of
from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, refused, shown, split_url
from rabbit2docker.errors import Dependency, DependencyKind, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

SECOND_LOOK_SECONDS: Final = 0.3
SSH_PORT: Final = 22

Address = IPv4Address | IPv6Address

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_INSIDE_SUFFIXES = (
    ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa", ".svc", ".cluster.local",
)  # fmt: skip
_CARRIES_IPV4 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"), ip_network("::/96"))


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoint of an allowed URL."""

    scheme: str
    host: str
    port: int


class AddressPolicy:
    """Checks URLs from requests."""

    def __init__(self, settings: ProviderSettings, ssh_hosts: Collection[str] = ()) -> None:
        """Apply `allow_private_addresses`; `timeout` limits DNS lookups, too. SSH is for hosts with a recorded key alone."""
        self._ssh_hosts = frozenset(ssh_hosts)
        self._allow_private = settings.allow_private_addresses
        self._timeout = settings.timeout

    def check(self, url: str) -> Target:
        """Check the URL as written, without a DNS lookup. Raises RequestRejected(REFUSED_URL)."""
        parts = split_url(url)
        if parts.scheme not in DEFAULT_PORTS and self._ssh_hosts.isdisjoint(names_of(url)):
            raise refused(
                f"{shown(url)} begins with `{parts.scheme}:`, which requests may not use. "
                "Use the https:// address of a repository that can be read without a key."
            )
        host = _plain_host(parts, url)
        if not self._allow_private:
            self._check_host(host, url)
        return Target(parts.scheme, host, parts.port or DEFAULT_PORTS.get(parts.scheme, SSH_PORT))

    async def resolve(self, url: str) -> list[str]:
        """Check the URL and all addresses of its host, and return those addresses for the connection.

        Returns an empty list where every address is allowed, and where a proxy connects and applies its own rules.
        Raises RequestRejected (refused, or no such host) or ProviderUnavailable (DNS is away).
        """
        target = self.check(url)
        if _goes_through_proxy(target):
            return []
        addresses = await self._look_up(target)
        if self._allow_private:
            return []
        if forbidden := [address for address in addresses if not is_public(address)]:
            raise refused(
                f"{target.host} is at {forbidden[0]}, an address inside this network, which requests may not "
                "use. Use a repository with a public address, or ask the operator to allow private addresses."
            )
        return [str(address) for address in addresses]

    def _check_host(self, host: str, url: str) -> None:
        address = literal_address(host)
        is_inside = (
            not is_public(address)
            if address
            else "." not in host or host.endswith(_INSIDE_SUFFIXES) or ".svc." in host
        )
        if is_inside:
            raise refused(
                f"{shown(url)} names {host}, which is this machine or inside this network and not allowed in requests. "
                "Use a repository with a public address, or ask the operator to allow private addresses."
            )

    async def _look_up(self, target: Target) -> list[Address]:
        if address := literal_address(target.host):
            return [address]
        try:
            async with asyncio.timeout(self._timeout):
                found = await _addresses(target)
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"DNS did not resolve {target.host} within {self._timeout:g} seconds.",
                outage_of=Dependency(DependencyKind.HOST, f"{target.host}:{target.port}"),
            ) from error
        except (socket.gaierror, UnicodeError) as error:
            if _says_unknown(error):
                raise RequestRejected(
                    RejectReason.REPOSITORY_NOT_FOUND,
                    f"There is no host {target.host}. Check the address of the repository.",
                ) from error
            raise ProviderUnavailable(
                f"DNS cannot resolve {target.host} at the moment.",
                outage_of=Dependency(DependencyKind.HOST, f"{target.host}:{target.port}"),
            ) from error
        # A link-local address carries its interface: `fe80::1%eth0`.
        return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


async def _addresses(target: Target) -> list[Any]:
    """Look the host up, and a second time if it does not exist: a resolver may answer so while it starts."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if not _says_unknown(error):
            raise
    await asyncio.sleep(SECOND_LOOK_SECONDS)
    return await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)


def _says_unknown(error: Exception) -> bool:
    """Return whether the host does not exist; any other error is the resolver's and may pass."""
    return getattr(error, "errno", socket.EAI_NONAME) in (socket.EAI_NONAME, socket.EAI_NODATA)


def literal_address(host: str) -> Address | None:
    """Return the IP address that a host is written as, in any spelling that programs accept; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        # `2130706433`, `0x7f.1` and `0177.0.0.1` are all 127.0.0.1 to the C library, and so to git.
        return IPv4Address(socket.inet_aton(host)) if re.fullmatch(r"[0-9a-fx.]+", host) else None
    except OSError:
        return None


def is_public(address: Address) -> bool:
    """Return whether the address is reachable from the internet, also when embedded in an IPv6 address."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and any(address in network for network in _CARRIES_IPV4):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner) and int(address) > 1
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _plain_host(parts: SplitResult, url: str) -> str:
    """Return the host in lower-case ASCII, as DNS is queried for it."""
    host = parts.hostname or ""
    if ":" in host:
        try:
            return str(IPv6Address(host)) if "%" not in host else _no_host(url)
        except ValueError:
            return _no_host(url)
    # Programs that follow IDNA map full-width digits and dots to plain ones.
    host = unicodedata.normalize("NFKC", host).replace("。", ".").lower().rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return _no_host(url)
    return host if _NAME.fullmatch(host) else _no_host(url)


def _no_host(url: str) -> str:
    raise refused(f"{shown(url)} contains no valid host.")


def _goes_through_proxy(target: Target) -> bool:
    proxies = urllib.request.getproxies_environment()
    if not os.environ.get("http_proxy"):
        # git ignores HTTP_PROXY in upper case.
        proxies.pop("http", None)
    proxy = proxies.get(target.scheme) or proxies.get("all")
    return (
        target.scheme not in ("git", "ssh") and bool(proxy) and not urllib.request.proxy_bypass(target.host)
    )
