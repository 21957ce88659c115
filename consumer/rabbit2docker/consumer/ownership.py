"""Which builds are this replica's to follow, and how many it may start: agreed without talking, from who lives."""

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
    """One replica's part of the limit on live attempts."""

    free: int
    """How many more it may start."""
    part: int
    """How many it may have."""
    reserved: int
    """How many of them bulk requests never take."""


class Ownership:
    """Knows the living replicas. Owns nothing before the first word about them, nor while it is cut off."""

    def __init__(self, executor: Membership) -> None:
        """Ask `executor` who lives."""
        self._executor = executor
        self._members = Members("", frozenset())
        self._listeners: list[Callable[[], None]] = []
        self.known = asyncio.Event()

    async def run(self) -> None:
        """Follow the members until cancelled."""
        async for members in self._executor.members():
            gone = sorted(self._members.live - members.live)
            come = sorted(members.live - self._members.live)
            if self.known.is_set() or members.live != {members.me}:
                log.info("the replicas changed", live=len(members.live), come=come, gone=gone)
            self._members = members
            if members.live:
                self.known.set()
            for listener in self._listeners:
                listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when builds change hands. It must not block."""
        self._listeners.append(listener)

    def is_mine(self, key: str) -> bool:
        """Tell whether what `key` names, such as a build id, is this replica's."""
        members = self._members
        return members.me in members.live and ranked(key, members.live)[0] == members.me

    def slots(self, limits: LimitSettings, attempts: Iterable[Attempt]) -> Slots:
        """Return what this replica may start now so that all together never exceed the limit."""
        members = self._members
        if members.me not in members.live:
            return Slots(0, 0, 0)
        held: Counter[str] = Counter()
        for attempt in attempts:
            if attempt.is_live:
                created_by = attempt.created_by
                held[
                    created_by
                    if created_by in members.live
                    else ranked(attempt.spec.build_id, members.live)[0]
                ] += 1
        free = shares(limits.concurrent_builds, members.live, held)[members.me]
        rank, count = sorted(members.live).index(members.me), len(members.live)
        reserved = limits.reserved_for_interactive
        return Slots(free, free + held[members.me], reserved // count + (rank < reserved % count))


def shares(limit: int, members: Iterable[str], held: Mapping[str, int]) -> dict[str, int]:
    """Return how many slots each member may take now, given how many each holds.

    Each has a fixed part of the limit, so that two that look at the same moment cannot both take the last slot. Who
    holds more than a part, as others came later, keeps it, and the parts of the others are cut from what is left.
    """
    names = sorted(members)
    fixed: dict[str, int] = {}
    while True:
        open_ = [name for name in names if name not in fixed]
        if not open_:
            return dict.fromkeys(names, 0)
        rest = max(0, limit - sum(fixed.values()))
        part = {name: rest // len(open_) + (rank < rest % len(open_)) for rank, name in enumerate(open_)}
        over = [name for name in open_ if held.get(name, 0) > part[name]]
        if not over:
            return {name: 0 if name in fixed else part[name] - held.get(name, 0) for name in names}
        fixed.update({name: held[name] for name in over})
