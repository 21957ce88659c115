"""Pure: how an attempt that has ended is to be understood."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rabbit2docker.consumer.executors.base import Attempt, AttemptStatus, BuilderResult, StoredOutcome
from rabbit2docker_schemas.events import (
    MODEL_OF,
    Cancelled,
    Completed,
    Failed,
    Kind,
    TerminalEventData,
    Timings,
)
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, Category, FailureReason

RETRY: Final = "retry"
CANCELLED: Final = "cancelled"


class ImageCheck(StrEnum):
    """What the registry says about the image after the push."""

    THERE = "there"
    ABSENT = "absent"
    UNKNOWN = "unknown"  # it stayed away: the push itself was confirmed by it, which has to do


@dataclass(frozen=True, slots=True)
class Retry:
    """The infrastructure failed the attempt and another one may be made."""

    reason: FailureReason
    message: str


Outcome = TerminalEventData | Retry


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about the end beside the record."""

    image_check: ImageCheck
    tail: tuple[str, ...]
    """The last log lines."""
    lines: int
    """How many lines the log has."""
    attempts_allowed: int
    digest: str | None = None
    """What the registry says the digest is."""
    size: int | None = None
    """What the registry says the bytes of the layers are."""


_WHEN_SILENT: Final = {
    FailureReason.TIMEOUT: "The build took longer than it may and was ended.",
    FailureReason.IDLE: "The build printed nothing for too long and was ended.",
    FailureReason.BUILDER_LOST: "The builder ended without saying how: it was ended from outside.",
    FailureReason.RECORD_LOST: "The record of the build was removed from outside.",
    FailureReason.IMAGE_MISSING: "The image was built and pushed, but the registry does not have it.",
}


def decide(attempt: Attempt, status: AttemptStatus, evidence: Evidence) -> Outcome:
    """Decide the end of an attempt that is over.

    The order is: success, our own wish, what the executor saw from outside, what the builder says.
    """
    result = attempt.result
    if result is not None and result.reason == "ok":
        if evidence.image_check is not ImageCheck.ABSENT:
            return _completed(attempt, result, evidence)
        return _failed(attempt, FailureReason.IMAGE_MISSING, evidence)
    if status.cancelled_by is not None:
        if status.cancel_reason in (None, CANCELLED):
            return Cancelled(
                build_id=attempt.spec.build_id,
                by=status.cancelled_by,
                attempt=attempt.spec.attempt,
                lines=evidence.lines,
            )
        return _failed(attempt, FailureReason(status.cancel_reason), evidence, said=status.cancel_message)
    if attempt.external_end is not None:
        return _failed(attempt, attempt.external_end.reason, evidence, said=attempt.external_end.message)
    return _failed(attempt, _reason_of(result), evidence)


def lost(attempt: Attempt, evidence: Evidence) -> Outcome:
    """Decide the end of an attempt whose record is gone; it cannot be tried again, as the wish is gone with it."""
    return _failed(attempt, FailureReason.RECORD_LOST, evidence, final=True)


def _reason_of(result: BuilderResult | None) -> FailureReason:
    # "cancelled" without our mark: somebody else sent SIGTERM.
    if result is None or result.reason == CANCELLED:
        return FailureReason.BUILDER_LOST
    try:
        return FailureReason(result.reason)
    except ValueError:
        return FailureReason.BUILDER_ERROR


def _completed(attempt: Attempt, result: BuilderResult, evidence: Evidence) -> Completed:
    return Completed(
        build_id=attempt.spec.build_id,
        image=_pinned(attempt, evidence.digest or result.digest),
        digest=evidence.digest or result.digest or "",
        size=evidence.size,
        resolved_ref=attempt.spec.resolved_ref,
        timings=timings_of(attempt),
        attempt=attempt.spec.attempt,
        lines=evidence.lines,
        repo2docker_version=result.repo2docker_version,
    )


def _pinned(attempt: Attempt, digest: str | None) -> str:
    """Name the image; a forced build by digest too, so that no node runs an older one from its cache."""
    image = attempt.spec.image
    return f"{image}@{digest}" if attempt.spec.request.force and digest else image


def _failed(
    attempt: Attempt,
    reason: FailureReason,
    evidence: Evidence,
    *,
    said: str | None = None,
    final: bool = False,
) -> Outcome:
    result = attempt.result
    # What the builder says counts only if it speaks of the same reason.
    own_words = said or (result.message if result and result.reason == reason else "")
    message = own_words or _WHEN_SILENT.get(reason) or (result.message if result else "") or HINT_OF[reason]
    category = CATEGORY_OF[reason]
    if category is Category.INFRASTRUCTURE and attempt.spec.attempt < evidence.attempts_allowed and not final:
        return Retry(reason, message)
    return Failed(
        build_id=attempt.spec.build_id,
        reason=reason,
        category=category,
        message=message,
        hint=HINT_OF[reason],
        exit_code=result.exit_code if result else None,
        failed_step=result.failed_step if result else None,
        tail=list(evidence.tail),
        attempt=attempt.spec.attempt,
        timings=timings_of(attempt),
        lines=evidence.lines,
    )


def timings_of(attempt: Attempt) -> Timings:
    """Return the seconds of each stage: outside the builder from the record, inside it from the builder."""
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


def stored(verdict: Outcome) -> StoredOutcome:
    """Return the verdict as it is written into the record."""
    if isinstance(verdict, Retry):
        return StoredOutcome(kind=RETRY, data={"reason": verdict.reason, "message": verdict.message})
    return StoredOutcome(kind=verdict.kind, data=verdict.model_dump(mode="json", exclude_none=True))


def restored(outcome: StoredOutcome) -> Outcome:
    """Return the verdict that a record holds."""
    if outcome.kind == RETRY:
        return Retry(FailureReason(outcome.data["reason"]), outcome.data["message"])
    data = MODEL_OF[Kind(outcome.kind)].model_validate(outcome.data)
    assert isinstance(data, Completed | Failed | Cancelled)
    return data
