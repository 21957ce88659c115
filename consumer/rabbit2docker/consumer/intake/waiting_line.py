"""The requests that wait for a slot, as all replicas know them from the log that they share. No I/O.

The queues in RabbitMQ decide what is started; the line decides nothing but where to look first, and what to say.
"""

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import UNLISTED_TENANT, Lane, Priority, waiting_queue

GHOST_SECONDS: Final = 10.0
"""Age of a request in an empty queue from which it counts as taken, even if the replica that took it did not say so."""
OVERTAKEN_SECONDS: Final = 60.0
"""The same for one that came so long before a request which was taken from its queue: RabbitMQ keeps their order."""
PACE_STARTS: Final = 32
"""Starts from which the pace is computed."""
MIN_PACE_SECONDS: Final = 60.0
"""Several builds that started at once say nothing of the pace."""
FORECAST_REQUESTS: Final = 2000
"""Requests whose order is computed, less if they wait in many queues; the others are behind them, the oldest first."""
FORECAST_STEPS: Final = 10_000


@dataclass(slots=True)
class WaitingRequest:
    """A request in the line."""

    build_id: str
    tenant: str
    requester: str
    queue: str
    since: float
    """Seconds since 1970."""
    announced: int | None = None
    """Number of requests ahead as it was announced last."""
    announced_at: float = 0.0


