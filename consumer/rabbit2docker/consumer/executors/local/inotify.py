"""News from the kernel: a log has grown, a record's folder is gone. One inotify instance for the executor."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from asyncinotify import Event, Inotify, Mask

from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable

_FOLDER_GONE = Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ONLYDIR


class DirectoryWatch:
    """Watches one directory of folders, and each file once until it is armed again."""

    def __init__(self, *, on_folder: Callable[[str], None], on_everything: Callable[[], None]) -> None:
        """Call `on_folder` with the name of a folder that went or came, `on_everything` when news were lost."""
        self._directory = Path()
        self._is_lost = False
        self._on_folder = on_folder
        self._on_everything = on_everything
        self._inotify: Inotify | None = None
        self._armed: dict[Path, Callable[[], None]] = {}

    def open(self, directory: Path) -> None:
        """Begin to watch the directory. Raises ConfigurationError when the kernel grants no instance."""
        self._directory = directory
        try:
            self._inotify = Inotify(cache_size=64)
            # The library reads only when there is something to read, but asks for a blocking descriptor.
            os.set_blocking(self._inotify.fd, False)
            self._inotify.add_watch(directory, _FOLDER_GONE)
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"The kernel does not let {self._directory} be watched: {error.strerror}. "
                "Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches."
            ) from error

    def find_again(self) -> None:
        """Watch the directory again if it was removed and there is another one now."""
        if self._is_lost and self._inotify is not None:
            with suppress(OSError):
                self._inotify.add_watch(self._directory, _FOLDER_GONE)
                self._is_lost = False

    def close(self) -> None:
        """End; nobody is called any more."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._armed.clear()

    def arm(self, path: Path, on_change: Callable[[], None]) -> None:
        """Call `on_change` once when the file is written to from now on.

        Once only, because thousands of lines a second are read a few times a second: what is written in between
        then costs nothing here. Raises FileNotFoundError, and ExecutorUnavailable when the kernel grants no watch.
        """
        if path in self._armed or self._inotify is None:
            return
        try:
            self._inotify.add_watch(path, Mask.MODIFY | Mask.ONESHOT)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ExecutorUnavailable(
                f"The kernel does not let {path} be watched: {error.strerror}. Raise fs.inotify.max_user_watches."
            ) from error
        self._armed[path] = on_change

    async def run(self) -> None:
        """Hand on news until cancelled."""
        assert self._inotify is not None
        async for event in self._inotify:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        watch = event.watch
        if Mask.Q_OVERFLOW in event.mask:
            for path in list(self._armed):
                self._fire(path)
            self._on_everything()
        elif watch is None:
            return
        elif watch.path != self._directory:
            self._fire(watch.path)
        elif Mask.IGNORED in event.mask:
            self._is_lost = True
            self._on_everything()
        elif event.name is not None:
            self._on_folder(str(event.name))

    def _fire(self, path: Path) -> None:
        if on_change := self._armed.pop(path, None):
            on_change()
