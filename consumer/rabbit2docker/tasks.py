"""Tasks: the one place that starts, watches and ends background work."""

import asyncio
import math
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Final, TypeVar

from rabbit2docker.errors import Rabbit2DockerError
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff

log = get_logger()

CANCEL_AGAIN_SECONDS: Final = 60.0
"""Longer than any task takes to end by itself once it is cancelled: a second time may interrupt its clearing up."""

T = TypeVar("T")


def set_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets, for a program that then ends by itself."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


class TaskSet:
    """Named tasks with an owner: `close` ends them all, and a failure is logged even if its result is never awaited."""

    def __init__(self) -> None:
        """Start empty."""
        self._finishing: set[asyncio.Task[Any]] = set()
        self._background: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many tasks run."""
        return len(self._finishing) + len(self._background)

    def run(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start work that `close` lets finish, even when its caller is cancelled."""
        return self._start(self._finishing, work, name)

    def run_in_background(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start work that `close` cancels."""
        return self._start(self._background, work, name)

    async def close(self, *, seconds: float | None = None) -> None:
        """Cancel the background work and wait for the rest; cancel what takes longer than `seconds`."""
        await cancel_and_wait(self._background)
        if seconds is not None and self._finishing:
            await asyncio.wait(self._finishing, timeout=seconds)
            await cancel_and_wait(self._finishing)
        while self._finishing:
            await asyncio.gather(*self._finishing, return_exceptions=True)

    def _start(
        self, where: set[asyncio.Task[Any]], work: Coroutine[Any, Any, T], name: str
    ) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        where.add(task)
        task.add_done_callback(where.discard)
        task.add_done_callback(_log_defect)
        return task


def _log_defect(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception, as the caller may be gone. One that is not raised on purpose is a defect."""
    if task.cancelled() or (error := task.exception()) is None or isinstance(error, Rabbit2DockerError):
        return
    log.error("task failed", task=task.get_name(), exc_info=error)


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run some work at the same time. The first error ends it all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def restart_forever(
    work: Callable[[], Awaitable[T]],
    *,
    pauses: Sequence[float],
    report: Callable[[Exception], None],
) -> T:
    """Run work until it returns, starting it anew after each crash. `report` is called with every exception."""
    backoff = Backoff(pauses)
    while True:
        try:
            return await work()
        except Exception as error:  # noqa: BLE001  # whatever it was, the work goes on
            report(error)
            await backoff.sleep()


async def cancel_and_wait(tasks: Collection[asyncio.Task[Any]], *, seconds: float | None = None) -> None:
    """Cancel tasks and wait until they have ended, for at most `seconds`; their exceptions are dropped.

    A library may lose a cancellation that meets an answer, so it is repeated.
    """
    loop = asyncio.get_running_loop()
    pending, give_up_at = set(tasks), loop.time() + (math.inf if seconds is None else seconds)
    while pending:
        for task in pending:
            task.cancel()
        timeout = min(CANCEL_AGAIN_SECONDS, max(0.0, give_up_at - loop.time()))
        done, pending = await asyncio.wait(pending, timeout=timeout)
        for task in done:
            _ = task.cancelled() or task.exception()
        if loop.time() >= give_up_at:
            return


async def first_set(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(waiting)


def root_cause(error: BaseException) -> BaseException:
    """Return the exception to report out of a group: one of ours if there is any, else the first one."""
    while isinstance(error, BaseExceptionGroup):
        ours = [item for item in error.exceptions if isinstance(item, Rabbit2DockerError)]
        error = (ours or error.exceptions)[0]
    return error
