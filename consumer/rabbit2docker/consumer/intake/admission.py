"""Admission of requests: a repeated answer, a joined build, the existing image, or a new attempt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final

import structlog
from cachetools import TTLCache

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.answers import accepted_from, answer_to
from rabbit2docker.consumer.attempt_cache import AttemptCache, terminal_event_of
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.attempt_names import create_under, fallback_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptSpec, AttemptStatus, AttemptStore
from rabbit2docker.consumer.images.base import FindImage, ImageInfo, pinned
from rabbit2docker.consumer.images.tenants import TenantImages
from rabbit2docker.consumer.intake.build_limits import BuildLimits
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.plan import Plan, accepted, make_plan
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import (
    ENGINE,
    EXECUTOR,
    ExecutorUnavailable,
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


async def no_settings_file() -> None:
    """Do nothing: the rules stay as they are."""


async def no_repository_needed(image: str) -> None:
    """Do nothing: a push makes the repository."""


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
    limits: BuildLimits
    breakers: Breakers = field(default_factory=Breakers)
    refresh_settings: Callable[[], Awaitable[None]] = no_settings_file
    """Called before the operator's rules are applied, which may have changed."""
    ensure_repository: Callable[[str], Awaitable[None]] = no_repository_needed
    """Called with the image before its build starts. Raises RegistryUnavailable."""
    credentials: GitCredentials = field(default_factory=GitCredentials)
    now: Callable[[], datetime] = utc_now


