"""The users that `topology export` creates, each with the least permissions that its role needs. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

from rabbit2docker_schemas.routing import REQUESTS_EXCHANGE, RESULTS_EXCHANGE


@dataclass(frozen=True, slots=True)
class UserSpec:
    """Permissions of one role: regular expressions on names, and on routing keys of the two topic exchanges."""

    name: str
    configure: str
    write: str
    read: str
    topics: tuple[tuple[str, str, str], ...]
    """Exchange, writable keys, readable keys."""


def make_users(tenants: Iterable[str]) -> Iterable[UserSpec]:
    """Yield the users of the service and of each tenant."""
    yield UserSpec(
        "rabbit2docker-worker",
        configure=r"^builds\.state$",
        write=r"^builds\.(results|retry|dlx|log)$",
        read=r"^builds\.(requests|requests\.bulk|cancels|cancels\.log|dropped|unrouted|state)$",
        topics=((RESULTS_EXCHANGE, r"^(build|request)\.", "^$"),),
    )
    for tenant in tenants:
        own = rf"hub\.{tenant}\."
        # Topic permissions do not apply to reading a stream, so each tenant has its own.
        yield UserSpec(
            f"hub-{tenant}",
            configure=f"^{own}",
            write=rf"^({own}.*|builds)$",
            read=rf"^({own}.*|builds\.results|builds\.results\.log\.{tenant})$",
            topics=(
                (REQUESTS_EXCHANGE, rf"^(request\.{tenant}\.(interactive|bulk)|cancel\.{tenant})$", "^$"),
                (RESULTS_EXCHANGE, "^$", rf"^(build|request)\.{tenant}\."),
            ),
        )
