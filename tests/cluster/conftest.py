"""Everything beside this file needs a cluster and is chosen by its mark alone: `make test-cluster`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import kubectl

_HERE = Path(__file__).parent
_SECONDS = 300


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, before marks choose what runs."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(autouse=True, scope="session")
def cluster() -> str:
    """Which kind of cluster it is: own, k3s or given. Without one these tests fail: they were asked for."""
    kind = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER")
    if kind is None:
        pytest.fail("run `make test-cluster`, which starts a cluster and says where it is", pytrace=False)
    return kind


@pytest.fixture
def namespace(cluster: str) -> Iterator[str]:
    """A namespace of the test's own."""
    with kubectl.new_namespace() as name:
        yield name