class WaitingLine:
    """All requests that wait, in the order in which they began to."""

    def __init__(self, settings: Settings, shares: Shares, now: Callable[[], float] = time.time) -> None:
        """Start empty; `apply` takes in what the replicas write."""
        self._listed = frozenset(settings.tenants)
        self._requester_builds = settings.shares.requester_builds
        self._shares = shares
        self._now = now
        self._me = uuid.uuid4().hex
        self._by_queue: dict[str, dict[str, WaitingRequest]] = {}
        self._queue_of: dict[str, str] = {}
        self._held: Counter[tuple[str, str]] = Counter()
        """Number of requests by queue and requester."""
        self._starts: deque[float] = deque(maxlen=PACE_STARTS)
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when a request begins to wait. It must not block."""
        self._listeners.append(listener)

    def notify(self) -> None:
        """Call the listeners, once a request that `queued` has added is in its queue: before, it cannot be taken."""
        for listener in self._listeners:
            listener()

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._queue_of)

    def __contains__(self, build_id: str) -> bool:
        """Return whether the request that would start this build waits."""
        return build_id in self._queue_of

    def share_of(self, tenant: str) -> str:
        """Return the tenant whose queues and share a tenant uses: its own if it is in the settings."""
        return tenant if tenant in self._listed else UNLISTED_TENANT

    def queue_for(
        self, build_id: str, tenant: str, requester: str, priority: Priority | str, *, running: int
    ) -> str:
        """Return the queue for a request of someone with so many `running` builds.

        A second copy follows the first one, so that its duplicate is known when it is taken.
        """
        if known := self._queue_of.get(build_id):
            return known
        share = self.share_of(tenant)
        if priority == Priority.BULK:
            return waiting_queue(share, Lane.BULK)
        now, later = waiting_queue(share, Lane.INTERACTIVE), waiting_queue(share, Lane.LATER)
        has_enough = self._held[now, requester] + running >= self._requester_builds
        # The requests of one requester keep their order.
        return later if has_enough or self._held[later, requester] else now

    def queued(self, build_id: str, tenant: str, requester: str, queue: str) -> dict[str, Any]:
        """Add a request that is about to be put into a queue; return the entry for the log."""
        request = WaitingRequest(build_id, tenant, requester, queue, self._now())
        self._add(request)
        entry = {"build_id": build_id, "tenant": tenant, "requester": requester, "queue": queue}
        return {"queued": entry, "at": request.since, "by": self._me}

    def taken(self, build_id: str, queue: str) -> dict[str, Any]:
        """Remove a request, because it was taken here; return the entry for the log."""
        at, request = self._now(), self._find(build_id)
        if request is not None:
            at = max(at, request.since)  # the clock may have been set back
        self._start(build_id, at)
        return {"taken": build_id, "queue": queue, "at": at, "by": self._me}

    def announced(self, places: Mapping[str, int]) -> dict[str, Any]:
        """Note the places that were announced; return the entry for the log."""
        at = self._now()
        self._note(places, at)
        return {"announced": dict(places), "at": at, "by": self._me}

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Take in an entry of the log. Those of this replica are known."""
        match entry:
            case {"taken": str(build_id), "at": float(at), "by": self._me}:
                # Another replica's entry that it waits may have come after it was taken here.
                self._remove(build_id, at)
            case {"by": self._me}:
                return
            case {"queued": {"build_id": str(build_id), **fields}, "at": float(at)}:
                tenant, requester, queue = (
                    str(fields.get(name, "")) for name in ("tenant", "requester", "queue")
                )
                self._add(WaitingRequest(build_id, tenant, requester, queue, at))
                self.notify()
            case {"taken": str(build_id), "queue": str(queue), "at": float(at)}:
                self._shares.count(queue, self.counts())
                self._start(build_id, at)
            case {"announced": dict(places), "at": float(at)}:
                self._note({str(name): ahead for name, ahead in places.items() if type(ahead) is int}, at)
            case _:  # of a later version
                pass

    def _add(self, request: WaitingRequest) -> None:
        known = self._find(request.build_id)
        if known is not None and known.since >= request.since:
            return
        self._remove(request.build_id, request.since)
        self._by_queue.setdefault(request.queue, {})[request.build_id] = request
        self._queue_of[request.build_id] = request.queue
        self._held[request.queue, request.requester] += 1

    def _find(self, build_id: str) -> WaitingRequest | None:
        queue = self._queue_of.get(build_id)
        return None if queue is None else self._by_queue[queue][build_id]

    def _remove(self, build_id: str, at: float) -> None:
        """Remove a request that was taken at this time, unless it has come back since."""
        request = self._find(build_id)
        if request is None or request.since > at:
            return
        del self._queue_of[build_id]
        del self._by_queue[request.queue][build_id]
        self._held[request.queue, request.requester] -= 1
        if not self._held[request.queue, request.requester]:
            del self._held[request.queue, request.requester]

    def _start(self, build_id: str, at: float) -> None:
        if request := self._find(build_id):
            self._remove_older(request.queue, request.since - OVERTAKEN_SECONDS)
        self._remove(build_id, at)
        if self._queue_of:
            self._starts.append(at)
        else:
            self._starts.clear()

    def _note(self, places: Mapping[str, int], at: float) -> None:
        for build_id, ahead in places.items():
            request = self._find(build_id)
            if request is not None and request.since <= at:
                request.announced, request.announced_at = ahead, at

    def counts(self) -> dict[str, int]:
        """Return the queues in which requests wait, and how many."""
        return {queue: len(requests) for queue, requests in self._by_queue.items() if requests}

    def mark_empty(self, queue: str) -> None:
        """Note that the queue has no message: what has waited there for some time must have been taken."""
        self._remove_older(queue, self._now() - GHOST_SECONDS)

    def _remove_older(self, queue: str, since: float) -> None:
        waiting = self._by_queue.get(queue, {}).values()
        for request in list(takewhile(lambda each: each.since < since, waiting)):
            self._remove(request.build_id, request.since)

    def in_order(self, running: Mapping[str, int], slots: int) -> list[WaitingRequest]:
        """Return the requests in the order in which they are likely to be started."""
        waiting = {queue: iter(list(requests.values())) for queue, requests in self._by_queue.items()}
        counts = self.counts()
        limit = min(FORECAST_REQUESTS, FORECAST_STEPS // max(1, len(counts)))
        order = self._shares.forecast(counts, running, slots, limit=limit)
        first = [next(waiting[queue]) for queue in order]
        rest = (request for requests in waiting.values() for request in requests)
        return [*first, *sorted(rest, key=lambda request: request.since)]

    def seconds_per_start(self) -> float | None:
        """Return the mean time between starts since requests began to wait; None while that is too short to say."""
        elapsed = self._now() - self._starts[0] if self._starts else 0.0
        return elapsed / len(self._starts) if elapsed >= MIN_PACE_SECONDS else None
