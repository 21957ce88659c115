"""Runs the builder again and again, each time with a full disk at another of its writes, and reports how it ended.

    python disk_faults.py BUILDER DIRECTORY FAULT

BUILDER is the directory of builder.py, DIRECTORY has `spec.json`, and `fetch` instead of the whole builder if the spec
has no `workdir`. Prints one JSON object for each run: that of a healthy disk first, then those in which the first, the
second … write meets FAULT:

    once      there is space again at the next try
    always    there is none any more, so nothing is to be written
    part      half of the data fits, then there is none any more
    part-once half of the data fits, then there is space again at the next try
"""

import builtins
import contextlib
import errno
import importlib
import io
import json
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAULTS = ("once", "always", "part", "part-once")
MAX_WRITES = 500


class Disk:
    """A directory on which every operation that can need space passes through here."""

    def __init__(self, root: str, fault: str, first: int) -> None:
        """Take the number of the operation, from 1, that is the first to meet the fault; 0 for a healthy disk."""
        self.root, self.fault, self.first = root + "/", fault, first
        self.count = 0

    def _has(self, place: Any) -> bool:
        path = f"/proc/self/fd/{place}" if isinstance(place, int) else os.path.abspath(os.fspath(place))
        with contextlib.suppress(OSError):
            path = os.readlink(path) if isinstance(place, int) else path
        return str(path).startswith(self.root)

    def check(self, place: Any, *, is_new: bool = True) -> None:
        """Count an operation. Raises OSError if there is no space for it; a disk that stays full has it for old files."""
        if self._has(place) and (is_new or "once" in self.fault) and self._fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    def _fails(self) -> bool:
        self.count += 1
        if not self.first or self.count < self.first:
            return False
        return self.count == self.first or self.fault in ("always", "part")

    def room(self, place: Any, data: Any, *, is_reserved: bool = False) -> int:
        """Count a write, and return how many bytes fit. Raises OSError if there is no space for any."""
        if not self._has(place) or (is_reserved and "once" not in self.fault) or not self._fails():
            return len(data)
        if self.fault.startswith("part") and self.count == self.first and len(data) > 1:
            return len(data) // 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """Replace the functions that write."""
        system: Any = os
        bound: Any = socket.socket
        names: Any = builtins
        for name in ("mkdir", "symlink", "link", "mkfifo"):
            setattr(os, name, self._checked(getattr(os, name), is_new=True))
        for name in ("fsync", "truncate", "rename", "replace"):
            setattr(os, name, self._checked(getattr(os, name), is_new=False))
        system.open = self._opening(os.open)
        write, pwrite, allocate = system.write, system.pwrite, system.posix_fallocate
        system.write = lambda fd, data: write(fd, data[: self.room(fd, data)])
        system.pwrite = lambda fd, data, at: pwrite(
            fd, data[: self.room(fd, data, is_reserved=is_reserved(fd, at + len(data)))], at
        )

        def checked_allocate(fd: int, at: int, size: int) -> None:
            self.check(fd, is_new=not is_reserved(fd, at + size))
            allocate(fd, at, size)

        system.posix_fallocate = checked_allocate
        bind = bound.bind

        def checked_bind(made: Any, address: Any) -> None:
            self.check(address)
            bind(made, address)

        bound.bind = checked_bind
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                return super().write(bytes(data)[: disk.room(self.fileno(), data)])

        def open_file(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa"):
                return plain(path, mode, *arguments, **options)
            if not isinstance(path, int):
                self.check(path)
            raw = File(path, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=options.get("encoding"))

        plain = names.open
        names.open = open_file
        system.fdopen = open_file

    def _checked(self, function: Callable[..., Any], *, is_new: bool) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            self.check(arguments[0], is_new=is_new)
            return function(*arguments, **options)

        return checked

    def _opening(self, function: Callable[..., int]) -> Callable[..., int]:
        def opening(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                self.check(path)
            return function(path, flags, *arguments, **options)

        return opening


def is_reserved(fd: int, size: int) -> bool:
    """Return whether a file has so much space."""
    return os.fstat(fd).st_size >= size


def run(builder: Any, directory: Path, arguments: list[str], disk: Disk) -> dict[str, Any]:
    """Run the builder in a child of this process, and report."""
    place = directory / "disk"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "log.jsonl").touch()
    # As the executor leaves it.
    (place / "result.json.new").write_bytes(bytes(2000))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            sys.argv = ["builder.py", *arguments]
            builder.DISK_PATIENCE = 5.0 if "once" in disk.fault else 0.02
            builder.DISK_PAUSE = 0.005
            builder.CLEANING_PAUSE = 0.0
            disk.install()
            code = builder.main()
        except BaseException:  # noqa: BLE001 - reported
            traceback.print_exc()
        finally:
            os.write(writer, b"%d" % disk.count)
            os._exit(code)
    os.close(writer)
    count = int(b"".join(iter(lambda: os.read(reader, 100), b"")))
    os.close(reader)
    return {
        "at": disk.first,
        "count": count,
        "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        "output": (directory / "output").read_text(),
        "result": read(place / "result.json"),
        "log": (place / "log.jsonl").read_text(),
        "left": sorted(path.name for path in place.iterdir()),
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def runs(builder: Any, directory: Path, fault: str) -> Iterator[dict[str, Any]]:
    place = directory / "disk"
    spec = json.loads((directory / "spec.json").read_text())
    arguments = ["--spec", str(directory / "spec.json")]
    if spec.get("workdir"):
        arguments += ["--log", str(place / "log.jsonl"), "--result", str(place / "result.json")]
    else:
        arguments.append("--fetch")
    for first in range(MAX_WRITES):
        found = run(builder, directory, arguments, Disk(str(place), fault, first))
        yield found
        # Past the last write, nothing is left to fail.
        if first > found["count"]:
            return


def main() -> None:
    builder_directory, directory, fault = sys.argv[1:]
    sys.path.append(builder_directory)
    builder = importlib.import_module("builder")
    for found in runs(builder, Path(directory), fault):
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
