"""The engine's disk as this process sees it: in a mount namespace of the engine's own, or at the same path."""

import os
import socket
import struct
from pathlib import Path

from rabbit2docker.consumer.engine_disk.usage import Disk


def find_data_root(engine_socket: str, data_root: str) -> Path | None:
    """Return the path at which this process sees the engine's data; None if it does not."""
    try:
        engine = _peer(engine_socket)
    except OSError:
        return None
    # Without a number, the engine runs in another namespace of processes, and its data are mounted here on purpose.
    inside = Path(f"/proc/{engine}/root{data_root}") if engine > 0 else Path(data_root)
    return next((path for path in (inside, Path(data_root)) if measure(path) is not None), None)


def measure(path: Path) -> Disk | None:
    """Return size and free space of the disk at `path`; None if it cannot be seen."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    # What is reserved for root is no space for anyone else.
    reserved = found.f_bfree - found.f_bavail
    return Disk((found.f_blocks - reserved) * found.f_frsize, found.f_bavail * found.f_frsize)


def _peer(engine_socket: str) -> int:
    """Return the number of the process that listens, 0 if it is in another namespace."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(engine_socket)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])
