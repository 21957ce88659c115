"""A process that has imported a command of rabbit2docker and forks for each start: importing takes a second of CPU.

Run as a program: `fork_server.py SOCKET PID COMMAND`, which returns once the server listens. The server ends when the
process PID ends. A request is one packet of
JSON, with the new process's standard files attached. The answer is the process's number, with a pidfd attached; a
second answer follows when the process has ended: its exit code, negative if a signal ended it. What still runs when the
server ends is ended by SIGTERM: a run of tests that is killed leaves no service behind.

What it forks is like a new process: no event loop, no thread and no open file is there before a fork.
"""

import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

MODULES: Final = {
    "run": ("rabbit2docker.consumer.service", "rabbit2docker.consumer.executors.local.executor"),
    "hub": ("rabbit2docker.hub.service",),
}
"""What a command imports once it is called; the process of one command has nothing of the other."""
_COMMON: Final = ("rabbit2docker.__main__", "rabbit2docker.cli", "rabbit2docker.settings.loading")
_PACKET: Final = 1 << 17
_STANDARD_FILES: Final = 3


class ForkServer:
    """Forks at each request, and reports how each process ends."""

    def __init__(self, listener: socket.socket, watched: int) -> None:
        self._listener = listener
        self._watched = watched
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(watched, selectors.EVENT_READ)
        self._processes: dict[int, tuple[int, socket.socket]] = {}
        """Pid and connection, by pidfd."""

    def serve(self) -> dict[str, Any] | None:
        """Serve until the watched process ends, then return None; in a new process, return its request."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._watched:
                    self._end_processes()
                    return None
                if key.fd != self._listener.fileno():
                    self._report(key.fd)
                elif (request := self._accept()) is not None:
                    return request

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        packet, files, _, _ = socket.recv_fds(connection, _PACKET, _STANDARD_FILES)
        assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
        pid = os.fork()
        if pid == 0:
            self._become(connection, files)
            request: dict[str, Any] = json.loads(packet)
            return request
        for file in files:
            os.close(file)
        pidfd = os.pidfd_open(pid)
        self._processes[pidfd] = pid, connection
        self._selector.register(pidfd, selectors.EVENT_READ)
        return None

    def _report(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        pid, connection = self._processes.pop(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        # The one who asked may have ended.
        with connection, suppress(ConnectionError):
            connection.send(json.dumps(code).encode())

    def _end_processes(self) -> None:
        for pidfd in self._processes:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)

    def _become(self, connection: socket.socket, files: list[int]) -> None:
        """Take the standard files and a session of its own, answer, and close what belongs to the server."""
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        own = os.pidfd_open(os.getpid())
        socket.send_fds(connection, [json.dumps(os.getpid()).encode()], [own])
        os.close(own)
        self._selector.close()
        self._listener.close()
        os.close(self._watched)
        connection.close()
        for pidfd, (_, other) in self._processes.items():
            os.close(pidfd)
            other.close()


def call(request: dict[str, Any], path: list[str]) -> None:
    """Call the console script as a new interpreter does, whose search path would be `path` without PYTHONPATH."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    program, *arguments = request["command"]
    sys.argv[:] = [program, *arguments]
    added = os.environ.get("PYTHONPATH")
    sys.path[:] = [os.path.dirname(program), *(added.split(os.pathsep) if added else ()), *path]
    from rabbit2docker.__main__ import main

    main()


def serve(path: str, watched: int, command: str) -> None:
    """Serve at a socket in the background; in each new process, call the command."""
    search_path = sys.path[1:]
    for module in (*_COMMON, *MODULES[command]):
        import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        gc.collect()
        gc.freeze()
        if os.fork():
            return
        os.setsid()
        request = ForkServer(listener, os.pidfd_open(watched)).serve()
    if request is not None:
        call(request, search_path)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
