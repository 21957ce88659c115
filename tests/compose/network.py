"""A network of the test's own: an engine in it has the firewall for itself, and containers reach each other."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deploy.dev import engine
from deploy.dev.machine import Ledger, run

_CLONE_NEWNET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[None]:
    """Have this thread, and all that it starts, in a network with nothing but loopback."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.unshare(_CLONE_NEWNET))
        run(["ip", "link", "set", "lo", "up"])
        yield
    finally:
        _check(_LIBC.setns(before, _CLONE_NEWNET))
        os.close(before)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def own_engine(directory: Path) -> Iterator[Ledger]:
    """Run an engine made from packages, and remove everything that it has had."""
    ledger = Ledger(directory / "started.json")
    made = engine.MadeEngine(root=engine.engine_root(), directory=directory, name="compose")
    ledger.docker_host = made.host
    try:
        made.start(ledger)
        yield ledger
    finally:
        for process in ledger.processes:
            process.end()
        run(["rm", "-rf", directory])
