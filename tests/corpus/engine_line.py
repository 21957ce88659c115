"""A connection between the docker client and its engine that can be cut."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Line:
    """Connections between the docker client and the engine."""

    def __init__(self, engine: str, listener: socket.socket) -> None:
        self._engine, self._listener = engine, listener
        self._open: list[socket.socket] = []

    def serve(self) -> None:
        """Connect clients, until the listener is closed."""
        with suppress(OSError):
            while True:
                client, engine = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                self._open += [client, engine]
                for ends in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End all connections."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()


@contextmanager
def engine_line(directory: Path, environment: dict[str, str]) -> Iterator[Line]:
    """Lead the docker client to its engine by a line that can be cut."""
    path = directory / "line.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        line = Line(environment["DOCKER_HOST"].removeprefix("unix://"), listener)
        threading.Thread(target=line.serve, daemon=True).start()
        environment["DOCKER_HOST"] = f"unix://{path}"
        yield line
