"""The outcome of an attempt, from its record and the evidence beside it."""

from typing import Any

import pytest

from rabbit2docker.consumer.executors.base import AttemptState, AttemptStatus, BuilderResult
from rabbit2docker.consumer.following.outcome import (
    NO_ENGINE_HINT,
    Evidence,
    ImageCheck,
    Outcome,
    Retry,
    decide,
    image_of,
    lost,
    restored,
    stored,
)
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker_schemas.events import Cancelled, Completed, Failed
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, Category, FailureReason
from tests.support.records import REQUEST, an_attempt

DIGEST = f"sha256:{'1' * 64}"
PUSHED = BuilderResult(reason="ok", exit_code=0, digest=DIGEST, size=10, timings={"building": 5.0})


def outcome(
    result: BuilderResult | None,
    *,
    status: AttemptStatus | None = None,
    check: ImageCheck = ImageCheck.THERE,
    attempts: int = 1,
    digest: str | None = DIGEST,
) -> Outcome:
    attempt = an_attempt(state=AttemptState.ENDED, result=result, status=status)
    image = ImageInfo(digest, 99) if digest else None
    return decide(attempt, Evidence(check, ("the last line",), 7, attempts, image))


def failed(result: BuilderResult | None, **options: object) -> Failed:
    found = outcome(result, **options)  # type: ignore[arg-type]
    assert isinstance(found, Failed)
    return found


def test_a_pushed_image_that_the_registry_has_is_completed() -> None:
    found = outcome(PUSHED)
    assert isinstance(found, Completed)
    assert (found.digest, found.size, found.lines, found.timings.building) == (DIGEST, 99, 7, 5.0)


def test_the_digest_of_the_registry_takes_precedence_over_that_of_the_builder() -> None:
    other = f"sha256:{'2' * 64}"
    found = outcome(PUSHED, digest=other)
    assert isinstance(found, Completed)
    assert found.digest == other


def test_warnings_of_the_builder_are_in_the_completed_event() -> None:
    found = outcome(PUSHED.model_copy(update={"warnings": ("Something is missing.",)}))
    assert isinstance(found, Completed)
    assert found.warnings == ["Something is missing."]


def test_the_image_has_the_name_under_which_it_was_pushed_if_the_record_allows_that() -> None:
    names: dict[str, Any] = {
        "image": "r.example/shared-one:1",
        "private_image": "r.example/shared-alpha.one:1",
    }
    for pushed in (*names.values(), "r.example/other:1", None):
        result = PUSHED.model_copy(update={"image": pushed})
        attempt = an_attempt(state=AttemptState.ENDED, result=result, **names)
        found = decide(attempt, Evidence(ImageCheck.THERE, (), 7, 1, ImageInfo(DIGEST, 99)))
        assert isinstance(found, Completed)
        named = pushed if pushed in names.values() else names["image"]
        assert (found.image, image_of(attempt)) == (named, named)


def test_a_confirmed_push_is_completed_even_if_the_registry_stays_away() -> None:
    assert isinstance(outcome(PUSHED, check=ImageCheck.UNKNOWN, digest=None), Completed)


def test_an_image_missing_after_the_push_is_retried_and_then_failed() -> None:
    assert isinstance(outcome(PUSHED, check=ImageCheck.ABSENT, attempts=2), Retry)
    assert failed(PUSHED, check=ImageCheck.ABSENT).reason == FailureReason.IMAGE_MISSING


def test_the_image_of_a_forced_build_is_named_by_digest() -> None:
    request = REQUEST.model_copy(update={"force": True})
    attempt = an_attempt(state=AttemptState.ENDED, result=PUSHED, request=request)
    found = decide(attempt, Evidence(ImageCheck.THERE, (), 0, 1, ImageInfo(DIGEST, None)))
    assert isinstance(found, Completed)
    assert found.image == f"{attempt.spec.image}@{DIGEST}"


def test_a_cancelled_build_names_the_requester_of_the_cancel() -> None:
    found = outcome(
        BuilderResult(reason="cancelled", exit_code=143), status=AttemptStatus(cancelled_by="ada")
    )
    assert isinstance(found, Cancelled)
    assert found.by == "ada"


def test_a_build_pushed_before_its_cancel_is_completed() -> None:
    assert isinstance(outcome(PUSHED, status=AttemptStatus(cancelled_by="ada")), Completed)


