"""The consumer process of the fault tests serves here, too."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.faults.conftest import make_consumer
from tests.support.kube.replicas import Replicas

__all__ = ["make_consumer"]


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Replicas]:
    """An API server with a node, for executors in this process, which may not block."""
    with blockbuster_ctx("rabbit2docker") as blocking:
        for function in blocking.functions.values():
            # Has a thread and a loop of its own.
            function.can_block_in("executors/kubernetes/client.py", {"_read_configuration"})
        async with Replicas(tmp_path) as replicas:
            yield replicas
