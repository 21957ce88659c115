"""The choice of the queue from which the next request is taken. No I/O.

Tenants take turns by their weights, and one that has its share of the slots lets the others go first. What runs is known
from the executor, and turns from the log that all replicas share, so that they agree without a message.
"""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from copy import deepcopy
from typing import Final

from rabbit2docker.settings import ShareSettings
from rabbit2docker_schemas.routing import Lane, parse_waiting_queue, waiting_queue

TURNS_BEFORE_LATER: Final = 3
"""Requests of the queue `interactive` that go before one of `later` while both have some."""
CLASSES: Final = ((Lane.INTERACTIVE, Lane.LATER), (Lane.BULK,))
"""The first class goes before the second."""


class Turns:
    """Start-time fair queueing: who was idle gets the next turn, but none for the time before."""

    def __init__(self) -> None:
        """Start with no turn taken."""
        self._next: dict[str, float] = {}
        self._clock = 0.0

    def position(self, name: str) -> float:
        """Return the virtual time of its next turn: the lowest is the next one."""
        return max(self._next.get(name, 0.0), self._clock)

    def take(self, name: str, weight: float) -> None:
        """Count a turn."""
        self._clock = self.position(name)
        self._next[name] = self._clock + 1 / weight


class Shares:
    """Chooses among the queues of all tenants."""

    def __init__(self, settings: ShareSettings) -> None:
        """Take weights and limits of the tenants."""
        self._settings = settings
        self._tenants = {lanes: Turns() for lanes in CLASSES}
        self._passed: Counter[str] = Counter()
        """Requests that went before the next one of the tenant's queue `later`."""

    def choose(
        self, waiting: Iterable[str], running: Mapping[str, int], slots: int, *, with_bulk: bool
    ) -> str | None:
        """Return the queue whose turn it is among those where requests wait; None if no request may be started.

        `running`: live attempts of each tenant, out of `slots`.
        """
        queues = [(queue, *parsed) for queue in waiting if (parsed := parse_waiting_queue(queue))]
        tenants = {tenant for _, tenant, _ in queues} | {name for name, count in running.items() if count}
        total = sum(map(self._weight, tenants))
        for lanes, turns in self._tenants.items():
            open_ = [
                (tenant, lane)
                for _, tenant, lane in queues
                if lane in lanes
                and (with_bulk or lane is not Lane.BULK)
                and not self._is_full(tenant, running)
            ]
            if not open_:
                continue

            def order(place: tuple[str, Lane], turns: Turns = turns) -> tuple[bool, float, str, bool]:
                tenant, lane = place
                has_share = running.get(tenant, 0) >= math.ceil(slots * self._weight(tenant) / total)
                is_later_next = self._passed[tenant] >= TURNS_BEFORE_LATER
                return has_share, turns.position(tenant), tenant, (lane is Lane.LATER) != is_later_next

            return waiting_queue(*min(open_, key=order))
        return None

    def count(self, queue: str, waiting: Container[str]) -> None:
        """Count that a request was taken from this queue while others were `waiting` in these."""
        if (parsed := parse_waiting_queue(queue)) is None:
            return
        tenant, lane = parsed
        [turns] = [turns for lanes, turns in self._tenants.items() if lane in lanes]
        turns.take(tenant, self._weight(tenant))
        if lane is Lane.LATER or waiting_queue(tenant, Lane.LATER) not in waiting:
            self._passed[tenant] = 0
        else:
            self._passed[tenant] += lane is Lane.INTERACTIVE

    def forecast(
        self, waiting: Mapping[str, int], running: Mapping[str, int], slots: int, *, limit: int
    ) -> list[str]:
        """Return the queues in the order in which their requests would be taken, up to `limit` requests.

        It assumes that the tenant with the most builds ends one for each that starts.
        """
        shares, left, live = deepcopy(self), Counter(waiting), Counter(running)
        order: list[str] = []
        while len(order) < limit:
            if live.total() >= slots:
                live[max(live, key=lambda name: live[name])] -= 1
            queue = shares.choose(+left, live, slots, with_bulk=True)
            if queue is None:
                break
            shares.count(queue, +left)
            order.append(queue)
            left[queue] -= 1
            live[_tenant(queue)] += 1
        return order

    def _weight(self, tenant: str) -> float:
        return self._settings.weights.get(tenant, 1.0)

    def _is_full(self, tenant: str, running: Mapping[str, int]) -> bool:
        limit = self._settings.max_builds.get(tenant)
        return limit is not None and running.get(tenant, 0) >= limit


def _tenant(queue: str) -> str:
    parsed = parse_waiting_queue(queue)
    return parsed[0] if parsed else ""
