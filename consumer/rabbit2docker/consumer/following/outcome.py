"""The outcome of an attempt that has ended, decided from its record and the evidence beside it. Pure."""

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from rabbit2docker.consumer.attempt_cache import terminal_event_of
from rabbit2docker.consumer.executors.attempt_names import next_attempt_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptSpec, BuilderResult, StoredOutcome
from rabbit2docker.consumer.executors.provenance import provenance_of
from rabbit2docker.consumer.images.base import ImageInfo, pinned
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Phase, TerminalEventData, Timings
from rabbit2docker_schemas.reasons import AGAIN_OF, CATEGORY_OF, HINT_OF, INTERRUPTIONS, Again, FailureReason

RETRY: Final = "retry"
CANCELLED: Final = "cancelled"
NO_ENGINE_HINT: Final = "The operator must check that the Docker engine runs. Build again once it does."
"""Hint for a build that never met an engine, of which no step can be cached."""


class ImageCheck(StrEnum):
    """Result of looking up the pushed image in the registry."""

    THERE = "there"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    """Not looked up, or the registry did not answer: its confirmation of the push has to suffice."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The infrastructure failed the attempt, and another attempt is allowed."""

    reason: FailureReason
    message: str
    is_interruption: bool = False
    """True if this attempt does not count as one of the build's."""


Outcome = TerminalEventData | Retry


