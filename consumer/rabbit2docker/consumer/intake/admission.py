"""Admission of requests: a repeated answer, a joined build, the existing image, or a new attempt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import structlog
from cachetools import TTLCache

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.attempt_cache import AttemptCache, terminal_event_of
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.attempt_names import fallback_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptSpec, AttemptStatus, AttemptStore
from rabbit2docker.consumer.images.base import FindImage, ImageInfo, pinned
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.plan import Plan, accepted, make_plan
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import (
    ENGINE,
    EXECUTOR,
    ExecutorUnavailable,
    NameTaken,
    RecordMissing,
    RequestRejected,
)
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import TERMINAL_KINDS, Completed
from rabbit2docker_schemas.reasons import RejectReason

log = structlog.get_logger()

MAX_CACHED_ANSWERS: Final = 10_000
MAX_SHARING_REQUESTS: Final = 400
"""Requests that may share a build: their ids are part of its record, which in a cluster may not exceed 256 KiB."""


class AdmissionOutcome(StrEnum):
    """Outcomes of admission, as metrics label them."""

    ACCEPTED = "accepted"
    ATTACHED = "attached"
    CACHED = "cached"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class AdmissionContext:
    """The services that admission works with."""

    executor: AttemptStore
    attempts: AttemptCache
    events: EventPublisher
    providers: Providers
    find_image: FindImage
    settings: Settings
    cancellation: Cancellation
    before_ack: Callable[[], Awaitable[None]]
    """Called after a slot was taken and before the delivery is acknowledged."""
    breakers: Breakers = field(default_factory=Breakers)
    now: Callable[[], datetime] = utc_now


class Admission:
    """Admits requests, several at once, but only one at a time for the same request id."""

    def __init__(self, context: AdmissionContext) -> None:
        """Start with no cached answers."""
        self._context = context
        # Requests answered with an existing image leave no record: their digests are kept here.
        keep = context.settings.limits.keep_ended_seconds
        self._cached_answers: TTLCache[tuple[str, str], str] = TTLCache(MAX_CACHED_ANSWERS, keep)

    async def admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
        """Answer the request. Safe to repeat after a crash at any point.

        Raises RequestRejected, or TransientError when a dependency is unavailable.
        """
        if await self._answer_duplicate(incoming):
            return AdmissionOutcome.DUPLICATE
        self._check_current(incoming)
        plan = await self._plan(incoming)
        self._check_current(incoming)  # the repository's host may have taken its time
        notice = plan.repository.notice
        if await self._join_unfinished(lambda spec: spec.fingerprint == plan.fingerprint, incoming, notice):
            return AdmissionOutcome.ATTACHED
        if await self._answer_cached(plan):
            return AdmissionOutcome.CACHED
        # Only now: an image that exists need not wait for the one that will replace it.
        if not incoming.request.force and await self._join_unfinished(plan.is_forced_by, incoming, notice):
            return AdmissionOutcome.ATTACHED
        with self._context.attempts.answering(plan.build_id):
            return await self._create(plan)

    async def answer_dropped(self, incoming: IncomingRequest) -> bool:
        """Answer a request that will not be taken again, if a build has it; return False if none has.

        Raises RequestRejected if it was cancelled or has expired.
        """
        if await self._answer_duplicate(incoming):
            return True
        self._check_current(incoming)
        return False

    async def _answer_duplicate(self, incoming: IncomingRequest) -> bool:
        """Repeat the answer to a request id that a build has already; return False if no build has it."""
        known = self._context.attempts.of_request(incoming.tenant, incoming.request_id)
        digest = (
            known.status.requests[incoming.request_id]
            if known
            else self._cached_answers.get((incoming.tenant, incoming.request_id))
        )
        if digest is None:
            return False
        if digest != incoming.request.digest():
            raise RequestRejected(
                RejectReason.REQUEST_ID_REUSED,
                f"The request id {incoming.request_id} was used recently for a different request. "
                "Use a new id for each request.",
            )
        if known is None:
            return False  # answered with an existing image: the lookup gives the same answer, or a build
        await self._answer(known, incoming)
        return True

    async def _answer(self, attempt: Attempt, incoming: IncomingRequest, notice: str | None = None) -> None:
        """Publish that the request has this build, and repeat its end if that has been decided in the meantime."""
        await self._publish_accepted(attempt, incoming, notice)
        await self._publish_known_end(self._context.attempts.get(attempt.name) or attempt)

    async def _publish_accepted(
        self, attempt: Attempt, incoming: IncomingRequest, notice: str | None = None
    ) -> None:
        data = accepted(incoming, attempt.spec, notice=notice)
        await self._context.events.publish_accepted(incoming.tenant, data, generation=attempt.spec.generation)

    async def _publish_known_end(self, attempt: Attempt) -> None:
        outcome = attempt.status.outcome
        if outcome is not None and outcome.kind in TERMINAL_KINDS:
            await self._context.events.publish_terminal(
                attempt.spec.tenant, terminal_event_of(outcome), generation=attempt.spec.generation
            )

    def _check_current(self, incoming: IncomingRequest) -> None:
        """Raise RequestRejected when the request was cancelled or has expired."""
        if by := self._context.cancellation.withdrawn_by(incoming.tenant, incoming.build_id):
            raise RequestRejected(
                RejectReason.CANCELLED, f"The request was cancelled by {by} before its build started."
            )
        limit = incoming.request.not_after
        if limit is not None and self._context.now() > limit:
            raise RequestRejected(
                RejectReason.EXPIRED,
                f"The request was not picked up before its limit, {limit.isoformat()}. Send it again.",
                retryable=True,
            )

    async def _plan(self, incoming: IncomingRequest) -> Plan:
        request, providers = incoming.request, self._context.providers
        provider = providers.get(request.provider)
        providers.check_allowed(request.provider, request.spec)
        provider.check(request.spec)
        repository = await provider.resolve(request.spec)
        return make_plan(incoming, repository, self._context.settings.images.prefix)

    async def _join_unfinished(
        self, is_wanted: Callable[[AttemptSpec], bool], incoming: IncomingRequest, notice: str | None
    ) -> bool:
        """Add the request to such a build if one runs."""
        running = self._context.attempts.unfinished(is_wanted)
        return running is not None and await self._join(running, incoming, notice)

    async def _join(self, attempt: Attempt, incoming: IncomingRequest, notice: str | None) -> bool:
        """Add the request to a running build; return False if that ends, is being cancelled or has too many requests.

        The record's compare-and-swap decides between a join, a cancel and an outcome: which comes first counts.
        """

        def with_request(status: AttemptStatus) -> AttemptStatus:
            if not status.is_joinable or len(status.requests) >= MAX_SHARING_REQUESTS:
                return status
            return status.model_copy(
                update={"requests": {**status.requests, incoming.request_id: incoming.request.digest()}}
            )

        try:
            updated = await self._context.executor.update_status(attempt.name, with_request)
        except RecordMissing:
            return False
        self._context.attempts.put(updated)
        if incoming.request_id not in updated.status.requests:
            return False
        await self._answer(updated, incoming, notice)
        return True

    async def _answer_cached(self, plan: Plan) -> bool:
        """Answer with the image that the registry has; return False if it has none or a build is forced."""
        incoming, events = plan.incoming, self._context.events
        if incoming.request.force or not self._context.settings.images.check_registry:
            return False
        image = await self._context.find_image(plan.image)
        if image is None:
            return False
        self._cached_answers[incoming.tenant, incoming.request_id] = incoming.request.digest()
        answer = accepted(incoming, plan, cached=True, notice=plan.repository.notice)
        # Without a record, only the image distinguishes this answer from others to the same request.
        generation = f"cached-{plan.image}@{image.digest}"
        await events.publish_accepted(incoming.tenant, answer, generation=generation)
        await events.publish_terminal(incoming.tenant, _cached_end(plan, image), generation=generation)
        return True

    async def _create(self, plan: Plan) -> AdmissionOutcome:
        """Create the attempt, or join the same build if another request created it first."""
        incoming, context = plan.incoming, self._context
        context.breakers.check(ENGINE)
        spec = plan.spec(context.settings, now=context.now())
        status = AttemptStatus(requests={incoming.request_id: incoming.request.digest()})
        for name in (spec.name, fallback_name(spec)):
            try:
                with context.breakers.guard(EXECUTOR):
                    attempt, is_new = await context.executor.create(
                        spec.model_copy(update={"name": name}), status
                    )
            except NameTaken as error:
                log.warning("record name taken", name=name, error=str(error))
                continue
            context.attempts.put(attempt)
            if is_new:
                log.info("attempt created", build_id=spec.build_id, name=name, image=spec.image)
                await context.before_ack()
                await self._publish_accepted(attempt, incoming, plan.repository.notice)
                return AdmissionOutcome.ACCEPTED
            is_same_build = attempt.spec.fingerprint == spec.fingerprint
            if is_same_build and await self._join(attempt, incoming, plan.repository.notice):
                return AdmissionOutcome.ATTACHED
        raise ExecutorUnavailable(
            f"Ended builds hold the record names for build {plan.build_name}. Waiting for them to be deleted."
        )


def _cached_end(plan: Plan, image: ImageInfo) -> Completed:
    """Return the end for an existing image: the same for every delivery, as its id is."""
    return Completed(
        build_id=plan.build_id,
        # A node may have an older image of this tag, from before a forced build.
        image=pinned(plan.image, image.digest),
        digest=image.digest,
        size=image.size,
        resolved_ref=plan.resolved_ref,
        cached=True,
    )
