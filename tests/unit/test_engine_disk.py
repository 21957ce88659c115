"""The order in which an engine's disk is cleaned, and what belongs to this service."""

from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.consumer.engine_disk.ownership import RESERVE, removable
from rabbit2docker.consumer.engine_disk.usage import (
    CacheRecord,
    Disk,
    EngineImage,
    PruneCache,
    Removable,
    Survey,
    next_step,
)
from rabbit2docker.consumer.executors.provenance import BUILD_ID, IMAGE
from rabbit2docker.settings import DiskSettings

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NAME = "registry.example/r2d-one:1"
OURS = {BUILD_ID: "0-1", IMAGE: NAME}


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def an_image(
    *tags: str, labels: dict[str, str] = OURS, is_used: bool = False, is_pushed: bool = True
) -> EngineImage:
    digests = (f"{NAME}@sha256:1",) if is_pushed else ()
    return EngineImage("sha256:0", tags, digests, labels, ago(600), is_used)


def a_removable(minutes: float, *, is_pushed: bool = True) -> Removable:
    found = removable(an_image(NAME, is_pushed=is_pushed), ago(minutes), all_images=False)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("image", "references"),
    [
        (an_image(NAME), (NAME,)),
        (an_image(), ("sha256:0",)),
        (an_image(NAME, "others/name:1"), (NAME,)),
        (an_image("org/r2d-one:1", labels={**OURS, IMAGE: "docker.io/org/r2d-one:1"}), ("org/r2d-one:1",)),
        (an_image("others/derived:1"), None),
        (an_image(NAME, labels={IMAGE: NAME}), None),
        (an_image(NAME, labels={}), None),
        (an_image(NAME, is_used=True), None),
    ],
)
def test_only_names_that_this_service_gave_are_removed(
    image: EngineImage, references: tuple[str, ...] | None
) -> None:
    found = removable(image, NOW, all_images=False)
    assert (found.references if found else None) == references


def test_all_images_may_be_allowed_but_for_the_reserve_and_those_of_containers() -> None:
    assert removable(an_image("base:1", labels={}), NOW, all_images=True)
    assert not removable(an_image("base:1", labels={}, is_used=True), NOW, all_images=True)
    assert not removable(an_image(labels={RESERVE: "1"}), NOW, all_images=True)


def test_an_image_that_a_next_attempt_may_push_goes_last() -> None:
    failed, pushed, forgotten = (
        a_removable(30, is_pushed=False),
        a_removable(10),
        a_removable(90, is_pushed=False),
    )
    assert sorted([failed, pushed, forgotten], key=lambda each: each.rank(NOW)) == [forgotten, pushed, failed]


def test_what_was_not_used_for_longest_goes_first_be_it_cache_or_image() -> None:
    old, new = CacheRecord(100, ago(90)), CacheRecord(10, ago(5))
    assert next_step([a_removable(60)], [old, new], 30) == PruneCache(keep=80)
    assert next_step([a_removable(60)], [old, new], 500) == PruneCache(keep=10), "no more than is older"
    assert next_step([a_removable(60)], [new], 500) == a_removable(60)
    assert next_step([], [new], 500) == PruneCache(keep=0)
    assert next_step([], [], 500) is None


def test_both_limits_hold_and_a_disk_that_cannot_be_seen_has_none() -> None:
    cache = (CacheRecord(20, NOW),)
    survey = Survey((), 100, cache, Disk(size=1000, free=100))
    assert survey.excess(DiskSettings(max_bytes=110)) == 10
    assert survey.excess(DiskSettings(max_percent=80)) == 100
    assert survey.excess(DiskSettings(max_bytes=110, max_percent=80)) == 100
    assert survey.excess(DiskSettings(max_bytes=110), part=0.5) == 65
    assert Survey((), 100, cache, None).excess(DiskSettings(max_percent=1)) == 0
