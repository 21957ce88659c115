"""Names of records beyond the first attempt of a build."""

import pytest

from rabbit2docker.consumer.executors.attempt_names import MAX_LENGTH, fallback_name, next_attempt_name
from rabbit2docker.consumer.executors.base import AttemptName
from tests.support.records import a_spec


def test_the_names_of_later_attempts_replace_the_suffix_of_earlier_ones() -> None:
    second = next_attempt_name(AttemptName("build-one"), 2)
    assert second == "build-one-a2"
    assert next_attempt_name(second, 3) == "build-one-a3"


def test_a_build_name_that_looks_like_a_second_attempt_keeps_its_end() -> None:
    assert next_attempt_name(AttemptName("build-a1"), 2) == "build-a1-a2"


def test_the_fallback_name_depends_on_the_build() -> None:
    one, two = a_spec(build_id="build-one"), a_spec(build_id="build-two")
    assert fallback_name(one) == fallback_name(one) != fallback_name(two)
    assert fallback_name(one).startswith(f"{one.name}-")


@pytest.mark.parametrize("name", ["b" * MAX_LENGTH, "b" * 54 + "-_" + "c" * 7, "b" * 60 + "---"])
def test_suffixed_names_are_dns_labels(name: str) -> None:
    for suffixed in (next_attempt_name(AttemptName(name), 2), fallback_name(a_spec(name))):
        assert len(suffixed) <= MAX_LENGTH
        base, _, suffix = suffixed.rpartition("-")
        assert suffix.isalnum()
        assert not base.endswith(("-", "_"))
