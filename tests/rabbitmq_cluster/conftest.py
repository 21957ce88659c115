"""One cluster for the suite, and a virtual host for each test."""

import json
from collections.abc import Iterator

import pytest

from rabbit2docker.settings import AmqpSettings
from tests.faults.conftest import make_consumer
from tests.support import rabbitmq_cluster
from tests.support.rabbitmq_cluster import Cluster

__all__ = ["make_consumer"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, whole at the beginning of each test."""
    with rabbitmq_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def amqp(cluster: Cluster) -> AmqpSettings:
    """Settings with all nodes, for a virtual host of the test's own."""
    cluster.wait_until_whole()
    first = cluster.nodes[0]
    return AmqpSettings.model_validate(
        {"url": first.url(first.new_vhost()), "nodes": json.loads(cluster.addresses), "heartbeat": 5}
    )
