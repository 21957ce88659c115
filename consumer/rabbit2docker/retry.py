"""Retries: the pauses between tries, and a step repeated until it succeeds.

Each module keeps its own pauses as a named constant in seconds; how they are walked through, varied and reset is here.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

JITTER: Final = 0.5
"""Each pause is varied by this share of itself either way, so that replicas do not return all at once."""


def is_cancelled() -> bool:
    """Return whether this task was really cancelled. aiormq also raises CancelledError when a connection is stuck."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_if_cancelled() -> None:
    """Raise CancelledError where a library has replaced it by another error, or dropped it for a late answer."""
    if is_cancelled():
        raise asyncio.CancelledError


def doubling(first: float, longest: float) -> tuple[float, ...]:
    """Return pauses in seconds that double from `first` up to `longest`."""
    pauses = [first]
    while pauses[-1] < longest:
        pauses.append(min(pauses[-1] * 2, longest))
    return tuple(pauses)


class Backoff:
    """The pauses after consecutive failures: each step in turn, then the last one again and again."""

    def __init__(self, pauses: Sequence[float], *, jitter: float = JITTER) -> None:
        """Take the pauses in seconds, at least one."""
        self._pauses = tuple(pauses)
        self._jitter = jitter
        self.failures = 0
        """Consecutive failures so far."""

    def next(self, *, at_least: float = 0.0) -> float:
        """Count a failure and return the pause after it in seconds, never shorter than `at_least`."""
        pause = self._pauses[min(self.failures, len(self._pauses) - 1)]
        self.failures += 1
        return max(pause * random.uniform(1 - self._jitter, 1 + self._jitter), at_least)

    async def sleep(self, *, at_least: float = 0.0) -> None:
        """Count a failure and wait out the pause after it. Raises CancelledError if the failure hides one."""
        end_if_cancelled()
        await asyncio.sleep(self.next(at_least=at_least))

    def reset(self) -> None:
        """Start over with the first pause, after a success."""
        self.failures = 0


async def retry_forever(
    step: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    pauses: Sequence[float],
    report: Callable[[Exception, float], None] | None = None,
) -> T:
    """Repeat a step until it succeeds, and return its result.

    `on`: the errors that pass by themselves; any other one is raised. `report` is called with each of them and the
    pause in seconds that follows.
    """
    return await _repeat(step, on, pauses, report, max_failures=None)


async def retry(
    step: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    pauses: Sequence[float],
    report: Callable[[Exception, float], None] | None = None,
) -> T:
    """Repeat a step with one pause after each failure, and return its result.

    Raises the last error when the pauses are used up: there is one try more than there are pauses.
    """
    return await _repeat(step, on, pauses, report, max_failures=len(pauses))


async def _repeat(
    step: Callable[[], Awaitable[T]],
    on: type[Exception] | tuple[type[Exception], ...],
    pauses: Sequence[float],
    report: Callable[[Exception, float], None] | None,
    *,
    max_failures: int | None,
) -> T:
    """Repeat a step until it succeeds or has failed once more than `max_failures` times."""
    backoff = Backoff(pauses)
    while True:
        try:
            return await step()
        except on as error:
            if backoff.failures == max_failures:
                raise
            pause = backoff.next()
            if report is not None:
                report(error, pause)
            end_if_cancelled()
            await asyncio.sleep(pause)
