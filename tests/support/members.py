"""Ownership and membership for tests with one or several replicas."""

import asyncio
from collections.abc import AsyncIterator

from rabbit2docker.consumer.executors.base import Executor, Members
from rabbit2docker.consumer.ownership import Ownership
from tests.support.memory_executor import MemoryExecutor, MemoryWorld


class SharedExecutor(MemoryExecutor):
    """One replica's view of a world that several replicas share; the test sets the live replicas."""

    def __init__(self, world: MemoryWorld, me: str) -> None:
        super().__init__(world)
        self.me = me
        self.sweeps = 0
        self._lists: asyncio.Queue[frozenset[str]] = asyncio.Queue()

    def set_live(self, *live: str) -> None:
        """Report a new list of live replicas to this one."""
        self._lists.put_nowait(frozenset(live))

    async def members(self) -> AsyncIterator[Members]:
        while True:
            yield Members(self.me, await self._lists.get())

    async def sweep(self) -> None:
        self.sweeps += 1


async def ownership_of(me: str, *live: str) -> Ownership:
    """Return the ownership of a replica that has received a list of live replicas."""
    executor = SharedExecutor(MemoryWorld(), me)
    ownership, received = Ownership(executor), asyncio.Event()
    ownership.subscribe(received.set)
    task = asyncio.create_task(ownership.run())
    executor.set_live(*live)
    await received.wait()
    task.cancel()
    return ownership


async def sole_ownership(executor: Executor) -> Ownership:
    """Return the ownership of the only replica on this executor."""
    ownership = Ownership(executor)
    task = asyncio.create_task(ownership.run())
    await ownership.known.wait()
    task.cancel()
    return ownership
