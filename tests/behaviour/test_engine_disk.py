"""The disk of a real engine: what a cleaning removes, what it never removes, and builds that need its space."""

import asyncio
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.dev.demo import registry_digest
from deploy.dev.engine import CONTAINERD

from rabbit2docker.consumer.engine_disk.cleaner import EngineCleaner
from rabbit2docker.consumer.engine_disk.one_cleaning import Cleaned
from rabbit2docker.consumer.executors.lease_directory import create_lease_directory
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.reasons import CATEGORY_OF, Category, FailureReason
from tests.support.consumer import Consumer
from tests.support.engine_disk import MEGABYTE, SmallBuild, SmallEngine, cleaning, small_engine
from tests.support.repositories import BASE_IMAGE, dockerfile, repository, tools_path
from tests.support.stories import build
from tests.support.waiting import eventually, eventually_blocking

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("engine-disk")]

SIZE = 8 * MEGABYTE


@pytest.fixture(scope="module", params=["", CONTAINERD], ids=["own-store", "containerd"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallEngine]:
    """An engine with its own store of images, and one with containerd's, which keeps packed layers as well."""
    size = "96m" if request.param else "48m"
    with small_engine(size, tmp_path_factory.mktemp("engine"), store=request.param) as engine:
        create_lease_directory(engine.leases)
        yield engine


@pytest.fixture
def engine(small: SmallEngine) -> Iterator[SmallEngine]:
    """The engine, with nothing but the base image."""
    yield small
    (small.disk / "ballast").unlink(missing_ok=True)
    for container in small.client.containers.list(all=True):
        container.remove(force=True)
    for image in small.client.images.list(all=True):
        if BASE_IMAGE not in image.tags:
            small.client.images.remove(str(image.id), force=True)
    small.client.api.prune_builds()


def clean(engine: SmallEngine, **limits: object) -> Cleaned:
    return asyncio.run(EngineCleaner(engine.settings(**limits)).clean_once())


def built(engine: SmallEngine, *, push: bool = True) -> str:
    build = SmallBuild(engine, SIZE, push=push)
    result = build.result()
    assert result["reason"] == "ok", build.texts()
    return build.image


def test_builds_in_a_row_never_meet_a_full_disk(engine: SmallEngine) -> None:
    engine.make("others/image:1", MEGABYTE)
    size = shutil.disk_usage(engine.disk).total
    with cleaning(engine, max_percent=60) as program:
        images = [built(engine) for _ in range(5)]
        assert {images[-1], "others/image:1", BASE_IMAGE} <= engine.names()
        assert images[0] not in engine.names()
        # They are counted at the end of a cleaning.
        eventually_blocking(lambda: program.metrics()["rabbit2docker_engine_images_removed_total"] >= 1)
        assert program.metrics()["rabbit2docker_engine_disk_freed_bytes_total"] >= SIZE
        assert program.metrics()['rabbit2docker_engine_disk_bytes{kind="size"}'] == size


def test_the_image_of_a_running_build_stays_and_goes_once_the_build_was_killed(engine: SmallEngine) -> None:
    other = engine.make_ours(SIZE)
    running = SmallBuild(engine, MEGABYTE, push=True, held=True)
    running.until_built()
    assert clean(engine, max_bytes=1).images_removed == 1
    assert other not in engine.names()
    assert running.image in engine.names()
    assert running.result()["reason"] == "ok", running.texts()
    # The same image is used by the next build, which dies.
    killed = SmallBuild(engine, MEGABYTE, held=True, image=running.image, is_there=True)
    killed.until_built()
    assert clean(engine, max_bytes=1).images_removed == 0
    killed.kill()
    clean(engine, max_bytes=1)
    assert killed.image not in engine.names()
    assert not list((engine.leases / "held").iterdir())


def test_the_digest_of_a_build_is_that_of_the_registry(engine: SmallEngine) -> None:
    build = SmallBuild(engine, MEGABYTE, push=True)
    assert build.result()["digest"] == registry_digest(build.image), build.texts()


def test_images_of_others_stay_unless_the_operator_allows_their_removal(engine: SmallEngine) -> None:
    ours, running, renamed = (engine.make_ours(MEGABYTE) for _ in range(3))
    engine.make("others/derived:1", base=ours)
    engine.client.images.get(renamed).tag("others/renamed", "1")
    for image in (running, BASE_IMAGE):
        engine.client.containers.create(image, "true")
    clean(engine, max_bytes=1)
    used = {BASE_IMAGE, running}
    assert engine.names() == {*used, "others/derived:1", "others/renamed:1"}
    clean(engine, max_bytes=1, all_images=True)
    assert engine.names() == used


def test_the_image_that_was_not_used_for_longest_goes_first(engine: SmallEngine) -> None:
    if engine.made.store == CONTAINERD:
        pytest.skip("this store does not note that an image is given the name which it has")
    first, second = built(engine), built(engine)
    again = SmallBuild(engine, SIZE, push=True, image=first, is_there=True)
    assert again.result()["reason"] == "ok", again.texts()
    stored = clean(engine, max_bytes=1 << 40).survey.stored
    clean(engine, max_bytes=stored - MEGABYTE)
    assert first in engine.names()
    assert second not in engine.names()


def test_a_build_that_meets_a_full_disk_goes_on_after_one_cleaning(engine: SmallEngine) -> None:
    with cleaning(engine, max_percent=99.9):
        earlier = engine.make_ours(SIZE)
        engine.fill(leave=SIZE // 2)
        build = SmallBuild(engine, SIZE)
        assert build.result()["reason"] == "ok", build.texts()
        assert (
            sum("Waiting until the disk of the Docker engine is cleaned" in text for text in build.texts())
            == 1
        )
        assert earlier not in engine.names()
        # What finds no space afterwards either fails with words.
        large = SmallBuild(engine, 30 * MEGABYTE)
        assert large.result()["reason"] == "disk_full"
        assert "disk of the Docker engine is full" in large.result()["message"]
        assert sum("Waiting until" in text for text in large.texts()) == 1


def test_a_disk_without_a_free_byte_is_cleaned(engine: SmallEngine) -> None:
    images = {engine.make_ours(SIZE) for _ in range(2)}
    clean(engine, max_percent=99)  # makes the reserve
    engine.client.api.prune_builds()
    engine.fill(leave=0)
    assert clean(engine, max_percent=50).freed >= 2 * SIZE
    assert not images & engine.names()


def test_a_cleaner_that_was_killed_leaves_nothing_that_stops_the_next_one(engine: SmallEngine) -> None:
    with cleaning(engine, max_percent=99.9) as first:
        first.process.kill()
    assert (engine.leases / "cleaner.sock").exists()
    build = SmallBuild(engine, SIZE, held=True)
    build.until_built()
    with cleaning(engine, max_bytes=1, check_seconds=0.5) as second:
        assert build.image in engine.names()
        assert build.result()["reason"] == "ok", build.texts()
        second.until_removed(build.image)


def test_an_engine_that_is_pruned_during_builds_is_never_the_repositorys_fault(tmp_path: Path) -> None:
    with small_engine("200m", tmp_path) as engine:
        base = f"{os.environ['RABBIT2DOCKER_TEST_REGISTRY']}/r2d-pruned-{uuid.uuid4().hex}:1"
        engine.docker("tag", BASE_IMAGE, base)
        engine.docker("push", base)
        during = [SmallBuild(engine, MEGABYTE, push=True, base=base) for _ in range(3)]
        while any(build.process.poll() is None for build in during):
            engine.prune()
        results = [build.result() for build in during]
        categories = {CATEGORY_OF[FailureReason(end["reason"])] for end in results if end["reason"] != "ok"}
        assert categories <= {Category.INFRASTRUCTURE}, results
        before_push = SmallBuild(engine, MEGABYTE, push=True, held=True, base=base)
        before_push.until_built()
        engine.prune()
        assert before_push.result()["reason"] == "image_missing", before_push.texts()
        again = SmallBuild(engine, MEGABYTE, push=True, base=base)
        assert again.result()["reason"] == "ok", again.texts()


@pytest.mark.broker
async def test_a_consumer_cleans_the_engine_that_it_builds_with(
    engine: SmallEngine, amqp: AmqpSettings, tmp_path: Path
) -> None:
    earlier = await asyncio.to_thread(engine.make_ours, MEGABYTE)
    variables = {
        "PATH": tools_path(),
        "RABBIT2DOCKER_DOCKER__HOST": engine.made.host,
        "RABBIT2DOCKER_ENGINE__DISK__MAX_BYTES": "1",
        "RABBIT2DOCKER_ENGINE__DISK__CHECK_SECONDS": "0.5",
    }
    consumer = Consumer(tmp_path, amqp, real=True, **variables)
    try:
        await asyncio.to_thread(consumer.start_and_wait)
        await eventually(lambda: earlier not in engine.names())
        with repository("disk", dockerfile("RUN echo one > /one")) as repo:
            story = await build(amqp, repo.spec())
        assert story.completed.digest
        await eventually(lambda: story.completed.image not in engine.names())
        counted = "rabbit2docker_engine_images_removed_total 2.0"
        await eventually(lambda: counted in consumer.get("/metrics")[1])
    finally:
        await asyncio.to_thread(consumer.end_everything)
