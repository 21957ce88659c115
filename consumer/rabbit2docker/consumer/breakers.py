"""Circuit breakers: what has failed repeatedly is tried once in a while, by one request, until it answers again."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

import structlog
from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker.clock import utc_now
from rabbit2docker.errors import Dependency, DependencyKind, TransientError
from rabbit2docker.retry import Backoff, doubling

log = structlog.get_logger()

FAILURES_TO_OPEN: Final = 3
"""Consecutive failures after which a dependency counts as away."""
PROBE_SECONDS: Final = doubling(5.0, 60.0)
"""Pauses between two tries of a dependency that is away."""
LONGEST_NAMED_SECONDS: Final = 7200.0
"""Longest pause that another side can ask for; GitHub's limits end within an hour."""
MAX_HOSTS: Final = 1000
"""Hosts with a breaker. Requests name them, so their number has a limit; the one used longest ago is dropped."""
MAX_NAMED_HOSTS: Final = 5
FORGOTTEN_AFTER_SECONDS: Final = 1800.0
"""An outage that no try has confirmed for this long is no longer reported: nothing needs the dependency any more."""


class DependencyAway(TransientError):
    """The breaker of a dependency is open: there was no try."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A dependency that is away."""

    dependency: Dependency
    since: datetime
    message: str
    """The last error, for people."""

    @property
    def sentence(self) -> str:
        """The outage, for operators."""
        return f"{self.message} This began at {self.since:%Y-%m-%d %H:%M} UTC; requests that need it wait."


@dataclass(slots=True)
class _Breaker:
    """The failures of one dependency since it last answered."""

    failures: int = 0
    outage: Outage | None = None
    """Set while the breaker is open."""
    last_failure_at: float = 0.0
    next_try_at: float = 0.0
    named_until: float = 0.0
    """The time until which the other side asked for patience."""
    is_being_tried: bool = False
    pauses: Backoff = field(default_factory=lambda: Backoff(PROBE_SECONDS, jitter=0.1))


def _loop_time() -> float:
    # Metrics are also read where no loop runs; the clock of a loop is this one.
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


