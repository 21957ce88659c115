"""Names of records beyond the first attempt of a build."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.executors.attempt_names import MAX_LENGTH, fallback_name, next_attempt_name
from rabbit2docker.consumer.executors.base import AttemptName
from tests.support.records import a_spec


def test_the_names_of_later_attempts_replace_the_suffix_of_earlier_ones() -> None:
    second = next_attempt_name(AttemptName("build-one"), 2)
    assert second == "build-one-a2"
    assert next_attempt_name(second, 3) == "build-one-a3"


def test_a_build_name_that_looks_like_a_second_attempt_keeps_its_end() -> None:
    assert next_attempt_name(AttemptName("build-a1"), 2) == "build-a1-a2"


@given(st.sets(st.sampled_from([f"{'b' * 60}-{end:02x}" for end in range(256)]), min_size=2))
def test_builds_whose_long_names_differ_only_at_the_end_have_attempts_of_their_own(names: set[str]) -> None:
    second = {next_attempt_name(AttemptName(name), 2) for name in names}
    third = {next_attempt_name(name, 3) for name in second}
    assert len(names) == len(second) == len(third) == len({*second, *third} - names) / 2


def test_a_long_build_name_that_ends_like_a_second_attempt_is_not_that_of_its_second_attempt() -> None:
    name = AttemptName(f"{'b' * 60}-a2")
    assert len(name) == MAX_LENGTH
    assert next_attempt_name(name, 2) != name


def test_each_attempt_has_a_fallback_name_of_its_own() -> None:
    first, second = a_spec("b" * MAX_LENGTH), a_spec("b" * MAX_LENGTH, attempt=2)
    assert fallback_name(first) != fallback_name(second)


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
