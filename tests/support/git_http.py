"""A git server over HTTP on loopback: git's own http-backend behind a front that commits the faults a test asks for."""

import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.repositories import GitServer

UPLOAD_PACK = "/git-upload-pack"


@dataclass
class GitHttp:
    """The server, and the requests that it has got."""

    root: Path
    server: GitServer
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    faults: list[Callable[["Handler"], bool]] = field(default_factory=list)
    """Each is asked at each request, and answers it if it returns True."""
    environment: dict[str, str] = field(default_factory=dict)
    """For http-backend."""

    def packs(self) -> int:
        """Return how many packs were asked for."""
        return sum(request.startswith("POST") for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        git: GitHttp = self.server.git
        # To a proxy, clients name the whole URL.
        self.path = re.sub(r"^https?://[^/]+", "", self.path)
        git.requests.append(f"{self.command} {self.path}")
        self.body = self._body()
        if any(fault(self) for fault in git.faults):
            return
        head, body = self.backend()
        self.send(int(head.pop("Status", "200").split()[0]), body, head)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def backend(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body of http-backend's answer."""
        git: GitHttp = self.server.git
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(git.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            **git.environment,
        }
        output = subprocess.run(
            ["git", "http-backend"], input=self.body, env=environment, capture_output=True, check=False
        ).stdout
        head, _, body = output.partition(b"\r\n\r\n")
        lines = (line.partition(": ") for line in head.decode().splitlines())
        return {name: value for name, _, value in lines}, body

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Announce the whole body, send a part of it, and close the connection."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def is_pack(handler: Handler) -> bool:
    """Return whether the request is for a pack, and not for a list of refs."""
    return handler.path.endswith(UPLOAD_PACK) and b"command=ls-refs" not in handler.body


def cut_pack(times: int = 1) -> Callable[[Handler], bool]:
    """Return the fault that cuts the first packs in the middle."""
    left = [times]

    def fault(handler: Handler) -> bool:
        if not is_pack(handler) or not left[0]:
            return False
        head, body = handler.backend()
        left[0] -= 1
        handler.cut(200, head, body)
        return True

    return fault


def stall_in_pack(handler: Handler) -> bool:
    """Send half of a pack, and nothing more until the client has gone."""
    if not is_pack(handler):
        return False
    head, body = handler.backend()
    handler.cut(200, head, body)
    handler.wfile.flush()
    with suppress(OSError):
        handler.rfile.read(1)
    return True


def answer(
    status: int,
    *,
    times: int = 1 << 30,
    path: str = "",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Callable[[Handler], bool]:
    """Return the fault that answers the first requests below `path` with a status."""
    left = [times]

    def fault(handler: Handler) -> bool:
        if not left[0] or not handler.path.startswith(path):
            return False
        left[0] -= 1
        handler.send(status, body, headers)
        return True

    return fault


def redirect(old: str, new: str) -> Callable[[Handler], bool]:
    """Return the fault that redirects paths below `old` to the URL `new`."""

    def fault(handler: Handler) -> bool:
        if not handler.path.startswith(old):
            return False
        handler.send(301, headers={"Location": new + handler.path.removeprefix(old)})
        return True

    return fault


def static_files(handler: Handler) -> bool:
    """Serve the files of a repository as they are, as a web server without git does."""
    path = handler.server.git.root / handler.path.partition("?")[0].lstrip("/")
    handler.send(200, path.read_bytes()) if path.is_file() else handler.send(404)
    return True


NEEDS_PASSWORD = {"WWW-Authenticate": 'Basic realm="git"'}


class Listener(ThreadingHTTPServer):
    """A server whose clients may refuse its certificate."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        with suppress(ssl.SSLError):
            super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, except for a refused certificate."""
        if not isinstance(sys.exc_info()[1], ssl.SSLError):
            super().handle_error(request, client_address)


@contextmanager
def git_http(
    root: Path,
    *,
    certificates: Path | None = None,
    handler: type[Handler] = Handler,
    address: str = "127.0.0.1",
) -> Iterator[GitHttp]:
    """Serve the repositories below `root`, over TLS with certificates of the tests."""
    listener = Listener((address, 0), handler)
    host, port = listener.server_address[:2]
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server-key.pem")
        # The thread of each connection shakes hands, as clients may refuse the certificate.
        listener.socket = context.wrap_socket(
            listener.socket, server_side=True, do_handshake_on_connect=False
        )
    git = GitHttp(root, GitServer(root, f"http{'s' * bool(certificates)}://{host!s}:{port}"))
    listener.git = git  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield git
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
