"""What nobody gets: builds without number, and anything at all for networks that the operator bans."""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Protocol

import structlog

from rabbit2docker import metrics
from rabbit2docker.errors import ConfigurationError, StoreUnavailable
from rabbit2docker.hub.store.models import Allowance
from rabbit2docker.hub.web.auth import HttpError, User
from rabbit2docker.settings import HubSettings

log = structlog.get_logger()

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

STORE_SECONDS: Final = 5.0
"""Who cannot be counted within this time may ask: a database that is away stops no build."""
HOPS: Final = 50
"""Proxies that are followed back."""
SITE_BITS: Final = 64
"""Of an IPv6 address: one machine has all the addresses of its network, so they are counted as one."""


class BannedNetwork(HttpError):
    """Who asks from there gets nothing."""

    def __init__(self, label: str) -> None:
        """Take the operator's name of the network. The sentence is BinderHub's."""
        super().__init__(f"Requests from {label} are not allowed", 403)


class RateLimited(HttpError):
    """Somebody has asked for as many builds as one may have for now."""

    def __init__(self, message: str, allowance: Allowance, *, at: datetime) -> None:
        """Take the words and what is known of the limit."""
        super().__init__(message, 429)
        self.allowance = allowance
        self.retry_after = max(1, math.ceil((allowance.reset_at - at).total_seconds()))
        """Seconds until it makes sense to ask again."""


class Counter(Protocol):
    """What this needs of the store."""

    async def check_rate(self, who: str, *, limit: int, seconds: float, at: datetime) -> Allowance:
        """Count a wish, and tell whether it is one too many. Raises StoreUnavailable."""


def read_networks(names: Iterable[str], setting: str) -> list[Network]:
    """Return the networks. Raises ConfigurationError that names the wrong ones."""
    found: list[Network] = []
    wrong: list[str] = []
    for name in names:
        try:
            found.append(ip_network(name))
        except ValueError as error:
            wrong.append(f"{name!r} ({error})")
    if wrong:
        raise ConfigurationError(
            f"RABBIT2DOCKER_HUB__{setting} must name networks, such as 192.0.2.0/24 or 2001:db8::/32; these are none: "
            f"{', '.join(wrong)}."
        )
    return found


def read_address(text: str) -> Address | None:
    """Return the address that a proxy has written: bare, in brackets, with a port, or IPv4 within IPv6. None if none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        if port and not (port.startswith(":") and port[1:].isdecimal()):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not port.isdecimal():
            return None
    # The zone of a link-local address says something to its own machine only.
    text = text.partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """Return who asks: the first address, seen from here, that is no trusted proxy.

    Each proxy adds whom it speaks for on the right of X-Forwarded-For, so it is read from there, and what somebody who
    is not trusted has put into it counts for nothing. Where a trusted proxy has written no address, it stands for all
    who come through it. None if the peer itself has no address, as on a Unix socket.
    """
    address = read_address(peer)
    written = ",".join(forwarded_for).split(",")[-HOPS:] if forwarded_for else []
    while address is not None and written and _is_in(address, trusted):
        before = read_address(written.pop())
        if before is None:
            break
        address = before
    return address


def site_of(address: Address) -> str:
    """Return what of an address is counted as one who asks."""
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, SITE_BITS), strict=False))
    return str(address)


def in_words(seconds: float) -> str:
    """Return a time for people, never shorter than it is: 45 seconds, a minute, 12 minutes, 3 hours, 2 days."""
    for unit, length, up_to in (("second", 1, 60), ("minute", 60, 120 * 60), ("hour", 3600, 48 * 3600)):
        count = max(1, math.ceil(seconds / length))
        if count * length < up_to:
            return f"{count} {unit}" + ("s" if count > 1 else "")
    count = math.ceil(seconds / 86_400)
    return f"{count} days"


def period_in_words(seconds: float) -> str:
    """Return a period for people: an hour, a day, 90 minutes, 20 seconds."""
    for unit, length in (("a day", 86_400), ("an hour", 3600), ("a minute", 60)):
        if seconds == length:
            return unit
        if seconds > length and seconds % length == 0:
            return f"{int(seconds // length)} {unit.split()[1]}s"
    return f"{seconds:g} seconds"


@dataclass(frozen=True, slots=True)
class Asker:
    """Whom a wish is counted for."""

    key: str
    """Names the person, or the address, in the store."""
    whose: str
    """For people: begins the sentence that says how many builds were asked for."""


def asker_of(user: User, address: Address | None) -> Asker | None:
    """Return whom to count for, None who is not counted: administrators, and who has neither name nor address."""
    if user.name is not None:
        return None if user.admin else Asker(f"user:{user.name}", f"You ({user.name}) have asked for")
    if address is None:
        return None
    site = site_of(address)
    return Asker(f"address:{site}", f"Your address ({site}) has asked for")


class Limits:
    """Counts wishes, for all instances of the service together, and knows who is banned."""

    def __init__(
        self, settings: HubSettings, counter: Counter, is_away: Callable[[], bool] = lambda: False
    ) -> None:
        """Take the limits from the settings. Raises ConfigurationError that names wrong networks.

        `is_away`: whether nothing can be asked for now anyway; a wish costs nothing then.
        """
        self._counter = counter
        self._is_away = is_away
        self._limit = settings.requests_per_user
        self._seconds = settings.requests_period_seconds
        self._trusted = read_networks(settings.trusted_proxies, "TRUSTED_PROXIES")
        banned = read_networks(settings.ban_networks, "BAN_NETWORKS")
        self._banned = list(zip(banned, settings.ban_networks.values(), strict=True))

    def address(self, peer: str, forwarded_for: Sequence[str]) -> Address | None:
        """Return who asks, see `client_address`."""
        return client_address(peer, forwarded_for, self._trusted)

    def check_network(self, address: Address | None) -> None:
        """Raise Banned for an address of a banned network."""
        if address is None:
            return
        for network, label in self._banned:
            if address in network:
                metrics.HUB_REFUSALS.labels(limit="network").inc()
                raise BannedNetwork(label)

    async def check_rate(self, user: User, address: Address | None) -> Allowance | None:
        """Count a wish and return what is left; None where nothing is counted. Raises TooMany."""
        asker = asker_of(user, address)
        if not self._limit or asker is None or self._is_away():
            return None
        now = datetime.now(UTC)
        try:
            async with asyncio.timeout(STORE_SECONDS):
                allowance = await self._counter.check_rate(
                    asker.key, limit=self._limit, seconds=self._seconds, at=now
                )
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("a wish is not counted", why=str(error) or "no answer in time")
            return None
        if not allowance.allowed:
            metrics.HUB_REFUSALS.labels(limit="rate").inc()
            raise RateLimited(self._words(asker, allowance, now), allowance, at=now)
        return allowance

    def _words(self, asker: Asker, allowance: Allowance, now: datetime) -> str:
        builds = f"{allowance.limit} build" + ("" if allowance.limit == 1 else "s")
        left = in_words((allowance.reset_at - now).total_seconds())
        return (
            f"Rate limit exceeded. {asker.whose} {builds} within {period_in_words(self._seconds)}, "
            f"which is the limit here. Try again in {left}."
        )


def limit_headers(allowance: Allowance) -> Mapping[str, str]:
    """Return BinderHub's headers; the reset is in seconds since 1970."""
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        "X-RateLimit-Reset": str(math.ceil(allowance.reset_at.timestamp())),
    }
