"""Each row of the tables that failures are judged by decides a recorded failure: without it, a test would fail.

A row that fails here has no case. Record one from a real engine, registry or git server, or remove the row.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from rabbit2docker.consumer.builder import builder
from rabbit2docker.consumer.builder.builder import Verdict
from rabbit2docker_schemas.reasons import AGAIN_OF, CATEGORY_OF, HINT_OF, Category, FailureReason
from tests.unit.test_builder_fetching import GIT_OUTPUTS, URL
from tests.unit.test_failure_corpus import (
    CASES,
    CLIENTS,
    PUSHED,
    SOLVED,
    STEPS,
    judged_build,
    verdict_of,
)

RECORD = '{"message": "Using DockerBuildPack builder\\n", "phase": "building"}'


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded failure, and what is expected of its verdict."""

    judge: Callable[[], Verdict]
    reason: str
    words: tuple[str, ...] = ()

    def is_right(self) -> bool:
        """Return whether the verdict is what users should get."""
        try:
            verdict = self.judge()
        except AssertionError:  # no row
            return False
        return verdict.reason == self.reason and all(word in verdict.message for word in self.words)


def recorded() -> Iterator[Recorded]:
    for name, case in CASES.items():
        yield Recorded(partial(verdict_of, name, case), case["reason"], tuple(case["words"]))
    errors = [(f"failed to solve: {error}", reason) for error, reason in SOLVED]
    step = 'failed to solve: process "/bin/sh -c make" did not complete successfully: '
    steps = [(step + error, "docker_unavailable") for error in STEPS]
    for error, reason in [*errors, *CLIENTS, *steps]:
        yield Recorded(partial(judged_build, [RECORD, f"ERROR: {error}"]), reason)
    for error, reason in PUSHED:
        yield Recorded(partial(pushed, error), reason)


def pushed(error: str) -> Verdict:
    return builder.judge_push(error.split("\n"), "registry.example/the-denied/quota:1", False)


RECORDED = list(recorded())


def wrong() -> int:
    """Return how many recorded failures get another verdict than they should."""
    return sum(not case.is_right() for case in RECORDED)


def without(table: tuple[Any, ...], row: int) -> tuple[Any, ...]:
    return (*table[:row], *table[row + 1 :])


@pytest.mark.parametrize(
    "row", range(len(builder.SIGNALS)), ids=lambda row: "-".join(builder.SIGNALS[row][:3:2])
)
def test_a_row_of_signals_decides_a_recorded_failure(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    speaker, pattern, _reason, _message = builder.SIGNALS[row]
    assert wrong() == 0
    monkeypatch.setattr(builder, "SIGNALS", without(builder.SIGNALS, row))
    assert wrong(), f"no recorded failure needs the row {speaker!r}, {pattern!r}"


@pytest.mark.parametrize("row", range(len(builder._READERS)))
def test_a_row_about_a_file_that_repo2docker_reads_decides_a_recorded_failure(
    monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(builder, "_READERS", without(builder._READERS, row))
    assert wrong()


@pytest.mark.parametrize("row", range(len(builder._GIT_SAYS)))
def test_a_row_about_git_decides_a_recorded_failure(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    monkeypatch.setattr(builder, "_GIT_SAYS", without(builder._GIT_SAYS, row))
    assert [kind for lines, kind, _ in GIT_OUTPUTS if builder.classify_git(lines, URL)[0] != kind]


@pytest.mark.parametrize("reason", sorted({case["reason"] for case in CASES.values()}))
def test_what_follows_from_a_reason_is_part_of_a_recorded_failure(reason: str) -> None:
    """Another category or place would be noticed, as each case names them. Who is to act is in the hint."""
    expected = {(case["category"], case["again"]) for case in CASES.values() if case["reason"] == reason}
    found = FailureReason(reason)
    assert expected == {(CATEGORY_OF[found], AGAIN_OF[found])}
    if CATEGORY_OF[found] is Category.OPERATOR:
        assert HINT_OF[found].startswith("The operator must ")
    if CATEGORY_OF[found] is Category.USER:
        assert not HINT_OF[found].startswith("The operator")
    assert list(HINT_OF.values()).count(HINT_OF[found]) == 1
