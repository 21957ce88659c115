"""What a wish leads to: an answer from memory, a joined build, the image that exists, or a new attempt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import structlog
from cachetools import TTLCache

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.attempt_names import fallback_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptStatus, Executor
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.plan import Plan, accepted_from, make_plan
from rabbit2docker.consumer.providers.base import Provider
from rabbit2docker.errors import ExecutorUnavailable, NameTaken, RecordMissing, RequestRejected
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import (
    MODEL_OF,
    TERMINAL_KINDS,
    Cancelled,
    Completed,
    Failed,
    Kind,
    Timings,
)
from rabbit2docker_schemas.reasons import RejectReason

log = structlog.get_logger()

REMEMBERED = 10_000
MAX_JOINED = 400
"""Requests that may share a build: their ids are part of its record, which in a cluster may not exceed 256 KiB."""


class AdmissionOutcome(StrEnum):
    """How intake ended, for the metrics."""

    ACCEPTED = "accepted"
    ATTACHED = "attached"
    CACHED = "cached"
    DUPLICATE = "duplicate"


class FoundImage(Protocol):
    """An image that the registry has."""

    @property
    def digest(self) -> str:
        """Return the manifest's digest."""

    @property
    def size(self) -> int | None:
        """Return the bytes of its layers, where known."""


class Catalog(Protocol):
    """The providers."""

    def get(self, prefix: str) -> Provider:
        """Return the provider; raises RequestRejected."""

    def check_allowed(self, prefix: str, spec: str) -> None:
        """Raise RequestRejected when the operator does not allow the spec."""


@dataclass(frozen=True, slots=True)
class AdmissionContext:
    """What wishes are fulfilled with."""

    executor: Executor
    attempts: AttemptCache
    events: EventPublisher
    catalog: Catalog
    find_image: Callable[[str], Awaitable[FoundImage | None]]
    settings: Settings
    cancelling: Cancellation
    before_ack: Callable[[], Awaitable[None]]
    """Called when a slot was taken, before the delivery is acknowledged."""
    now: Callable[[], datetime] = utc_now


