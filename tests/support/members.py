"""Who owns what, in tests that need no second replica."""

import asyncio

from rabbit2docker.consumer.executors.base import Executor
from rabbit2docker.consumer.ownership import Ownership


async def owning(executor: Executor) -> Ownership:
    """Return an ownership that has heard who lives."""
    ownership = Ownership(executor)
    task = asyncio.create_task(ownership.run())
    await ownership.known.wait()
    task.cancel()
    return ownership
