"""Small file systems, which tests can fill."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[Path]:
    """Make a directory that is a disk of this size, such as `256k`. Raises PermissionError where none can be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting a small disk needs root")
    try:
        yield directory
    finally:
        # Files that a program still holds open must not block the end of the test.
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def a_small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Make a small disk as `mounted` does; skips the test where that cannot be done."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(mounted(directory, size))
        except PermissionError as error:
            pytest.skip(str(error))
        yield disk


def fill(disk: Path) -> Path:
    """Write until nothing more fits; return the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast
