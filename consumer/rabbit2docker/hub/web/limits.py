"""Limits: builds per client and period, and networks that the operator has banned."""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
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
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.errors import BannedNetwork, RateLimited
from rabbit2docker.settings import HubSettings

log = structlog.get_logger()

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

STORE_SECONDS: Final = 5.0
"""A request that the database has not counted by then is allowed: an unavailable database stops no build."""
MAX_HOPS: Final = 50
"""Proxies that are traced back."""
PREFIX_BITS: Final = 64
"""Of an IPv6 address: a machine can use all addresses of its network, so they count as one."""


class RateLimitStore(Protocol):
    """The part of the store that counts requests."""

    async def check_rate(self, who: str, *, limit: int, seconds: float, at: datetime) -> Allowance:
        """Count a request and return what is left of the limit. Raises StoreUnavailable."""


def read_networks(names: Iterable[str], setting: str) -> list[Network]:
    """Return the networks. Raises ConfigurationError that lists all invalid ones."""
    found: list[Network] = []
    wrong: list[str] = []
    for name in names:
        try:
            found.append(ip_network(name))
        except ValueError as error:
            wrong.append(f"{name!r} ({error})")
    if wrong:
        raise ConfigurationError(
            f"RABBIT2DOCKER_HUB__{setting} must list networks, such as 192.0.2.0/24 or 2001:db8::/32. Not valid: "
            f"{', '.join(wrong)}."
        )
    return found


