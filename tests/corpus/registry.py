"""A registry that stores images and answers chosen requests with errors, in the documented format."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

RULE: Final = re.compile(
    r"(?P<method>\*|[A-Z]+) (?P<path>\S+) (?P<status>\d{3}|cut|short)(?:@(?P<first>\d+)(?P<only>-)?)?(?: (?P<body>.*))?"
)
ERROR: Final = re.compile(r"(?P<code>[A-Z][A-Z_]+)(?: (?P<message>.*))?")


class Rule:
    """A fault: `METHOD PATH STATUS BODY`.

    PATH is a regular expression. STATUS may be `cut` (no answer) or `short` (an answer that breaks off); with `@3`, the
    first two requests are served, and with `@3-` all but the third. A BODY like `DENIED a message` becomes the registry's JSON.
    """

    def __init__(self, text: str) -> None:
        found = RULE.fullmatch(text)
        assert found, f"not a rule: {text}"
        self.method, self.path, self.status = found["method"], found["path"], found["status"]
        self.first, self.body = int(found["first"] or 1), found["body"] or ""
        self.only = bool(found["only"])
        self._seen = 0

    def applies(self, method: str, path: str) -> bool:
        """Count a request that matches, and return whether it is to fail."""
        if self.method not in ("*", method) or not re.search(self.path, path):
            return False
        self._seen += 1
        return self._seen == self.first if self.only else self._seen >= self.first

    def payload(self) -> tuple[str, bytes]:
        """Return content type and body."""
        error = ERROR.fullmatch(self.body)
        if not error:
            return "text/html" if self.body.startswith("<") else "text/plain", self.body.encode()
        message = {"code": error["code"], "message": error["message"] or "", "detail": None}
        return "application/json", json.dumps({"errors": [message]}).encode()


class Registry(ThreadingHTTPServer):
    """The server; `rules` are its faults, the first that applies decides."""

    daemon_threads = True

    def __init__(self, rules: Sequence[str] = (), port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), Handler)
        self.rules = [Rule(text) for text in rules]
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}

    @property
    def address(self) -> str:
        """Return host and port, as image names contain them."""
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close early."""


class Handler(BaseHTTPRequestHandler):
    """The distribution API, as far as push and pull use it."""

    protocol_version = "HTTP/1.1"
    server: Registry
    raw_requestline: bytes

    def log_message(self, *arguments: object) -> None:
        """Write no access log."""

    def parse_request(self) -> bool:
        """Answer a TLS handshake as HTTP, after which engines try again without TLS."""
        if self.raw_requestline.startswith(b"\x16"):
            self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.close_connection = True
            return False
        return super().parse_request()

    def _serve(self) -> None:
        body = self._body()
        path, _, query = self.path.partition("?")
        for rule in self.server.rules:
            if rule.applies(self.command, path):
                return self._fail(rule)
        if path.startswith("/token"):
            return self._answer(200, b'{"token": "t"}')
        if "/blobs/uploads" in path:
            return self._upload(path, query, body)
        if "/blobs/" in path:
            return self._found(self.server.blobs.get(path.rpartition("/")[2]), "application/octet-stream")
        if "/manifests/" in path:
            return self._manifest(path, body)
        return self._answer(200, b"{}")

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _fail(self, rule: Rule) -> None:
        if rule.status == "cut":
            self.close_connection = True
            return
        kind, body = rule.payload()
        if rule.status == "short":
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"\x1f\x8b")
            return
        headers = {"Content-Type": kind}
        if rule.status == "401":
            realm = f"http://{self.server.address}/token"
            headers["WWW-Authenticate"] = f'Bearer realm="{realm}",service="corpus",scope="repository:x:pull"'
        self._answer(int(rule.status), body, **headers)

    def _upload(self, path: str, query: str, body: bytes) -> None:
        if self.command == "POST":
            name = hashlib.sha256(str(len(self.server.uploads)).encode()).hexdigest()[:16]
            self.server.uploads[name] = b""
            return self._continued(f"{path.rstrip('/')}/{name}", name)
        name = path.rpartition("/")[2]
        self.server.uploads[name] += body
        if self.command == "PATCH":
            return self._continued(path, name)
        digest = re.sub("%3A", ":", query.partition("digest=")[2].partition("&")[0])
        self.server.blobs[digest] = self.server.uploads[name]
        return self._answer(201, b"", **{"Docker-Content-Digest": digest, "Location": path})

    def _continued(self, location: str, name: str) -> None:
        reach = max(0, len(self.server.uploads[name]) - 1)
        headers = {"Location": location, "Docker-Upload-UUID": name, "Range": f"0-{reach}"}
        self._answer(202, b"", **headers)

    def _manifest(self, path: str, body: bytes) -> None:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if self.command == "PUT":
            kind = self.headers["Content-Type"]
            for key in (path, f"{path.rpartition('/')[0]}/{digest}"):
                self.server.manifests[key] = (kind, body)
            return self._answer(201, b"", **{"Docker-Content-Digest": digest, "Location": path})
        kind, data = self.server.manifests.get(path, ("", None))
        return self._found(data, kind)

    def _found(self, data: bytes | None, kind: str) -> None:
        if data is None:
            code = "MANIFEST_UNKNOWN" if "/manifests/" in self.path else "BLOB_UNKNOWN"
            return self._answer(404, json.dumps({"errors": [{"code": code, "message": "unknown"}]}).encode())
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return self._answer(200, data, **{"Docker-Content-Digest": digest, "Content-Type": kind})

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def registry(rules: Sequence[str] = (), port: int = 0, host: str = "127.0.0.1") -> Iterator[Registry]:
    """Run a registry, on loopback unless `host` is another address of this machine."""
    server = Registry((), port, host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        server.rules = [Rule(text) for text in rules]
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
