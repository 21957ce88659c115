"""Fixtures of the contracts of the hub's service."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rabbit2docker.hub.store.store import Store
from tests.support.hub_service import a_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of the test's own."""
    async with a_store(tmp_path) as store:
        yield store
