"""The cache finds what a look through all records would find, and counts only what changes slots."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    Changed,
    Removed,
)
from rabbit2docker_schemas.ids import build_id_of
from tests.support.records import an_attempt

NAMES = ("a", "b", "c")
REQUESTS = ("r", "s", "t")


def a_cache() -> AttemptCache:
    return AttemptCache(cast("Any", None))


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    status = AttemptStatus(
        requests=dict.fromkeys(draw(st.sets(st.sampled_from(REQUESTS))), "digest"),
        reported=draw(st.booleans()),
    )
    return an_attempt(
        draw(st.sampled_from(NAMES)),
        build_id=build_id_of("default", draw(st.sampled_from("xy"))),
        attempt=draw(st.integers(1, 2)),
        state=draw(st.sampled_from([AttemptState.RUNNING, AttemptState.ENDED])),
        status=status,
    )


@given(st.lists(attempts().map(Changed) | st.sampled_from(NAMES).map(AttemptName).map(Removed), max_size=20))
def test_the_indexes_agree_with_all_records(changes: list[Changed | Removed]) -> None:
    cache, records = a_cache(), dict[str, Attempt]()
    for change in changes:
        live = {name for name, attempt in records.items() if attempt.is_live}
        counted = cache.slot_changes
        cache.apply(change)
        if isinstance(change, Changed):
            records[change.attempt.name] = change.attempt
        else:
            records.pop(change.name, None)
        is_change = live != {name for name, attempt in records.items() if attempt.is_live}
        assert cache.slot_changes - counted == is_change
    everything = list(records.values())
    assert list(cache) == everything
    assert {each.name for each in cache.live()} == {each.name for each in everything if each.is_live}
    for request_id in REQUESTS:
        found = cache.of_request("default", request_id)
        having = [each for each in everything if request_id in each.status.requests]
        assert (found in having) if having else (found is None)
        assert found is None or found.spec.attempt == max(each.spec.attempt for each in having)
        assert cache.of_request("other", request_id) is None
    for build_id in (build_id_of("default", name) for name in "xy"):
        expected = [each for each in everything if each.spec.build_id == build_id]
        assert {each.name for each in cache.of_build(build_id)} == {each.name for each in expected}
    open_ = {each.name for each in everything if not is_reported(each)}
    found = cache.unfinished(lambda spec: True)
    assert (found.name in open_) if found else not open_
    assert set(cache._by_request) == {("default", id_) for each in everything for id_ in each.status.requests}
    assert set(cache._by_build) == {each.spec.build_id for each in everything}


class Records(dict[AttemptName, Attempt]):
    """Records that count how many of them are looked at."""

    looks = 0

    def values(self) -> Any:
        self.looks += len(self)
        return super().values()

    def __iter__(self) -> Any:
        self.looks += len(self)
        return super().__iter__()


def test_a_request_costs_no_look_through_the_records_of_builds_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, records = a_cache(), Records()
    monkeypatch.setattr(cache, "_by_name", records)
    for number in range(500):
        status = AttemptStatus(requests={f"r{number}": "digest"}, reported=True)
        cache.put(an_attempt(f"b{number}", state=AttemptState.ENDED, status=status))
    cache.put(an_attempt("live", status=AttemptStatus(requests={"live": "digest"})))
    assert cache.of_request("default", "r7") is not None
    assert cache.newest_of_build(build_id_of("default", "b7")) is not None
    assert cache.unfinished(lambda spec: spec.fingerprint == "live") is not None
    assert cache.just_completed("b7") is None
    assert [attempt.name for attempt in cache.live()] == ["live"]
    assert records.looks == 0
