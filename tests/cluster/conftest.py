"""Fixtures of the tests that need a cluster. The mark `cluster` chooses them: `make test-cluster`; `keda` those of KEDA."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.dev.machine import RUN, locked, say

from tests.cluster import consumer_image as image
from tests.cluster.harness import choice, kubectl
from tests.cluster.harness.layout import TESTS_LOCK, TESTS_LOCKED
from tests.cluster.harness.suite import DISRUPTIVE

_HERE = Path(__file__).parent
_SECONDS = 600
# Other tests of one file or class share what they have installed, so one worker runs them all.
_INDEPENDENT = ("test_replicas", "test_chart", "test_images")
_RENDERING = "test_chart_"
"""Begin of the names of files that need helm alone."""
_LONGEST_FIRST = {
    name: place
    for place, name in enumerate(("test_installation", "test_executor", "test_bad_days", "test_replicas"))
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, before marks choose what runs, and put what takes longest first."""
    here = [item for item in items if item.path.is_relative_to(_HERE)]
    for item in here:
        if item.get_closest_marker("keda") is None:
            item.add_marker(pytest.mark.cluster)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_SECONDS))
        if item.path.stem not in _INDEPENDENT and not item.path.stem.startswith(_RENDERING):
            scope = item.nodeid.rpartition("::")[0]
            item.add_marker(pytest.mark.xdist_group(scope.rpartition("/")[2]))
    here.sort(key=lambda item: _LONGEST_FIRST.get(item.path.stem, len(_LONGEST_FIRST)))
    moved = set(here)
    items[:] = [*here, *(item for item in items if item not in moved)]


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of the tests that run after all others and one by one."""
    words = "takes a node or the API server away from all other tests, which must have ended"
    config.addinivalue_line("markers", f"{DISRUPTIVE}: {words}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make two runs on the same cluster wait for each other: one would blame its faults on the other."""
    if TESTS_LOCKED in os.environ or not any(item.path.is_relative_to(_HERE) for item in session.items):
        return
    if hasattr(session.config, "workerinput"):
        raise pytest.UsageError(
            "`make test-cluster` runs the cluster's tests in parallel; it holds their lock"
        )
    TESTS_LOCK.parent.mkdir(exist_ok=True)
    lock = TESTS_LOCK.open("a")
    session.config.add_cleanup(lock.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Waiting until another run of the cluster's tests has ended …")
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.fixture(autouse=True, scope="session")
def cluster() -> str:
    """The kind of the cluster: own, k3s or given. Without one these tests fail, for they were asked for."""
    kind = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER")
    if kind is None:
        pytest.fail("run `make test-cluster`, which starts a cluster and says where it is", pytrace=False)
    return kind


@pytest.fixture(scope="session")
def consumer_image(cluster: str) -> None:
    """The consumer's image in all nodes, once for all workers; a cluster that was given has it in its registry."""
    if cluster == "given":
        return
    archive, mark = RUN / "consumer.tar", RUN / "consumer-loaded"
    this_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    with locked(RUN / "consumer-image.lock"):
        if not this_run or not mark.exists() or mark.read_text() != this_run:
            image.make(archive)
            choice.load(archive)
            mark.write_text(this_run)


@pytest.fixture
def namespace(cluster: str) -> Iterator[str]:
    """A namespace of the test's own."""
    with kubectl.new_namespace() as name:
        yield name
