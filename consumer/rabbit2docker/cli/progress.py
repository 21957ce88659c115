"""A progress bar for reading that takes longer than a moment."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress

DELAY_SECONDS: Final = 1.0


@asynccontextmanager
async def reading_progress(*, is_wanted: bool = True) -> AsyncIterator[Callable[[float], None]]:
    """Show a bar on standard error if it is a terminal and the context lasts long; yield what sets its share, 0 to 1."""
    from rabbit2docker.cli.console import err

    if not is_wanted or not err().is_terminal:
        yield lambda share: None
        return
    bar = _Bar()
    timer = asyncio.get_running_loop().call_later(DELAY_SECONDS, bar.start)
    try:
        yield bar.set
    finally:
        timer.cancel()
        bar.stop()


class _Bar:
    """Shows only that something happens until the first share is known."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._share: float | None = None

    def start(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from rabbit2docker.cli.console import err

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err(), transient=True)
        self._task = self._progress.add_task("Reading events", total=None)
        self._progress.start()
        self._show()

    def set(self, share: float) -> None:
        self._share = share
        self._show()

    def _show(self) -> None:
        if self._progress is not None and self._share is not None:
            self._progress.update(self._task, total=1.0, completed=self._share)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
