"""The users that `topology export` creates, each with the least permissions that its role needs. No I/O.

RabbitMQ checks the exchange when a client publishes to it, binds it or names it for dead letters or as an alternate; it
checks the routing key only when a client publishes. So a tenant's user may write to no exchange that others use.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rabbit2docker.errors import ConfigurationError
from rabbit2docker_schemas.routing import (
    DEAD_QUEUE,
    REQUESTS_EXCHANGE,
    RESULTS_EXCHANGE,
    entry_exchange,
    is_tenant,
    tenant_index,
    tenant_phases,
    tenant_stream,
)

WORKER: Final = "rabbit2docker-worker"
OPERATOR: Final = "rabbit2docker-operator"
MONITORING: Final = "rabbit2docker-monitoring"
DEAD_LETTERS: Final = "rabbit2docker-dead-letters"
HUB_PREFIX: Final = "hub-"
_NOTHING: Final = "^$"
_EVERYTHING: Final = ".*"


@dataclass(frozen=True, slots=True)
class UserSpec:
    """Permissions of one role: regular expressions on names, and on routing keys of topic exchanges."""

    name: str
    configure: str
    write: str
    read: str
    topics: tuple[tuple[str, str, str], ...] = ()
    """Exchange, writable keys, readable keys. RabbitMQ allows all keys of an exchange that is not listed."""
    tags: tuple[str, ...] = ()
    """Roles in the management API."""


def make_users(tenants: Iterable[str]) -> Iterable[UserSpec]:
    """Yield the users of the service, its operators, its monitoring, its dead letters and each tenant.

    Raises ConfigurationError for an invalid tenant, whose name would be part of regular expressions.
    """
    tenants = tuple(tenants)
    if invalid := [tenant for tenant in tenants if not is_tenant(tenant)]:
        raise ConfigurationError(
            f"{', '.join(map(repr, invalid))} cannot be a tenant: names have at most 63 lower-case letters, digits and "
            "hyphens, no hyphen first or last. Correct RABBIT2DOCKER_TENANTS or --tenant."
        )
    yield UserSpec(
        WORKER,
        configure=r"^builds\.state$",
        write=r"^builds\.(results|results\.log|retry|dlx|log)$",
        read=r"^builds\.(requests|requests\.bulk|waiting\..+|cancels|cancels\.log|dropped|unrouted|state)$",
        topics=((RESULTS_EXCHANGE, r"^(build|request)\.", _NOTHING),),
    )
    yield UserSpec(
        OPERATOR, configure=_EVERYTHING, write=_EVERYTHING, read=_EVERYTHING, tags=("policymaker",)
    )
    yield UserSpec(MONITORING, configure=_NOTHING, write=_NOTHING, read=_NOTHING, tags=("monitoring",))
    yield UserSpec(
        DEAD_LETTERS, configure=_NOTHING, write=r"^builds(\.retry)?$", read=_any_of(_literal(DEAD_QUEUE))
    )
    for tenant in tenants:
        yield _hub(tenant, is_alone=len(tenants) == 1)


def _hub(tenant: str, *, is_alone: bool) -> UserSpec:
    own = rf"hub\.{tenant}\..*"
    keys = rf"^(request\.{tenant}\.(interactive|bulk)|cancel\.{tenant})$"
    # Without another tenant to protect, programs may publish to `builds`.
    entries = [entry_exchange(tenant), *([REQUESTS_EXCHANGE] if is_alone else [])]
    return UserSpec(
        f"{HUB_PREFIX}{tenant}",
        configure=f"^{own}$",
        write=_any_of(own, *map(_literal, entries)),
        # Topic permissions do not apply to reading a stream, so each tenant has its own.
        read=_any_of(
            own,
            _literal(RESULTS_EXCHANGE),
            _literal(tenant_stream(tenant)),
            _literal(tenant_index(tenant)),
            _literal(tenant_phases(tenant)),
        ),
        topics=(
            *((exchange, keys, _NOTHING) for exchange in entries),
            (RESULTS_EXCHANGE, _NOTHING, rf"^(build|request)\.{tenant}\."),
        ),
    )


def _literal(name: str) -> str:
    return name.replace(".", r"\.")


def _any_of(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"