class Admission:
    """Admits requests, several at once, but only one at a time for the same request id."""

    def __init__(self, context: AdmissionContext) -> None:
        """Start with no cached answers."""
        self._context = context
        self._images = TenantImages(context.settings)
        # Requests answered with an existing image leave no record: their digests are kept here.
        keep = context.settings.limits.keep_ended_seconds
        self._cached_answers: TTLCache[tuple[str, str], str] = TTLCache(MAX_CACHED_ANSWERS, keep)

    async def admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
        """Answer the request. Safe to repeat after a crash at any point.

        Raises RequestRejected, or TransientError when a dependency is unavailable.
        """
        try:
            outcome = await self._admit(incoming)
        except RequestRejected as error:
            if error.reason is not RejectReason.REQUEST_ID_REUSED:
                await self._discard_credentials(incoming)
            raise
        if outcome in (AdmissionOutcome.ATTACHED, AdmissionOutcome.CACHED):
            await self._discard_credentials(incoming)
        return outcome

    async def _discard_credentials(self, incoming: IncomingRequest) -> None:
        """Delete the requester's own credentials, unless a build of this very request needs them."""
        known = self._context.attempts.of_request(incoming.tenant, incoming.request_id)
        if known is not None and known.spec.request_id == incoming.request_id:
            return
        await self._context.credentials.discard(
            incoming.tenant, incoming.request_id, incoming.request.credentials
        )

    async def _admit(self, incoming: IncomingRequest) -> AdmissionOutcome:
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
        return await self._start(plan)

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
        await self._answer_again(known, incoming)
        return True

    async def _answer_again(self, attempt: Attempt, incoming: IncomingRequest) -> None:
        """Repeat that the request has this build, and its end if that has been decided in the meantime."""
        if incoming.request_id in self._context.attempts.unanswered(attempt.name, attempt.status):
            await self._answer(attempt, incoming)
            return
        data = accepted(incoming, attempt.spec)
        await self._context.events.publish_accepted(
            incoming.tenant, data, generation=attempt.spec.generation, trace=incoming.trace
        )
        await self._publish_known_end(self._context.attempts.get(attempt.name) or attempt)

    async def _answer(self, attempt: Attempt, incoming: IncomingRequest) -> None:
        """Publish that the request has this build, unless another replica does so because it follows the build."""
        attempts, request_id = self._context.attempts, incoming.request_id
        data = accepted_from(attempt.spec, request_id, attempt.status.unanswered[request_id])
        is_published = await self._context.events.publish_accepted(
            incoming.tenant,
            data,
            generation=attempt.spec.generation,
            trace=incoming.trace,
            is_needed=partial(attempts.needs_answer, attempt.name, request_id),
        )
        if is_published:
            attempts.note_answered(attempt.name, request_id)

    async def _publish_known_end(self, attempt: Attempt) -> None:
        outcome = attempt.status.outcome
        if outcome is not None and outcome.kind in TERMINAL_KINDS:
            await self._context.events.publish_terminal(
                attempt.spec.tenant,
                terminal_event_of(outcome),
                generation=attempt.spec.generation,
                trace=attempt.spec.trace,
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
        await self._context.refresh_settings()
        provider = providers.get(request.provider)
        providers.check_allowed(request.provider, request.spec)
        provider.check(request.spec)
        access = await self._context.credentials.of_request(
            incoming.tenant, incoming.request_id, request.credentials
        )
        repository = await provider.resolve(request.spec, access)
        providers.check_resolved(repository)
        shared, own = (self._images.prefix(incoming.tenant, is_private=value) for value in (False, True))
        return make_plan(incoming, repository, own if repository.is_private else shared, own)

    async def _join_unfinished(
        self, is_wanted: Callable[[AttemptSpec], bool], incoming: IncomingRequest, notice: str | None
    ) -> bool:
        """Add the request to such a build if one runs."""
        running = self._context.attempts.unfinished(is_wanted)
        if running is None:
            return False
        with self._context.attempts.answering(running.spec.build_id):
            return await self._join(running, incoming, notice)

    async def _join(self, attempt: Attempt, incoming: IncomingRequest, notice: str | None) -> bool:
        """Add the request to a running build; return False if that ends, is being cancelled or has too many requests.

        The record's compare-and-swap decides between a join, a cancel and an outcome: which comes first counts.
        """

        request_id = incoming.request_id

        def with_request(status: AttemptStatus) -> AttemptStatus:
            if (
                not status.is_joinable
                or request_id in status.requests
                or len(status.requests) >= MAX_SHARING_REQUESTS
            ):
                return status
            open_answers = self._context.attempts.unanswered(attempt.name, status)
            return status.model_copy(
                update={
                    "requests": {**status.requests, request_id: incoming.request.digest()},
                    "unanswered": {
                        **open_answers,
                        request_id: answer_to(incoming.request, notice, incoming.trace),
                    },
                }
            )

        try:
            updated = await self._context.executor.update_status(attempt.name, with_request)
        except RecordMissing:
            return False
        self._context.attempts.put(updated)
        if request_id not in updated.status.requests:
            return False
        await self._answer_again(updated, incoming)
        return True

    async def _answer_cached(self, plan: Plan) -> bool:
        """Answer with the image that exists; return False if there is none or a build is forced."""
        incoming, events = plan.incoming, self._context.events
        found = await self._find_existing(plan)
        if found is None:
            return False
        name, image = found
        plan = replace(plan, image=name)
        self._cached_answers[incoming.tenant, incoming.request_id] = incoming.request.digest()
        answer = accepted(incoming, plan, cached=True, notice=plan.repository.notice)
        # Without a record, only the image distinguishes this answer from others to the same request.
        generation = f"cached-{plan.image}@{image.digest}"
        await events.publish_accepted(incoming.tenant, answer, generation=generation, trace=incoming.trace)
        await events.publish_terminal(
            incoming.tenant, _cached_end(plan, image), generation=generation, trace=incoming.trace
        )
        return True

    async def _find_existing(self, plan: Plan) -> tuple[str, ImageInfo] | None:
        """Return name and image that a build has just pushed, whose end may be under way, or that the registry has."""
        if plan.incoming.request.force:
            return None
        end = self._context.attempts.just_completed(plan.fingerprint)
        if end is not None and end.digest:
            return end.image.partition("@")[0], ImageInfo(end.digest, end.size)
        if not self._context.settings.images.check_registry:
            return None
        for name in plan.names:
            if image := await self._context.find_image(name, plan.incoming.tenant):
                return name, image
        return None

    async def _start(self, plan: Plan) -> AdmissionOutcome:
        """Start a build, as far as the operator's limits allow it."""
        context = self._context
        context.breakers.check(ENGINE)
        spec = plan.spec(context.settings, now=context.now())
        with (
            context.limits.starting(spec, is_bulk=plan.incoming.is_bulk),
            context.attempts.answering(plan.build_id),
        ):
            for name in plan.names:
                await context.ensure_repository(name)
            return await self._create(plan, spec)

    async def _create(self, plan: Plan, spec: AttemptSpec) -> AdmissionOutcome:
        """Create the attempt, or join the same build if another request created it first."""
        incoming, context = plan.incoming, self._context
        status = AttemptStatus(
            requests={incoming.request_id: incoming.request.digest()},
            unanswered={
                incoming.request_id: answer_to(incoming.request, plan.repository.notice, incoming.trace)
            },
        )
        for name in (spec.name, fallback_name(spec)):
            with context.breakers.guard(EXECUTOR):
                found = await create_under(name, context.executor, spec, status)
            if found is None:
                continue
            attempt, is_new = found
            context.attempts.put(attempt)
            if is_new:
                log.info("attempt created", build_id=spec.build_id, name=name, image=spec.image)
                await self._answer(attempt, incoming)
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
