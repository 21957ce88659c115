"""Small file systems, which tests can fill."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def a_small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Make a directory that is a disk of this size, such as `256k`; skips the test where none can be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield directory
    finally:
        # Files that a program still holds open must not block the end of the test.
        subprocess.run(["umount", "--lazy", directory], check=True)
