"""Ownership of builds and of slots, which every replica computes from the list of live replicas.

Replicas need no messages to agree: each build belongs to the replica that ranks first for its id.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from rabbit2docker.consumer.executors.base import Attempt, Members, Membership
from rabbit2docker.hashing import ranked
from rabbit2docker.settings import LimitSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Slots:
    """One replica's share of the limit on live attempts."""

    free: int
    """Attempts that it may start now."""
    share: int
    """Attempts that it may have in all."""
    reserved: int
    """Slots of the share that bulk requests never take."""


class Ownership:
    """Decides what this replica owns: nothing before the first list of members, nor while it is not on the list."""

    def __init__(self, executor: Membership) -> None:
        """Take the members from `executor`; `run` reads them."""
        self._executor = executor
        self._members = Members("", frozenset())
        self._listeners: list[Callable[[], None]] = []
        self.known = asyncio.Event()

    async def run(self) -> None:
        """Follow the members until cancelled."""
        async for members in self._executor.members():
            left = sorted(self._members.live - members.live)
            joined = sorted(members.live - self._members.live)
            if self.known.is_set() or members.live != {members.me}:
                log.info("replicas changed", live=len(members.live), joined=joined, left=left)
            self._members = members
            if members.live:
                self.known.set()
            for listener in self._listeners:
                listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when builds change owners. It must not block."""
        self._listeners.append(listener)

    def is_mine(self, key: str) -> bool:
        """Return whether this replica owns `key`, such as a build id."""
        members = self._members
        return members.me in members.live and ranked(key, members.live)[0] == members.me

    def slots(self, limits: LimitSettings, attempts: Iterable[Attempt]) -> Slots:
        """Return the slots of this replica, such that all replicas together never exceed the limit."""
        members = self._members
        if members.me not in members.live:
            return Slots(0, 0, 0)
        held = Counter(_slot_holder(attempt, members.live) for attempt in attempts if attempt.is_live)
        free = shares(limits.concurrent_builds, members.live, held)[members.me]
        rank, count = sorted(members.live).index(members.me), len(members.live)
        reserved = limits.reserved_for_interactive
        return Slots(free, free + held[members.me], reserved // count + (rank < reserved % count))


def _slot_holder(attempt: Attempt, live: frozenset[str]) -> str:
    """Return the member whose slot the attempt takes: its creator or, once that is gone, its heir."""
    created_by = attempt.created_by
    return created_by if created_by in live else ranked(attempt.spec.build_id, live)[0]


def shares(limit: int, members: Iterable[str], held: Mapping[str, int]) -> dict[str, int]:
    """Return the slots that each member may take now, given the slots that each holds.

    Each has a fixed share of the limit, so that two that look at the same moment cannot both take the last slot. A
    member that holds more, because others joined later, keeps it; the others share what is left.
    """
    names = sorted(members)
    fixed: dict[str, int] = {}
    while True:
        open_ = [name for name in names if name not in fixed]
        if not open_:
            return dict.fromkeys(names, 0)
        rest = max(0, limit - sum(fixed.values()))
        share = {name: rest // len(open_) + (rank < rest % len(open_)) for rank, name in enumerate(open_)}
        over = [name for name in open_ if held.get(name, 0) > share[name]]
        if not over:
            return {name: 0 if name in fixed else share[name] - held.get(name, 0) for name in names}
        fixed.update({name: held[name] for name in over})
