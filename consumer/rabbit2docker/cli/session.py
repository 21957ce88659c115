"""Running a command's asynchronous work: settings, RabbitMQ, Ctrl-C and errors."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, TypeVar

from rabbit2docker import logs
from rabbit2docker.cli.exits import errors_explained
from rabbit2docker.cli.progress import reading_progress
from rabbit2docker.client import BuildEvents, History
from rabbit2docker.settings import LogSettings, load_settings

T = TypeVar("T")

INTERRUPT_AGAIN_SECONDS: Final = 2.0
"""Time after which a Ctrl-C that did not end the work is repeated."""


class _Interrupted(Exception):
    """Ctrl-C was pressed."""


def run_with_events(work: Callable[[BuildEvents], Awaitable[T]], wait: float) -> T:
    """Run work that publishes requests or follows builds; `wait` limits the connection, in seconds."""

    async def connect_and_work() -> T:
        settings = load_settings()
        async with BuildEvents(settings.amqp, settings.tenant, wait_seconds=wait) as events:
            return await work(events)

    return run(connect_and_work)


def run_with_history(work: Callable[[History], Awaitable[T]], wait: float, *, has_bar: bool = True) -> T:
    """Run work that only reads past events; `wait` limits the connection, and each further one, in seconds.

    With `has_bar`, a bar on standard error shows how far reading is, if it takes longer than a moment.
    """

    async def connect_and_work() -> T:
        settings = load_settings()
        async with (
            reading_progress(is_wanted=has_bar) as show,
            History(
                settings.amqp,
                settings.tenant,
                wait_seconds=wait,
                reconnect_seconds=wait,
                on_progress=show,
            ) as history,
        ):
            return await work(history)

    return run(connect_and_work)


def run(work: Callable[[], Coroutine[None, None, T]]) -> T:
    """Run `work` to its end. Errors and Ctrl-C end the program with their exit codes."""
    with errors_explained():
        # Standard output belongs to the answer, and standard error to warnings that concern the user.
        logs.configure(LogSettings(level="warning", format="console"))
        try:
            return asyncio.run(_interruptible(work()))
        except _Interrupted:
            raise KeyboardInterrupt from None


async def _interruptible(work: Coroutine[None, None, T]) -> T:
    """Await `work` until Ctrl-C, then raise _Interrupted.

    asyncio cancels only once: if a library swallows that, Ctrl-C has no effect. Here it is repeated.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    is_interrupted = False

    def interrupt() -> None:
        nonlocal is_interrupted
        is_interrupted = True
        if not task.done():
            task.cancel()
            loop.call_later(INTERRUPT_AGAIN_SECONDS, interrupt)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if is_interrupted:
            raise _Interrupted from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
