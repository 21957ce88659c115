"""Which addresses a request may name.

A requester must not reach, through us, what only we can reach: our own machine, the cluster, cloud metadata. The
literal address is judged however it is spelt, then every address that the name resolves to.
"""

import asyncio
import re
import socket
import unicodedata
import urllib.request
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

DEFAULT_PORTS: Final = {"https": 443, "http": 80, "git": 9418}
"""The schemes that a request may name, and where they connect to."""

Address = IPv4Address | IPv6Address

# Blanks, control characters and backslashes are read differently by different programs: one judges, another connects.
_STRANGE = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]")
# Clients shorten `/allowed/../other`, and patterns for specs would have judged the long form.
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_INSIDE_SUFFIXES = (
    ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa", ".svc", ".cluster.local",
)  # fmt: skip
_CARRIES_IPV4 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"), ip_network("::/96"))


@dataclass(frozen=True, slots=True)
class Target:
    """What an allowed URL connects to."""

    scheme: str
    host: str
    port: int


class AddressPolicy:
    """Judges URLs from requests."""

    def __init__(self, settings: ProviderSettings) -> None:
        """Judge by `allow_private_addresses`; answers of the name service are waited for as long as hosts' answers."""
        self._allow_private = settings.allow_private_addresses
        self._timeout = settings.timeout

    @property
    def allows_private(self) -> bool:
        """Whether every address may be named."""
        return self._allow_private

    def check(self, url: str) -> Target:
        """Judge the URL as it is written, asking nobody. Raises RequestRejected(REFUSED_URL)."""
        parts = split_url(url)
        if parts.scheme not in DEFAULT_PORTS:
            raise _refused(
                f"{shown(url)} begins with `{parts.scheme}:`, which requests may not use. "
                "Name the https:// address of a repository that can be read without a key."
            )
        host = _plain_host(parts, url)
        if not self._allow_private:
            self._check_host(host, url)
        return Target(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme])

    async def resolve(self, url: str) -> list[str]:
        """Judge the URL and all addresses of its host; return those, as texts, for whoever connects to use.

        Returns nothing where every address is allowed, and where a proxy connects in our place: its rules count.
        Raises RequestRejected (refused, or no such host) or ProviderUnavailable (the name service is away).
        """
        target = self.check(url)
        if self._allow_private or _goes_through_proxy(target):
            return []
        addresses = await self._look_up(target)
        if forbidden := [address for address in addresses if not is_public(address)]:
            raise _refused(
                f"{target.host} is at {forbidden[0]}, an address inside this network, which requests may not "
                "name. Use a repository with a public address, or ask the operator to allow private addresses."
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
            raise _refused(
                f"{shown(url)} names {host}, which is this machine or inside this network, and requests may not. "
                "Use a repository with a public address, or ask the operator to allow private addresses."
            )

    async def _look_up(self, target: Target) -> list[Address]:
        if address := literal_address(target.host):
            return [address]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"The name service did not tell the address of {target.host} within {self._timeout:g} seconds."
            ) from error
        except (socket.gaierror, UnicodeError) as error:
            if getattr(error, "errno", socket.EAI_NONAME) in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise RequestRejected(
                    RejectReason.REPOSITORY_NOT_FOUND,
                    f"There is no host {target.host}. Check the address of the repository.",
                ) from error
            raise ProviderUnavailable(
                f"The name service cannot tell the address of {target.host} at the moment."
            ) from error
        # A link-local address carries its interface: `fe80::1%eth0`.
        return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def split_url(url: str) -> SplitResult:
    """Take a URL apart. Raises RequestRejected(REFUSED_URL) when it is none, or carries credentials."""
    if url.startswith("-"):
        raise _refused(f"{url[:80]!r} looks like an option for git, not like an address.")
    if _STRANGE.search(url):
        raise _refused("The address holds blanks, control characters or backslashes. Write it without them.")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _refused(f"The address cannot be read: {error}.") from error
    if not parts.scheme or not url.lower().startswith(f"{parts.scheme}://"):
        raise _refused(
            f"{shown(url)} is no address of a repository: it must begin with https://, and cannot be a file."
        )
    if _DOT_SEGMENT.search(parts.path):
        raise _refused(f"{shown(url)} holds `.` or `..` between slashes. Write the address without them.")
    user, at, _host = parts.netloc.rpartition("@")
    is_login_name = parts.scheme == "ssh" and re.fullmatch(r"\w[\w-]*", user, re.ASCII) is not None
    if at and not is_login_name:
        raise _refused(
            f"{shown(url)} holds a user name or a password. Write the address without them: "
            "requests are logged, and credentials for private repositories are the operator's to set."
        )
    return parts


def shown(url: str) -> str:
    """Return the URL for messages: short, and never with a user or password."""
    return re.sub(r"//[^/?#]*@", "//", url)[:200]


def literal_address(host: str) -> Address | None:
    """Return the address that a host is written as, in any spelling that programs accept, None for a name."""
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
    """Tell whether anybody on the internet could connect to the address, whatever it is wrapped in."""
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
    """Return the host in lower case ASCII, as it will be looked up."""
    host = parts.hostname or ""
    if ":" in host:
        try:
            return str(IPv6Address(host)) if "%" not in host else _no_host(url)
        except ValueError:
            return _no_host(url)
    # Full-width digits and dots become plain ones in programs that follow IDNA.
    host = unicodedata.normalize("NFKC", host).replace("。", ".").lower().rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return _no_host(url)
    return host if _NAME.fullmatch(host) else _no_host(url)


def _no_host(url: str) -> str:
    raise _refused(f"{shown(url)} names no host that can be connected to.")


def _goes_through_proxy(target: Target) -> bool:
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    return target.scheme != "git" and bool(proxy) and not urllib.request.proxy_bypass(target.host)


def _refused(message: str) -> RequestRejected:
    return RequestRejected(RejectReason.REFUSED_URL, message)
