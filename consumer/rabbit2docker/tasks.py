"""The background work of an executor: what closing waits for, and what it cancels."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from rabbit2docker.errors import Rabbit2DockerError

log = structlog.get_logger()
T = TypeVar("T")


class Tasks:
    """Keeps tasks alive, and tells of those that break."""

    def __init__(self) -> None:
        """Start with none."""
        self._owned: set[asyncio.Task[Any]] = set()
        self._lasting: set[asyncio.Task[Any]] = set()

    def own(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Carry out work that closing waits for, even if whoever asked is cancelled."""
        return self._keep(self._owned, work, name)

    def last(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Carry out work that closing cancels."""
        return self._keep(self._lasting, work, name)

    async def close(self, *, seconds: float | None = None) -> None:
        """Cancel what lasts and wait for the rest; what takes longer than `seconds` is cancelled, too."""
        for task in self._lasting:
            task.cancel()
        await asyncio.gather(*self._lasting, return_exceptions=True)
        if seconds is not None and self._owned:
            await asyncio.wait(self._owned, timeout=seconds)
            for task in self._owned:
                task.cancel()
        while self._owned:
            await asyncio.gather(*self._owned, return_exceptions=True)

    def _keep(
        self, where: set[asyncio.Task[Any]], work: Coroutine[Any, Any, T], name: str
    ) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        where.add(task)
        task.add_done_callback(where.discard)
        task.add_done_callback(_tell_failure)
        return task


def _tell_failure(task: asyncio.Task[Any]) -> None:
    """Fetch the exception, as whoever asked may be gone; what is not raised on purpose is a defect and is told."""
    if task.cancelled() or (error := task.exception()) is None or isinstance(error, Rabbit2DockerError):
        return
    log.error("the executor broke", task=task.get_name(), exc_info=error)
