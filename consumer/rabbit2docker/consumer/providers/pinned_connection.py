"""Connections of git and ssh to the addresses that were checked, whatever the name leads to when they connect."""

import asyncio
import shlex
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.providers.address_policy import Target


@asynccontextmanager
async def connector(addresses: list[str], port: int) -> AsyncIterator[str]:
    """Have a program, without arguments, that connects its standard streams to the first of the addresses that answers."""
    directory = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="r2d-connect-")
    try:
        yield str(await asyncio.to_thread(_write, Path(directory.name) / "connect", addresses, port))
    finally:
        await asyncio.shield(asyncio.to_thread(directory.cleanup))


def _write(path: Path, addresses: list[str], port: int) -> Path:
    command = shlex.join([*BUILDER_COMMAND, "--connect", ",".join(addresses), str(port)])
    path.write_text(f"#!/bin/sh\nexec {command}\n", encoding="utf-8")
    path.chmod(0o700)
    return path


def ssh_options(program: str, target: Target) -> str:
    """Return options with which ssh uses a connector; the host is known by its name, not by its address."""
    name = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
    proxy = f"ProxyCommand={shlex.quote(program).replace('%', '%%')}"
    return f"-o {shlex.quote(proxy)} -o HostKeyAlias={name}"
