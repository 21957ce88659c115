"""Requests for a cleaning from builds that met a full disk: a Unix socket in the directory of the leases.

One line of JSON answers each connection, after the cleaning: {"freed": 1048576}.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from rabbit2docker.errors import EngineUnavailable

SOCKET: Final = "cleaner.sock"

AskForCleaning = Callable[[], Awaitable[int]]
"""Returns the bytes that the next cleaning has freed; raises EngineUnavailable."""


async def serve_requests(directory: Path, ask: AskForCleaning) -> None:
    """Answer builds until cancelled."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            freed = await ask()
        except EngineUnavailable:
            freed = 0
        try:
            writer.write(json.dumps({"freed": freed}).encode() + b"\n")
            await writer.drain()
        except OSError:
            pass  # the build was cancelled
        finally:
            writer.close()

    listening = await asyncio.to_thread(_listen, directory)
    # Not `start_unix_server`: from Python 3.13 it looks for the path of the socket, which leads through a closed directory.
    async with await asyncio.start_server(answer, sock=listening) as server:
        await server.serve_forever()


def _listen(directory: Path) -> socket.socket:
    """Listen in the directory, in the place of a process that may have died there.

    By way of /proc: a socket's own path may have 107 bytes at most, that of a directory any number.
    """
    where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listening = socket.socket(socket.AF_UNIX)
        new = f"{SOCKET}.{os.getpid()}"
        (directory / new).unlink(missing_ok=True)
        listening.bind(f"/proc/self/fd/{where}/{new}")
        # The group is that of the directory: everything that may take leases may ask.
        (directory / new).chmod(0o660)
        listening.listen()
        (directory / new).rename(directory / SOCKET)
    finally:
        os.close(where)
    listening.setblocking(False)
    return listening