class Breakers:
    """The breakers of all dependencies, as this replica has met them."""

    def __init__(
        self, *, now: Callable[[], datetime] = utc_now, clock: Callable[[], float] = _loop_time
    ) -> None:
        """Start with everything available. `clock` returns seconds that only grow."""
        self._now = now
        self._clock = clock
        self._hosts: LRUCache[Dependency, _Breaker] = LRUCache(MAX_HOSTS)
        self._others: dict[Dependency, _Breaker] = {}

    @contextmanager
    def guard(self, dependency: Dependency) -> Iterator[None]:
        """Surround a use of the dependency with its breaker.

        Raises DependencyAway instead if the breaker is open and it is not yet time, or another's turn, to try. A
        TransientError that names the dependency is a failure of it; any other end shows that it answers.
        """
        is_trial = self._admit(dependency)
        try:
            yield
        except TransientError as error:
            if error.outage_of == dependency:
                self._count_failure(dependency, error)
            else:
                self.close(dependency)
            raise
        except Exception:
            self.close(dependency)
            raise
        else:
            self.close(dependency)
        finally:
            # A cancelled trial proves nothing, and the next one may begin.
            if is_trial and (breaker := self._find(dependency)):
                breaker.is_being_tried = False

    def check(self, dependency: Dependency) -> None:
        """Raise DependencyAway while the dependency is away."""
        breaker = self._find(dependency)
        if breaker is not None and breaker.outage is not None:
            raise self._away(breaker, breaker.outage)

    def outage_of(self, dependency: Dependency) -> Outage | None:
        """Return the outage if the dependency is away."""
        breaker = self._find(dependency)
        return breaker.outage if breaker else None

    def outages(self) -> list[Outage]:
        """Return what is away, longest first."""
        self._forget()
        found = [breaker.outage for breaker in self._all().values() if breaker.outage is not None]
        return sorted(found, key=lambda outage: outage.since)

    def sentences(self) -> list[str]:
        """Return what operators read of the outages: all of ours, and a few of the hosts that requests name."""
        found = self.outages()
        hosts = [outage for outage in found if outage.dependency.kind is DependencyKind.HOST]
        shown = [outage.sentence for outage in found if outage not in hosts[MAX_NAMED_HOSTS:]]
        more = len(found) - len(shown)
        return [*shown, f"{more} more repository hosts are away."] if more else shown

    def export(self) -> None:
        """Have the metrics read these breakers whenever they are asked for."""
        for kind in DependencyKind:
            metrics.DEPENDENCIES_AWAY.labels(kind=kind).set_function(partial(self._count, kind))

    def _count(self, kind: DependencyKind) -> int:
        return sum(outage.dependency.kind is kind for outage in self.outages())

    def open(self, dependency: Dependency, message: str) -> None:
        """Count the dependency as away until `close`, after a check that was made on purpose."""
        breaker = self._make(dependency)
        breaker.failures += 1
        breaker.last_failure_at = self._clock()
        self._set_outage(dependency, breaker, message)

    def close(self, dependency: Dependency) -> None:
        """Count the dependency as available."""
        store = self._store(dependency)
        breaker = store.pop(dependency, None)
        if breaker is not None and breaker.outage is not None:
            seconds = (self._now() - breaker.outage.since).total_seconds()
            log.info("outage ended", dependency=dependency.title, seconds=round(seconds))

    def _admit(self, dependency: Dependency) -> bool:
        """Return whether this use is the trial of an open breaker. Raises DependencyAway if there is to be none now."""
        breaker = self._find(dependency)
        if breaker is None or breaker.outage is None:
            return False
        if breaker.is_being_tried or self._clock() < breaker.next_try_at:
            raise self._away(breaker, breaker.outage)
        breaker.is_being_tried = True
        return True

    def _away(self, breaker: _Breaker, outage: Outage) -> DependencyAway:
        named = breaker.named_until - self._clock()
        return DependencyAway(
            f"{outage.message} This began at {outage.since:%H:%M} UTC.",
            retry_after=named if named > 0 else None,
            outage_of=outage.dependency,
        )

    def _count_failure(self, dependency: Dependency, error: TransientError) -> None:
        breaker, now = self._make(dependency), self._clock()
        breaker.failures += 1
        breaker.last_failure_at = now
        named = None if error.retry_after is None else min(error.retry_after, LONGEST_NAMED_SECONDS)
        if named is not None:
            breaker.named_until = now + named
        if breaker.failures < FAILURES_TO_OPEN and named is None:
            return
        if now >= breaker.next_try_at or named is not None:
            breaker.next_try_at = now + breaker.pauses.next(at_least=named or 0.0)
        self._set_outage(dependency, breaker, error.message)

    def _set_outage(self, dependency: Dependency, breaker: _Breaker, message: str) -> None:
        since = breaker.outage.since if breaker.outage else self._now()
        if breaker.outage is None:
            log.warning("outage began", dependency=dependency.title, error=message)
        breaker.outage = Outage(dependency, since, message)

    def _forget(self) -> None:
        """Drop outages that nothing has met for long."""
        now = self._clock()
        for dependency, breaker in self._all().items():
            last = max(breaker.last_failure_at, breaker.named_until)
            if breaker.outage is not None and now > last + FORGOTTEN_AFTER_SECONDS:
                del self._store(dependency)[dependency]

    def _store(self, dependency: Dependency) -> "LRUCache[Dependency, _Breaker] | dict[Dependency, _Breaker]":
        return self._hosts if dependency.kind is DependencyKind.HOST else self._others

    def _all(self) -> dict[Dependency, _Breaker]:
        return {**self._others, **dict(self._hosts.items())}

    def _find(self, dependency: Dependency) -> _Breaker | None:
        return self._store(dependency).get(dependency)

    def _make(self, dependency: Dependency) -> _Breaker:
        return self._store(dependency).setdefault(dependency, _Breaker())