def read_address(text: str) -> Address | None:
    """Return the address that a proxy wrote: bare, in brackets, with a port, or IPv4 in IPv6; None if invalid."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        if port and not (port.startswith(":") and port[1:].isdecimal()):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not port.isdecimal():
            return None
    # The zone of a link-local address has a meaning on its own machine only.
    text = text.partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """Return the client's address: the first one, seen from here, that is no trusted proxy.

    Each proxy appends its client to X-Forwarded-For, so the header is read from the right, and entries beyond the first
    untrusted address are ignored: the client can forge them. A trusted proxy that appended no valid address stands for
    all its clients. None if the peer has no address, as on a Unix socket.
    """
    address = read_address(peer)
    hops = ",".join(forwarded_for).split(",")[-MAX_HOPS:] if forwarded_for else []
    while address is not None and hops and _is_in(address, trusted):
        previous = read_address(hops.pop())
        if previous is None:
            break
        address = previous
    return address


def rate_limit_network(address: Address) -> str:
    """Return the address, or the IPv6 network, that counts as one client."""
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, PREFIX_BITS), strict=False))
    return str(address)


def format_duration(seconds: float) -> str:
    """Return a duration for people, rounded up: 45 seconds, 1 minute, 12 minutes, 3 hours, 2 days."""
    for unit, length, up_to in (("second", 1, 60), ("minute", 60, 120 * 60), ("hour", 3600, 48 * 3600)):
        count = max(1, math.ceil(seconds / length))
        if count * length < up_to:
            return f"{count} {unit}" + ("s" if count > 1 else "")
    count = math.ceil(seconds / 86_400)
    return f"{count} days"


def format_period(seconds: float) -> str:
    """Return a period for people: an hour, a day, 90 minutes, 20 seconds."""
    for unit, length in (("a day", 86_400), ("an hour", 3600), ("a minute", 60)):
        if seconds == length:
            return unit
        if seconds > length and seconds % length == 0:
            return f"{int(seconds // length)} {unit.split()[1]}s"
    return f"{seconds:g} seconds"


class SubjectKind(StrEnum):
    """Kinds of clients that are limited apart."""

    PERSON = "user"
    SERVICE = "service"
    ADDRESS = "address"
    """A client without a name."""


@dataclass(frozen=True, slots=True)
class LimitSubject:
    """The person, service or address that a request or a stream counts for."""

    kind: SubjectKind
    name: str

    @property
    def key(self) -> str:
        """Return what names the subject in the store."""
        return f"{self.kind}:{self.name}"

    @property
    def noun(self) -> str:
        """Return the beginning of a sentence for people, up to its auxiliary verb."""
        match self.kind:
            case SubjectKind.PERSON:
                return f"You ({self.name}) have"
            case SubjectKind.SERVICE:
                return f"The service {self.name} has"
            case SubjectKind.ADDRESS:
                return f"Your address ({self.name}) has"


def limit_subject(user: User, address: Address | None) -> LimitSubject | None:
    """Return the subject to count for; None for clients that have neither name nor address."""
    if user.name is not None:
        return LimitSubject(SubjectKind.SERVICE if user.is_service else SubjectKind.PERSON, user.name)
    return None if address is None else LimitSubject(SubjectKind.ADDRESS, rate_limit_network(address))


class Limits:
    """Applies the operator's limits; requests are counted for all instances of the service together."""

    def __init__(
        self,
        settings: HubSettings,
        store: RateLimitStore,
        broker_is_down: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the limits from the settings. Raises ConfigurationError that names invalid networks.

        `broker_is_down`: True while no build can be requested anyway; requests do not count then.
        """
        self._store = store
        self._broker_is_down = broker_is_down
        self._limits = {
            SubjectKind.PERSON: settings.requests_per_user,
            SubjectKind.SERVICE: settings.requests_per_service,
            SubjectKind.ADDRESS: settings.requests_per_address,
        }
        self._per_webhook = settings.requests_per_webhook
        self._seconds = settings.requests_period_seconds
        self._trusted = read_networks(settings.trusted_proxies, "TRUSTED_PROXIES")
        banned = read_networks(settings.ban_networks, "BAN_NETWORKS")
        self._banned = list(zip(banned, settings.ban_networks.values(), strict=True))

    def client_address(self, peer: str, forwarded_for: Sequence[str]) -> Address | None:
        """Return the client's address behind trusted proxies; see the function `client_address`."""
        return client_address(peer, forwarded_for, self._trusted)

    def check_network(self, address: Address | None) -> None:
        """Raise BannedNetwork if the address belongs to a banned network."""
        if address is None:
            return
        for network, label in self._banned:
            if address in network:
                metrics.HUB_REJECTIONS.labels(limit="network").inc()
                raise BannedNetwork(label)

    async def check_rate(self, user: User, address: Address | None) -> Allowance | None:
        """Count a request and return what is left; None if it does not count. Raises RateLimited."""
        subject = limit_subject(user, address)
        limit = self._limit(user, subject)
        if subject is None or not limit or self._broker_is_down():
            return None
        now = datetime.now(UTC)
        allowance = await self._counted(subject.key, limit, now)
        if allowance is not None and not allowance.allowed:
            raise RateLimited(self._message(subject, allowance, now), allowance, at=now)
        return allowance

    async def check_webhook(self, repository: str) -> None:
        """Count a request that a push has made. Raises RateLimited."""
        limit, now = self._per_webhook, datetime.now(UTC)
        if not limit or self._broker_is_down():
            return
        allowance = await self._counted(f"webhook:{repository.lower()}", limit, now)
        if allowance is not None and not allowance.allowed:
            wait = format_duration((allowance.reset_at - now).total_seconds())
            message = (
                f"Pushes to {repository} have requested {limit} builds within {format_period(self._seconds)}, which is the "
                f"limit (hub.requests_per_webhook). Deliver this one again in {wait}."
            )
            raise RateLimited(message, allowance, at=now)

    async def _counted(self, key: str, limit: int, now: datetime) -> Allowance | None:
        """Count a request, and its rejection if it is one too many; None where the store cannot count."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                allowance = await self._store.check_rate(key, limit=limit, seconds=self._seconds, at=now)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("request not counted", reason=str(error) or "timeout")
            return None
        if not allowance.allowed:
            metrics.HUB_REJECTIONS.labels(limit="rate").inc()
        return allowance

    def _limit(self, user: User, subject: LimitSubject | None) -> int:
        """Return the limit of a client; 0 if it has none."""
        is_admin = user.admin and user.name is not None
        return 0 if subject is None or is_admin else self._limits[subject.kind]

    def _message(self, subject: LimitSubject, allowance: Allowance, now: datetime) -> str:
        builds = f"{allowance.limit} build" + ("" if allowance.limit == 1 else "s")
        wait = format_duration((allowance.reset_at - now).total_seconds())
        return (
            f"Rate limit exceeded. {subject.noun} requested {builds} within {format_period(self._seconds)}, "
            f"which is the limit. Try again in {wait}."
        )


def limit_headers(allowance: Allowance) -> Mapping[str, str]:
    """Return BinderHub's headers; `X-RateLimit-Reset` is in seconds since 1970."""
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        "X-RateLimit-Reset": str(math.ceil(allowance.reset_at.timestamp())),
    }
