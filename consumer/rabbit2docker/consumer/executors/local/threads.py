"""Threads for the blocking calls on the state directory."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, TypeVar

from rabbit2docker.consumer.executors.local.records import Record
from rabbit2docker.consumer.executors.local.state_directory import StateDirectory, unavailable

T = TypeVar("T")

_THREADS: Final = 8


class StateThreads:
    """Runs blocking calls in threads, and translates their errors."""

    def __init__(self, state: StateDirectory) -> None:
        """Store the directory that errors name. Threads are started as they are needed."""
        self._state = state
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="state")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function` in a thread. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    async def call(
        self, action: str, function: Callable[..., T], *arguments: Any, record: Record | None = None
    ) -> T:
        """Call `function` in a thread. `action` completes "Cannot …" in the message of an error.

        Raises ExecutorUnavailable for any OSError, and RecordMissing where files of `record` are gone.
        """
        try:
            with record.missing_if_gone() if record else nullcontext():
                return await self.run(function, *arguments)
        except OSError as error:
            raise unavailable(error, action, self._state.root) from error

    async def close(self) -> None:
        """Wait for the calls that run."""
        await asyncio.to_thread(self._pool.shutdown)