def test_a_build_ended_by_the_service_is_a_timeout_and_not_cancelled() -> None:
    status = AttemptStatus(cancelled_by="the service", cancel_reason="timeout")
    found = failed(BuilderResult(reason="cancelled", exit_code=143), status=status)
    assert (found.reason, found.category) == ("timeout", "timeout")


def test_a_builder_without_a_result_is_lost() -> None:
    assert failed(None).reason == FailureReason.BUILDER_LOST


def test_a_sigterm_from_outside_is_not_a_cancel() -> None:
    assert failed(BuilderResult(reason="cancelled", exit_code=143)).reason == FailureReason.BUILDER_LOST


def test_a_failed_step_is_reported_with_the_last_lines_and_a_hint() -> None:
    result = BuilderResult(
        reason="build_step_failed", exit_code=70, message="The step `RUN x` ended.", failed_step="RUN x"
    )
    found = failed(result, attempts=5)
    assert (found.failed_step, found.tail, found.exit_code) == ("RUN x", ["the last line"], 70)
    assert found.message == "The step `RUN x` ended."
    assert found.hint


def test_an_unknown_reason_of_the_builder_is_a_builder_error() -> None:
    assert failed(BuilderResult(reason="bored", exit_code=1)).reason == FailureReason.BUILDER_ERROR


@pytest.mark.parametrize("reason", FailureReason)
def test_only_infrastructure_failures_are_retried(reason: FailureReason) -> None:
    found = outcome(BuilderResult(reason=reason, exit_code=1), attempts=2)
    assert isinstance(found, Retry) == (CATEGORY_OF[reason] is Category.INFRASTRUCTURE)


def a_retry(reason: str = "docker_unavailable", *, is_outage: bool = False, **spec: Any) -> Outcome:
    attempt = an_attempt(state=AttemptState.ENDED, result=BuilderResult(reason=reason, exit_code=75), **spec)
    evidence = Evidence(ImageCheck.UNKNOWN, (), 0, 2, interruptions_allowed=3, is_outage=is_outage)
    return decide(attempt, evidence)


def test_the_loss_of_the_engine_does_not_count_as_an_attempt_up_to_a_limit() -> None:
    found = [a_retry(attempt=n + 1, interruptions=n) for n in range(4)]
    assert [isinstance(each, Retry) and each.is_interruption for each in found] == [True, True, True, False]
    assert isinstance(found[-1], Retry)  # the first of its own two attempts
    assert isinstance(a_retry(attempt=5, interruptions=3), Failed)
    # Interruptions leave the build's own attempts untouched.
    assert isinstance(a_retry("engine_error", attempt=4, interruptions=3), Retry)
    assert isinstance(a_retry("engine_error", attempt=2), Failed)


def test_a_failed_push_is_an_interruption_only_while_the_registry_is_away() -> None:
    assert isinstance(a_retry("push_failed", attempt=2), Failed)
    assert a_retry("push_failed", attempt=2, is_outage=True) == Retry(
        FailureReason.PUSH_FAILED, HINT_OF[FailureReason.PUSH_FAILED], is_interruption=True
    )


def test_after_an_outage_that_was_too_long_no_attempt_follows() -> None:
    assert isinstance(a_retry(is_last=True), Failed)


def test_steps_are_said_to_be_cached_only_if_there_ever_was_an_engine() -> None:
    lost = BuilderResult(reason="docker_unavailable", exit_code=75, phase="building")
    assert "cached" in failed(lost).hint
    assert failed(lost.model_copy(update={"phase": "waiting"})).hint == NO_ENGINE_HINT
    assert failed(None, status=AttemptStatus(cancelled_by="x", cancel_reason="docker_unavailable")).hint == (
        NO_ENGINE_HINT
    )


def test_an_attempt_without_a_record_fails_and_is_not_retried() -> None:
    found = lost(an_attempt(), Evidence(ImageCheck.UNKNOWN, (), 3, 5))
    assert isinstance(found, Failed)
    assert found.reason == FailureReason.RECORD_LOST


@pytest.mark.parametrize(
    "found",
    [
        outcome(PUSHED),
        outcome(None),
        outcome(None, attempts=2),
        outcome(None, status=AttemptStatus(cancelled_by="a")),
    ],
)
def test_a_stored_outcome_is_restored_unchanged(found: Outcome) -> None:
    assert restored(stored(found)) == found