def next_spec(
    spec: AttemptSpec, failure: Retry, *, avoid: str | None, now: datetime, settings: Settings
) -> AttemptSpec:
    """Return the specification of the attempt after one that failed on the node `avoid`."""
    number = spec.attempt + 1
    return spec.model_copy(
        update={
            "attempt": number,
            "interruptions": spec.interruptions + failure.is_interruption,
            "name": next_attempt_name(spec.name, number),
            "created_at": now,
            "builder_image": settings.builder_image,
            "avoid": (*spec.avoid, *([avoid] if avoid else [])),
        }
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts about the end of an attempt that its record does not hold."""

    image_check: ImageCheck
    tail: tuple[str, ...]
    """The last log lines."""
    lines: int
    """Number of lines in the log."""
    attempts_allowed: int
    image: ImageInfo | None = None
    """The pushed image, as the registry describes it."""
    interruptions_allowed: int = 0
    is_outage: bool = False
    """True if what the attempt has lost is still away."""


_DEFAULT_MESSAGES: Final = {
    FailureReason.TIMEOUT: "The build exceeded its time limit and was ended.",
    FailureReason.IDLE: "The build printed nothing for too long and was ended.",
    FailureReason.BUILDER_LOST: "The builder ended without a result: it was ended from outside.",
    FailureReason.RECORD_LOST: "The record of the build was removed from outside.",
    FailureReason.IMAGE_MISSING: "The image was built and pushed, but the registry does not have it.",
}


def image_of(attempt: Attempt) -> str:
    """Return the name under which an attempt pushed its image: its own tenant's if the builder says that it has to be."""
    named, spec = attempt.result.image if attempt.result else None, attempt.spec
    return spec.private_image if spec.private_image and named == spec.private_image else spec.image


def decide(attempt: Attempt, evidence: Evidence) -> Outcome:
    """Decide the outcome of an attempt that has ended.

    In order of precedence: the pushed image, a cancel, an end that the executor observed, the builder's own result.
    """
    result, status = attempt.result, attempt.status
    if result is not None and result.reason == "ok":
        if evidence.image_check is not ImageCheck.ABSENT:
            return _completed(attempt, result, evidence)
        return _failed_or_retry(attempt, FailureReason.IMAGE_MISSING, evidence)
    if status.cancelled_by is not None:
        if status.cancel_reason in (None, CANCELLED):
            return _cancelled(attempt, status.cancelled_by, evidence)
        reason = FailureReason(status.cancel_reason)
        return _failed_or_retry(attempt, reason, evidence, message=status.cancel_message)
    if attempt.external_end is not None:
        end = attempt.external_end
        return _failed_or_retry(attempt, end.reason, evidence, message=end.message)
    return _failed_or_retry(attempt, _reason_of(result), evidence)


def lost(attempt: Attempt, evidence: Evidence) -> Failed:
    """Return the end of an attempt whose record is gone, and with it the request: there is no retry."""
    reason = FailureReason.RECORD_LOST
    return _failed(attempt, reason, evidence, _message(attempt, reason))


def _reason_of(result: BuilderResult | None) -> FailureReason:
    # "cancelled" without `cancelled_by` in the status: the SIGTERM came from outside.
    if result is None or result.reason == CANCELLED:
        return FailureReason.BUILDER_LOST
    try:
        return FailureReason(result.reason)
    except ValueError:
        return FailureReason.BUILDER_ERROR


def _completed(attempt: Attempt, result: BuilderResult, evidence: Evidence) -> Completed:
    image, digest = image_of(attempt), evidence.image.digest if evidence.image else result.digest
    return Completed(
        build_id=attempt.spec.build_id,
        image=pinned(image, digest) if attempt.spec.request.force else image,
        digest=digest or "",
        size=evidence.image.size if evidence.image else None,
        resolved_ref=attempt.spec.resolved_ref,
        timings=timings_of(attempt),
        attempt=attempt.spec.attempt,
        lines=evidence.lines,
        repo2docker_version=result.repo2docker_version,
        builder_image=attempt.spec.builder_image,
        provenance=provenance_of(attempt.spec, result),
        warnings=list(result.warnings),
    )


def _cancelled(attempt: Attempt, by: str, evidence: Evidence) -> Cancelled:
    return Cancelled(
        build_id=attempt.spec.build_id, by=by, attempt=attempt.spec.attempt, lines=evidence.lines
    )


def _failed_or_retry(
    attempt: Attempt, reason: FailureReason, evidence: Evidence, *, message: str | None = None
) -> Failed | Retry:
    message = message or _message(attempt, reason)
    spec = attempt.spec
    if AGAIN_OF[reason] is Again.NEVER or spec.is_last:
        return _failed(attempt, reason, evidence, message)
    is_interruption = reason in INTERRUPTIONS or evidence.is_outage
    if is_interruption and spec.interruptions < evidence.interruptions_allowed:
        return Retry(reason, message, is_interruption=True)
    if spec.attempt - spec.interruptions < evidence.attempts_allowed:
        return Retry(reason, message)
    return _failed(attempt, reason, evidence, message)


def _message(attempt: Attempt, reason: FailureReason) -> str:
    result = attempt.result
    # The builder's message takes precedence only if it is about the same reason.
    own = result.message if result and result.reason == reason else ""
    return own or _DEFAULT_MESSAGES.get(reason) or (result.message if result else "") or HINT_OF[reason]


def _hint(attempt: Attempt, reason: FailureReason) -> str:
    result = attempt.result
    met_engine = result is not None and result.phase != Phase.WAITING
    if reason is FailureReason.DOCKER_UNAVAILABLE and not met_engine:
        return NO_ENGINE_HINT
    return HINT_OF[reason]


def _failed(attempt: Attempt, reason: FailureReason, evidence: Evidence, message: str) -> Failed:
    result = attempt.result
    return Failed(
        build_id=attempt.spec.build_id,
        reason=reason,
        category=CATEGORY_OF[reason],
        message=message,
        hint=_hint(attempt, reason),
        exit_code=result.exit_code if result else None,
        failed_step=result.failed_step if result else None,
        tail=list(evidence.tail),
        attempt=attempt.spec.attempt,
        timings=timings_of(attempt),
        lines=evidence.lines,
    )


def timings_of(attempt: Attempt) -> Timings:
    """Return the seconds of each stage: those before the builder from the record, the others from the builder."""
    inside = attempt.result.timings if attempt.result else {}
    waiting = inside.get("waiting", 0.0)
    if attempt.started_at is not None:
        waiting += max(0.0, (attempt.started_at - attempt.spec.created_at).total_seconds())
    return Timings(
        queued=round(max(0.0, (attempt.spec.created_at - attempt.spec.queued_at).total_seconds()), 3),
        waiting=round(waiting, 3),
        fetching=inside.get("fetching"),
        building=inside.get("building"),
        pushing=inside.get("pushing"),
    )


def stored(outcome: Outcome) -> StoredOutcome:
    """Return the outcome as it is written into the record."""
    if isinstance(outcome, Retry):
        return StoredOutcome(kind=RETRY, data=asdict(outcome))
    return StoredOutcome(kind=outcome.kind, data=outcome.model_dump(mode="json", exclude_none=True))


def restored(outcome: StoredOutcome) -> Outcome:
    """Return the outcome that a record holds."""
    if outcome.kind == RETRY:
        data = outcome.data
        return Retry(FailureReason(data["reason"]), data["message"], bool(data.get("is_interruption")))
    return terminal_event_of(outcome)
