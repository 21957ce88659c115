"""How an end is understood."""

import pytest

from rabbit2docker.consumer.executors.base import AttemptState, AttemptStatus, BuilderResult
from rabbit2docker.consumer.following.outcome import (
    Evidence,
    ImageCheck,
    Outcome,
    Retry,
    decide,
    lost,
    restored,
    stored,
)
from rabbit2docker_schemas.events import Cancelled, Completed, Failed
from rabbit2docker_schemas.reasons import CATEGORY_OF, Category, FailureReason
from tests.support.records import REQUEST, an_attempt

DIGEST = f"sha256:{'1' * 64}"
PUSHED = BuilderResult(reason="ok", exit_code=0, digest=DIGEST, size=10, timings={"building": 5.0})


def verdict(
    result: BuilderResult | None,
    *,
    status: AttemptStatus | None = None,
    where: ImageCheck = ImageCheck.THERE,
    attempts: int = 1,
    digest: str | None = DIGEST,
) -> Outcome:
    attempt = an_attempt(state=AttemptState.ENDED, result=result, status=status)
    return decide(attempt, attempt.status, Evidence(where, ("the last line",), 7, attempts, digest, 99))


def failed(result: BuilderResult | None, **options: object) -> Failed:
    found = verdict(result, **options)  # type: ignore[arg-type]
    assert isinstance(found, Failed)
    return found


def test_a_pushed_image_that_the_registry_has_is_completed() -> None:
    found = verdict(PUSHED)
    assert isinstance(found, Completed)
    assert (found.digest, found.size, found.lines, found.timings.building) == (DIGEST, 99, 7, 5.0)


def test_the_registrys_digest_counts_not_the_builders() -> None:
    other = f"sha256:{'2' * 64}"
    found = verdict(PUSHED, digest=other)
    assert isinstance(found, Completed)
    assert found.digest == other


def test_a_registry_that_stays_away_does_not_fail_a_confirmed_push() -> None:
    assert isinstance(verdict(PUSHED, where=ImageCheck.UNKNOWN, digest=None), Completed)


def test_an_image_that_the_registry_lost_is_tried_again_and_then_failed() -> None:
    assert isinstance(verdict(PUSHED, where=ImageCheck.ABSENT, attempts=2), Retry)
    assert failed(PUSHED, where=ImageCheck.ABSENT).reason == FailureReason.IMAGE_MISSING


def test_a_forced_build_names_its_image_by_digest() -> None:
    request = REQUEST.model_copy(update={"force": True})
    attempt = an_attempt(state=AttemptState.ENDED, result=PUSHED, request=request)
    found = decide(attempt, AttemptStatus(), Evidence(ImageCheck.THERE, (), 0, 1, DIGEST))
    assert isinstance(found, Completed)
    assert found.image == f"{attempt.spec.image}@{DIGEST}"


def test_a_cancelled_build_says_by_whom() -> None:
    found = verdict(
        BuilderResult(reason="cancelled", exit_code=143), status=AttemptStatus(cancelled_by="ada")
    )
    assert isinstance(found, Cancelled)
    assert found.by == "ada"


def test_a_build_that_was_pushed_before_the_cancel_came_is_completed() -> None:
    assert isinstance(verdict(PUSHED, status=AttemptStatus(cancelled_by="ada")), Completed)


def test_what_the_service_itself_ended_is_a_timeout_and_no_cancel() -> None:
    status = AttemptStatus(cancelled_by="the service", cancel_reason="timeout")
    found = failed(BuilderResult(reason="cancelled", exit_code=143), status=status)
    assert (found.reason, found.category) == ("timeout", "timeout")


def test_a_builder_that_left_no_result_is_lost() -> None:
    assert failed(None).reason == FailureReason.BUILDER_LOST


def test_a_sigterm_from_somebody_else_is_no_cancel() -> None:
    assert failed(BuilderResult(reason="cancelled", exit_code=143)).reason == FailureReason.BUILDER_LOST


def test_a_failed_step_is_named_with_the_last_lines_and_a_hint() -> None:
    result = BuilderResult(
        reason="build_step_failed", exit_code=70, message="The step `RUN x` ended.", failed_step="RUN x"
    )
    found = failed(result, attempts=5)
    assert (found.failed_step, found.tail, found.exit_code) == ("RUN x", ["the last line"], 70)
    assert found.message == "The step `RUN x` ended."
    assert found.hint


def test_a_word_that_this_version_does_not_know_is_a_defect_of_the_builder() -> None:
    assert failed(BuilderResult(reason="bored", exit_code=1)).reason == FailureReason.BUILDER_ERROR


@pytest.mark.parametrize("reason", FailureReason)
def test_only_what_the_infrastructure_did_is_tried_again(reason: FailureReason) -> None:
    found = verdict(BuilderResult(reason=reason, exit_code=1), attempts=2)
    assert isinstance(found, Retry) == (CATEGORY_OF[reason] is Category.INFRASTRUCTURE)


def test_an_attempt_whose_record_is_gone_fails_for_good() -> None:
    found = lost(an_attempt(), Evidence(ImageCheck.UNKNOWN, (), 3, 5))
    assert isinstance(found, Failed)
    assert found.reason == FailureReason.RECORD_LOST


@pytest.mark.parametrize(
    "found",
    [
        verdict(PUSHED),
        verdict(None),
        verdict(None, attempts=2),
        verdict(None, status=AttemptStatus(cancelled_by="a")),
    ],
)
def test_a_verdict_reads_back_from_the_record_as_it_was(found: Outcome) -> None:
    assert restored(stored(found)) == found