class Admission:
    """Carries out one wish after the other; several at once, but one at a time for one request id."""

    def __init__(self, tools: AdmissionContext) -> None:
        """Start with nothing answered."""
        self._tools = tools
        # Requests answered from the registry leave no record: their digests are kept here.
        keep = tools.settings.limits.keep_ended_seconds
        self._answered: TTLCache[tuple[str, str], str] = TTLCache(REMEMBERED, keep)

    async def admit(self, wish: IncomingRequest) -> AdmissionOutcome:
        """Answer the wish. Safe to repeat after a crash at any point.

        Raises RequestRejected, or TransientError when something needed is away.
        """
        if await self._answer_duplicate(wish):
            return AdmissionOutcome.DUPLICATE
        self._check_current(wish)
        plan = await self._plan(wish)
        if (running := self._tools.attempts.unfinished_like(plan.fingerprint)) and await self._join(
            running, wish
        ):
            return AdmissionOutcome.ATTACHED
        if not wish.request.force and self._tools.settings.images.check_registry:
            found = await self._tools.find_image(plan.image)
            if found is not None:
                await self._tell_cached(plan, found)
                return AdmissionOutcome.CACHED
        return await self._build(plan)

    async def _answer_duplicate(self, wish: IncomingRequest) -> bool:
        """Tell where the build of a known request id stands."""
        known = self._tools.attempts.of_request(wish.tenant, wish.request_id)
        digest = (
            known.status.requests[wish.request_id]
            if known
            else self._answered.get((wish.tenant, wish.request_id))
        )
        if digest is None:
            return False
        if digest != wish.request.digest():
            raise RequestRejected(
                RejectReason.REQUEST_ID_REUSED,
                f"The request id {wish.request_id} was used a moment ago for something else. Use a new id for each wish.",
            )
        if known is None:
            return False  # answered from the registry: asking it again gives the same answer, or a build
        attached = known.spec.request_id != wish.request_id
        await self._tools.events.publish_accepted(
            wish.tenant, accepted_from(known.spec, wish, attached=attached)
        )
        await self._tell_end_again(known)
        return True

    async def _tell_end_again(self, attempt: Attempt) -> None:
        outcome = attempt.status.outcome
        if outcome is None or outcome.kind not in TERMINAL_KINDS:
            return
        data = MODEL_OF[Kind(outcome.kind)].model_validate(outcome.data)
        assert isinstance(data, Completed | Failed | Cancelled)
        await self._tools.events.publish_terminal(attempt.spec.tenant, data)

    def _check_current(self, wish: IncomingRequest) -> None:
        if by := self._tools.cancelling.taken_back_by(wish.tenant, wish.request_id):
            raise RequestRejected(
                RejectReason.CANCELLED, f"The request was cancelled by {by} before its build began."
            )
        limit = wish.request.not_after
        if limit is not None and self._tools.now() > limit:
            raise RequestRejected(
                RejectReason.EXPIRED,
                f"The request was to be picked up before {limit.isoformat()}, and that has passed. Ask again.",
                retryable=True,
            )

    async def _plan(self, wish: IncomingRequest) -> Plan:
        request, catalog = wish.request, self._tools.catalog
        provider = catalog.get(request.provider)
        catalog.check_allowed(request.provider, request.spec)
        provider.check(request.spec)
        repository = await provider.resolve(request.spec)
        return make_plan(wish, repository, self._tools.settings.images.prefix)

    async def _join(self, attempt: Attempt, wish: IncomingRequest) -> bool:
        """Add the request to a build that runs; False when it ended at this moment, or has joiners enough."""

        def with_request(status: AttemptStatus) -> AttemptStatus:
            if status.reported or len(status.requests) >= MAX_JOINED:
                return status
            return status.model_copy(
                update={"requests": {**status.requests, wish.request_id: wish.request.digest()}}
            )

        try:
            marked = self._tools.attempts.put(
                await self._tools.executor.update_status(attempt.name, with_request)
            )
        except RecordMissing:
            return False
        if wish.request_id not in marked.status.requests:
            return False
        attached = marked.spec.request_id != wish.request_id
        await self._tools.events.publish_accepted(
            wish.tenant, accepted_from(marked.spec, wish, attached=attached)
        )
        return True

    async def _tell_cached(self, plan: Plan, found: FoundImage) -> None:
        wish, events = plan.wish, self._tools.events
        self._answered[wish.tenant, wish.request_id] = wish.request.digest()
        await events.publish_accepted(wish.tenant, plan.accepted(cached=True))
        queued = max(0.0, (self._tools.now() - wish.queued_at).total_seconds())
        await events.publish_terminal(
            wish.tenant,
            Completed(
                build_id=wish.build_id,
                image=plan.image,
                digest=found.digest,
                size=found.size,
                resolved_ref=plan.repository.resolved_ref,
                cached=True,
                timings=Timings(queued=round(queued, 3)),
            ),
        )

    async def _build(self, plan: Plan) -> AdmissionOutcome:
        """Create the attempt, or join the one that somebody created first."""
        wish = plan.wish
        spec = plan.spec(self._tools.settings, now=self._tools.now())
        status = AttemptStatus(requests={wish.request_id: wish.request.digest()})
        for name in (spec.name, fallback_name(spec)):
            try:
                attempt, is_new = await self._tools.executor.create(
                    spec.model_copy(update={"name": name}), status
                )
            except NameTaken as error:
                log.warning("another name is needed", name=name, error=str(error))
                continue
            self._tools.attempts.put(attempt)
            if is_new:
                log.info("attempt created", build_id=spec.build_id, name=name, image=spec.image)
                await self._tools.before_ack()
                await self._tools.events.publish_accepted(wish.tenant, plan.accepted())
                return AdmissionOutcome.ACCEPTED
            same = attempt.spec.fingerprint == spec.fingerprint and not is_reported(attempt)
            if same and await self._join(attempt, wish):
                return AdmissionOutcome.ATTACHED
        raise ExecutorUnavailable(
            f"The names for build {plan.build_name} are taken by builds that have ended."
        )
