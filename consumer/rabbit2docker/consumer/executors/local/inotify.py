"""File system events from inotify: logs that grow, and folders of records that come and go."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asyncinotify import Event, Inotify, Mask

from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable

_FOLDER_GONE = Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ONLYDIR


class DirectoryWatch:
    """Watches one directory of folders, and single files for one event each, with one inotify instance."""

    def __init__(self, *, on_folder: Callable[[str], None], on_events_lost: Callable[[], None]) -> None:
        """Store the callbacks.

        `on_folder` receives the name of a folder that came or went. `on_events_lost` is called if the kernel dropped
        events, or if the directory itself was removed.
        """
        self._directory = Path()
        self._is_gone = False
        self._on_folder = on_folder
        self._on_events_lost = on_events_lost
        self._inotify: Inotify | None = None
        self._watched_files: dict[Path, Callable[[], None]] = {}

    def open(self, directory: Path) -> None:
        """Start to watch the directory. Raises ConfigurationError if the kernel grants no inotify instance."""
        self._directory = directory
        try:
            self._inotify = Inotify(cache_size=64)
            # The library reads only when the descriptor is readable, but creates a blocking one.
            os.set_blocking(self._inotify.fd, False)
            self._inotify.add_watch(directory, _FOLDER_GONE)
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"The kernel refused to watch {self._directory}: {error.strerror}. Raise "
                "fs.inotify.max_user_instances and fs.inotify.max_user_watches."
            ) from error

    def renew(self) -> None:
        """Watch the directory again if it was removed and has been created anew."""
        if self._is_gone and self._inotify is not None:
            with suppress(OSError):
                self._inotify.add_watch(self._directory, _FOLDER_GONE)
                self._is_gone = False

    def close(self) -> None:
        """Stop watching; no callback is called any more."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watched_files.clear()

    def notify_once(self, path: Path, on_change: Callable[[], None]) -> None:
        """Call `on_change` at the next write to the file, and once only.

        A log may grow by thousands of lines a second and is read a few times a second: further writes in between
        cost nothing. Raises FileNotFoundError, and ExecutorUnavailable if the kernel grants no watch.
        """
        if path in self._watched_files or self._inotify is None:
            return
        try:
            self._inotify.add_watch(path, Mask.MODIFY | Mask.ONESHOT)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ExecutorUnavailable(
                f"The kernel refused to watch {path}: {error.strerror}. Raise fs.inotify.max_user_watches."
            ) from error
        self._watched_files[path] = on_change

    async def run(self) -> None:
        """Call the callbacks until cancelled."""
        assert self._inotify is not None
        async for event in self._inotify:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        watch = event.watch
        if Mask.Q_OVERFLOW in event.mask:
            for path in list(self._watched_files):
                self._fire(path)
            self._on_events_lost()
        elif watch is None:
            return
        elif watch.path != self._directory:
            self._fire(watch.path)
        elif Mask.IGNORED in event.mask:
            self._is_gone = True
            self._on_events_lost()
        elif event.name is not None:
            self._on_folder(str(event.name))

    def _fire(self, path: Path) -> None:
        if on_change := self._watched_files.pop(path, None):
            on_change()
