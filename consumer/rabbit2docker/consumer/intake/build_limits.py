"""The operator's limits on builds: of a tenant, a requester and a repository, at once and within an hour.

They count records of attempts, which all replicas see. A replica learns of the others' builds within about a second, so
together they can exceed a limit by the requests that they admit in the same moment.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import unquote

from rabbit2docker import metrics
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.executors.base import AttemptSpec, Change, Changed
from rabbit2docker.consumer.providers.bans import repository_key
from rabbit2docker.consumer.providers.patterns import SpecPatterns
from rabbit2docker.errors import LimitReached, RequestRejected
from rabbit2docker.settings import PolicySettings
from rabbit2docker_schemas.reasons import RejectReason

HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a build, as it counts for limits."""

    build_id: str
    tenant: str
    requester: str | None
    repository: str
    at: datetime

    @classmethod
    def of(cls, spec: AttemptSpec) -> "Start":
        """Return the start of the build that an attempt belongs to."""
        requester, repository = spec.request.requester, repository_key(spec.repo_url)
        return cls(spec.build_id, spec.tenant, requester, repository, spec.created_at)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A limit as it applies to one build."""

    name: str
    """Name of its setting."""
    subject: str
    """What it counts for, as the beginning of a sentence."""
    limit: int
    counts: Callable[[Start], bool]


class Quotas:
    """Numbers of builds of one repository that may run at once, by pattern."""

    def __init__(self, policy: PolicySettings) -> None:
        """Compile the patterns. Raises ConfigurationError when one is not a regular expression."""
        self._policy = policy
        self._high = SpecPatterns("policy.high_quota_specs", policy.high_quota_specs)
        self._configs = {
            prefix: [
                (SpecPatterns("policy.spec_config", {prefix: [config.pattern]}), config.config.quota)
                for config in reversed(configs)
            ]
            for prefix, configs in policy.spec_config.items()
        }

    def of(self, prefix: str, spec: str) -> int:
        """Return the quota of a repository; 0: any number."""
        texts = [(prefix, spec), (prefix, unquote(spec))]
        for patterns, quota in self._configs.get(prefix, ()):
            if patterns.match(texts):
                return quota
        return self._policy.high_quota_builds if self._high.match(texts) else self._policy.repository_builds


class BuildLimits:
    """Admits new builds within the limits. Restarts lose sight of builds whose records are gone."""

    def __init__(
        self,
        attempts: AttemptCache,
        policy: PolicySettings,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Count the attempts that the cache has and will have. Raises ConfigurationError for an invalid pattern."""
        self._attempts = attempts
        self._now = now
        self._starting: dict[str, Start] = {}
        self._started: dict[str, Start] = {}
        self.use(policy, Quotas(policy))
        attempts.subscribe(self._on_change)

    def use(self, policy: PolicySettings, quotas: Quotas) -> None:
        """Apply other limits from the next request on."""
        self._policy = policy
        self._quotas = quotas

    @contextmanager
    def starting(self, spec: AttemptSpec, *, is_bulk: bool) -> Iterator[None]:
        """Count a build while its record is being created.

        Raises LimitReached where its request waits, and RequestRejected(LIMIT_REACHED) where it has to come again.
        """
        start = Start.of(spec)
        self._check(start, spec, is_bulk=is_bulk)
        self._starting[start.build_id] = start
        try:
            yield
        finally:
            del self._starting[start.build_id]

    def _check(self, start: Start, spec: AttemptSpec, *, is_bulk: bool) -> None:
        # What has to come again does not wait first.
        for rule in self._rules(start, "builds_per_hour"):
            if rule.limit and (until := self._free_at(rule)) is not None:
                metrics.REQUESTS_LIMITED.labels(limit=rule.name).inc()
                raise self._spent(rule, until, is_bulk=is_bulk)
        rules = [rule for rule in self._rules_at_once(start, spec) if rule.limit]
        running = self._running().values() if rules else ()
        for rule in rules:
            if (count := sum(map(rule.counts, running))) >= rule.limit:
                metrics.REQUESTS_LIMITED.labels(limit=rule.name).inc()
                raise LimitReached(
                    f"{rule.subject} has {_builds(count)} running, and the limit is {rule.limit}. "
                    "The request goes on by itself when one of them has ended.",
                    limit=rule.name,
                )

    def _spent(self, rule: _Rule, until: datetime, *, is_bulk: bool) -> LimitReached | RequestRejected:
        spent = f"{rule.subject} has started {_builds(rule.limit)} within an hour, which is the limit."
        if is_bulk:
            wait = (until - self._now()).total_seconds()
            return LimitReached(spent, limit=rule.name, retry_after=wait)
        return RequestRejected(
            RejectReason.LIMIT_REACHED,
            f"{spent} The next one can start at {until:%H:%M:%S} UTC: request the build again then.",
            retryable=True,
        )

    def _rules_at_once(self, start: Start, spec: AttemptSpec) -> Iterator[_Rule]:
        quota = self._quotas.of(spec.request.provider, spec.request.spec)
        yield _Rule(
            "repository_builds",
            f"The repository {spec.repo_url}",
            quota,
            lambda other: other.repository == start.repository,
        )
        yield from self._rules(start, "builds")

    def _rules(self, start: Start, what: str) -> Iterator[_Rule]:
        tenant, requester = start.tenant, start.requester
        if requester is not None:
            name = f"requester_{what}"
            yield _Rule(
                name,
                f"The requester {requester}",
                self._limit(tenant, name),
                lambda other: (other.tenant, other.requester) == (tenant, requester),
            )
        name = f"tenant_{what}"
        yield _Rule(
            name, f"The tenant {tenant}", self._limit(tenant, name), lambda other: other.tenant == tenant
        )

    def _limit(self, tenant: str, name: str) -> int:
        own = getattr(self._policy.tenants.get(tenant), name, None)
        return int(getattr(self._policy, name) if own is None else own)

    def _running(self) -> dict[str, Start]:
        """Return the builds that run or are about to, by id."""
        live = (Start.of(attempt.spec) for attempt in self._attempts.live())
        return self._starting | {start.build_id: start for start in live}

    def _free_at(self, rule: _Rule) -> datetime | None:
        """Return when the limit has room again; None if it has."""
        since = self._now() - HOUR
        for build_id in [start.build_id for start in self._started.values() if start.at <= since]:
            del self._started[build_id]
        known = (self._starting | self._started).values()
        times = sorted(start.at for start in known if rule.counts(start))
        return times[-rule.limit] + HOUR if len(times) >= rule.limit else None

    def _on_change(self, change: Change) -> None:
        """Remember when a build started, for longer than its record lasts."""
        if isinstance(change, Changed) and change.attempt.spec.attempt == 1:
            start = Start.of(change.attempt.spec)
            if start.at > self._now() - HOUR:
                self._started[start.build_id] = start


def _builds(count: int) -> str:
    return f"{count} build{'' if count == 1 else 's'}"
