"""Fixtures of the doors that are asynchronous."""

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop that all inputs of a module share: one for each would take most of the time."""
    with asyncio.Runner() as runner:
        yield runner
