"""Ports of loopback for what tests start."""

import os
import random
import socket
from contextlib import suppress

# Below the ports that outgoing connections take, so that none of them is taken before something listens on it.
_FIRST, _LAST = 11_000, 20_000
_WORKERS = 16

_given: set[int] = set()


def free_port() -> int:
    """Return a port that nothing listens on. Each worker of a parallel run has a range of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    size = (_LAST - _FIRST) // _WORKERS
    while True:
        port = _FIRST + worker * size + random.randrange(size)
        if port in _given:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port
