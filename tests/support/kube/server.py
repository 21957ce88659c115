"""The HTTP side of the API server, on 127.0.0.1, with a cluster behind it and faults in front of it."""

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.support.kube.cluster import Cluster
from tests.support.kube.faults import Fault, Faults, Kind, Seen
from tests.support.kube.logs import ContainerLog, LogOptions
from tests.support.kube.objects import (
    PODS,
    RESOURCES,
    ApiError,
    Json,
    Resource,
    bad_request,
    details,
    encode,
    parse_fields,
    parse_selector,
)
from tests.support.kube.patches import read_patch
from tests.support.kube.pods import builder_of, container_status
from tests.support.kube.store import Page, Selection, Stored, Watcher, too_old, watch_line
from tests.support.kube.streams import Cut, Ended, Stream

MAX_BODY_BYTES = 3 << 20
WATCH_SECONDS = 1800
_PATHS = {
    (f"/apis/{resource.group}/v1" if resource.group else "/api/v1", resource.plural): resource
    for resource in RESOURCES
}
_PATH = re.compile(
    r"(?P<prefix>/api/v1|/apis/[^/]+/v1)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>log))?)?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PULLS = {"ErrImagePull": "image can't be pulled", "ImagePullBackOff": "trying and failing to pull image"}
VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0",
    "platform": "linux/amd64",
}


def _unknown_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def _wrong_method() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message)


class KubeServer:
    """An API server, as a context manager or with `start` and `stop` any number of times, always on the same port."""

    def __init__(self, cluster: Cluster | None = None, *, token: str | None = None) -> None:
        """Requests must carry `token`; with None any request is accepted."""
        self.cluster = cluster or Cluster()
        self.faults = Faults()
        self.requests: list[Seen] = []
        """All requests in order, including those hit by faults."""
        self.token = token
        self.bookmark_seconds = 60.0
        self.namespace_uid = "6ff6a1e4-0c5b-4d9e-9d3a-3d6f0a1b2c3d"
        self._streams: set[Stream] = set()
        self._runner: web.AppRunner | None = None
        # Bound but not listening: the port is reserved, and connections are refused.
        self._socket = _bound(0)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self.close()

    async def start(self) -> None:
        """Listen; does nothing if it already does."""
        if self._runner is not None:
            return
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Without cancellation, the closed connection of a silent stream would go unnoticed.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def stop(self) -> None:
        """Stop listening and cut all connections; objects, builders and the port stay."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        await asyncio.sleep(0)
        await runner.cleanup()
        self._socket = _bound(self.port)

    def close(self) -> None:
        """Release the port and cancel everything that is scheduled."""
        self._socket.close()
        self.cluster.close()

    def kubeconfig(
        self,
        path: Path,
        *,
        namespace: str | None = None,
        token: str | None = None,
        token_file: Path | None = None,
    ) -> Path:
        """Write a kubeconfig for a user with the token, or with one that is read from a file each time."""
        user = {"tokenFile": str(token_file)} if token_file else {"token": token or self.token or "any"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [
                {
                    "name": "test",
                    "context": {
                        "cluster": "test",
                        "user": "test",
                        "namespace": namespace or self.cluster.namespace,
                    },
                }
            ],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    # -- requests and open streams

    def calls(
        self, *, verb: str | None = None, resource: str | None = None, name: str | None = None
    ) -> list[Seen]:
        """Return the requests that match."""
        return [
            seen
            for seen in self.requests
            if (verb is None or seen.verb == verb)
            and (resource is None or seen.resource == resource)
            and (name is None or seen.name == name)
        ]

    def counted(self) -> Counter[str]:
        """Return the number of requests by `verb resource`."""
        return Counter(f"{seen.verb} {seen.resource}".strip() for seen in self.requests)

    def streams(self, verb: str, *, resource: str = "pods", name: str = "") -> list[Stream]:
        """Return the watches (`watch`) or logs (`log`) that are open."""
        return [
            stream
            for stream in self._streams
            if stream.seen.verb == verb
            and stream.seen.resource == resource
            and (not name or stream.seen.name == name)
        ]

    def watch_error(self, code: int = 410, reason: str = "Expired", *, resource: str = "pods") -> None:
        """Send an ERROR to all watches and end them."""
        line = watch_line("ERROR", encode(ApiError(code, reason, "injected by the test").status()))
        for watcher, stream in self._watches(resource):
            watcher.put(line)
            stream.end_after_lines = True

    def bookmark(self, *, resource: str = "pods") -> None:
        """Send a BOOKMARK to all watches."""
        for watcher, _ in self._watches(resource):
            watcher.put(self._bookmark(watcher))

    def _watches(self, resource: str) -> list[tuple[Watcher, "WatchStream"]]:
        return [
            (stream.watcher, stream)
            for stream in self._streams
            if isinstance(stream, WatchStream) and stream.seen.resource == resource
        ]

    # -- requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        match = _PATH.fullmatch(request.path)
        seen = _seen(request, match)
        self.requests.append(seen)
        fault = self.faults.take(seen)
        try:
            await self._before(fault)
            if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            response = await self._answer(request, seen, match, fault)
        except ApiError as error:
            response = _status(error)
        except Cut:
            return _cut(request)
        if fault is not None and fault.kind is Kind.DROP_AFTER:
            return _cut(request)
        return response

    async def _before(self, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.kind is Kind.ANSWER:
            assert fault.error is not None
            raise fault.error
        if fault.kind is Kind.DROP_BEFORE:
            raise Cut
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
        elif fault.kind is Kind.HANG:
            await fault.released.wait()

    async def _answer(
        self, request: web.Request, seen: Seen, match: re.Match[str] | None, fault: Fault | None
    ) -> web.StreamResponse:
        if match is None:
            if request.path == "/version":
                return _json(VERSION)
            if request.path in ("/livez", "/readyz", "/healthz"):
                return web.Response(text="ok")
            if request.path == f"/api/v1/namespaces/{self.cluster.namespace}":
                metadata = {"name": self.cluster.namespace, "uid": self.namespace_uid}
                return _json({"kind": "Namespace", "apiVersion": "v1", "metadata": metadata})
            raise _unknown_path()
        resource = _PATHS.get((match["prefix"], match["plural"]))
        if resource is None or (match["sub"] and resource is not PODS):
            raise _unknown_path()
        namespace, name = match["namespace"], match["name"]
        match seen.verb:
            case "list":
                return self._list(resource, namespace, seen.query)
            case "watch":
                return await self._watch(request, seen, resource, namespace, fault)
            case "get":
                return _object(self.cluster.store.get(resource, namespace, name))
            case "log":
                return await self._log(request, seen, namespace, fault)
            case _:
                return await self._change(request, seen, resource, namespace, name)

    async def _change(
        self, request: web.Request, seen: Seen, resource: Resource, namespace: str, name: str | None
    ) -> web.StreamResponse:
        body, store = await request.read(), self.cluster.store
        if seen.verb == "create" and name is None:
            return _object(store.create(resource, namespace, _read(body)), status=201)
        if name is None or seen.verb == "create" or (seen.verb == "update" and not resource.replaces):
            raise _wrong_method()
        if seen.verb == "update":
            stored, is_new = store.replace(resource, namespace, name, _read(body))
            return _object(stored, status=201 if is_new else 200)
        if seen.verb == "patch":
            return _object(store.patch(resource, namespace, name, read_patch(seen.content_type, body)))
        if seen.verb == "delete":
            return self._delete(resource, namespace, name, seen.query, _read(body) if body else {})
        raise _wrong_method()

    def _delete(
        self, resource: Resource, namespace: str, name: str, query: Mapping[str, str], options: Json
    ) -> web.Response:
        grace = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        stored, is_gone = self.cluster.store.delete(
            resource,
            namespace,
            name,
            grace=None if grace is None else int(grace),
            preconditions=options.get("preconditions"),
        )
        if resource is PODS or not is_gone:
            return _object(stored)
        found = {**details(resource, name), "uid": stored.uid}
        return _json(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": found}
        )

    # -- lists and watches

    def _list(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> web.Response:
        page = self.cluster.store.page(
            resource,
            _selection(resource, namespace, query),
            limit=int(query.get("limit") or 0),
            token=query.get("continue", ""),
        )
        return web.Response(body=_encoded_list(resource, page, query), content_type="application/json")

    async def _watch(
        self, request: web.Request, seen: Seen, resource: Resource, namespace: str, fault: Fault | None
    ) -> web.StreamResponse:
        store, query = self.cluster.store, seen.query
        selection = _selection(resource, namespace, query)
        version = query.get("resourceVersion", "")
        if version and not version.isdigit():
            raise bad_request(f'Invalid value: "{version}": invalid resource version')
        watcher = Watcher(resource, selection)
        stream = WatchStream(seen, fault, watcher)
        is_answered = fault is not None and fault.kind in (Kind.GONE, Kind.EMPTY)
        try:
            if fault is not None and fault.kind is Kind.GONE:
                raise too_old(int(version or 0), store.version)
            if not is_answered:
                watcher = stream.watcher = store.watch(resource, selection, int(version or 0) or None)
        except ApiError as error:
            # An expired version is reported in the stream, not by the status of the response.
            watcher.put(watch_line("ERROR", encode(error.status())))
            is_answered = True
        stream.end_after_lines = is_answered
        with self._streaming(stream):
            try:
                response = await stream.open(request, "application/json")
                with suppress(Ended):
                    await self._pump(stream)
            finally:
                store.leave(watcher)
        return response

    async def _pump(self, stream: "WatchStream") -> None:
        """Send events until the timeout of the watch."""
        watcher, query = stream.watcher, stream.seen.query
        until = time.monotonic() + int(query.get("timeoutSeconds") or WATCH_SECONDS)
        bookmarks = query.get("allowWatchBookmarks", "").lower() in ("1", "true")
        bookmark_at = time.monotonic() + self.bookmark_seconds
        stream.wakes = watcher.news
        while True:
            stream.check()
            await stream.write(watcher.take())
            if stream.end_after_lines and not watcher.lines:
                return
            try:
                async with asyncio.timeout(max(0, min(until, bookmark_at) - time.monotonic())):
                    await watcher.news.wait()
            except TimeoutError:
                if time.monotonic() >= until:
                    return
                bookmark_at = time.monotonic() + self.bookmark_seconds
                if bookmarks:
                    watcher.put(self._bookmark(watcher))

    def _bookmark(self, watcher: Watcher) -> bytes:
        resource = watcher.resource
        metadata = {"resourceVersion": str(self.cluster.store.version), "creationTimestamp": None}
        data = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return watch_line("BOOKMARK", encode(data))

    @contextmanager
    def _streaming(self, stream: Stream) -> Iterator[None]:
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    # -- logs

    async def _log(
        self, request: web.Request, seen: Seen, namespace: str, fault: Fault | None
    ) -> web.StreamResponse:
        stored = self.cluster.store.get(PODS, namespace, seen.name)
        data = stored.data()
        options = LogOptions.read(seen.query, time.time_ns())
        self._check_log(data, seen)
        log = self.cluster.logs.setdefault(stored.uid, ContainerLog())
        stream = Stream(seen, fault)
        with self._streaming(stream):
            response = await stream.open(request, "text/plain")
            with suppress(Ended):
                if not data["spec"].get("nodeName") or (fault is not None and fault.kind is Kind.EMPTY):
                    raise Ended
                if log.is_lost:
                    container = (container_status(data) or {}).get("containerID", "containerd://")
                    await stream.write(f"unable to retrieve container logs for {container}".encode())
                else:
                    await self._send_lines(stream, log, options)
        return response

    async def _send_lines(self, stream: Stream, log: ContainerLog, options: LogOptions) -> None:
        reader = log.read(options)
        log.listen(stream.wakes)
        try:
            while True:
                stream.wakes.clear()
                # Checked before reading, so that everything written before the end is read in this round.
                is_last = log.is_ended or not options.follow
                while data := reader.take():
                    await stream.write(data)
                stream.check()
                if is_last or reader.is_full:
                    await stream.write(b"")
                    return
                await stream.wakes.wait()
        finally:
            log.leave(stream.wakes)

    def _check_log(self, data: Json, seen: Seen) -> None:
        """Raise the error of API server or kubelet if there is no log yet, or never will be."""
        container = seen.query.get("container") or builder_of(data)
        name = data["metadata"]["name"]
        if container not in [item["name"] for item in data["spec"]["containers"]]:
            raise bad_request(f"container {container} is not valid for pod {name}")
        node = self.cluster.nodes.get(data["spec"].get("nodeName") or "")
        if data["spec"].get("nodeName") and (node is None or not node.is_alive):
            where = f"https://10.0.0.1:10250/containerLogs/{data['metadata']['namespace']}/{name}/{container}"
            why = f'Get "{where}": dial tcp 10.0.0.1:10250: connect: no route to host'
            raise ApiError(500, "InternalError", why)
        if (status := container_status(data)) is None:
            if data["spec"].get("nodeName"):
                raise bad_request(f'container "{container}" in pod "{name}" is not available')
            return
        if (waiting := status["state"].get("waiting")) is not None:
            why = _PULLS.get(waiting["reason"], waiting["reason"])
            raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {why}')
        if "terminated" in status["state"] and "containerID" not in status:
            raise bad_request(f'container "{container}" in pod "{name}" is terminated')


class WatchStream(Stream):
    """An open watch."""

    def __init__(self, seen: Seen, fault: Fault | None, watcher: Watcher) -> None:
        super().__init__(seen, fault)
        self.watcher = watcher
        self.end_after_lines = False


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    # The client has disconnected.
    return web.Response()


def _seen(request: web.Request, match: re.Match[str] | None) -> Seen:
    query = dict(request.query)
    verb = request.method
    if match is not None:
        verb = _VERBS.get(request.method, "get")
        if verb == "get" and match["sub"]:
            verb = "log"
        elif verb == "get" and match["name"] is None:
            verb = "watch" if query.get("watch", "").lower() in ("1", "true") else "list"
    return Seen(
        method=request.method,
        path=request.path,
        query=query,
        verb=verb,
        resource=match["plural"] if match else "",
        name=(match["name"] or "") if match else "",
        content_type=request.headers.get("Content-Type", ""),
    )


def _read(body: bytes) -> Json:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from error
    if not isinstance(data, dict):
        raise bad_request("the object provided is unrecognized: not an object")
    return data


def _selection(resource: Resource, namespace: str, query: Mapping[str, str]) -> Selection:
    labels = parse_selector(query.get("labelSelector", ""))
    return Selection(namespace, labels, parse_fields(resource, query.get("fieldSelector", "")))


def _encoded_list(resource: Resource, page: Page, query: Mapping[str, str]) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(page.version)}
    if page.token:
        metadata["continue"] = page.token
        # With a selector the real server cannot know this without reading the rest.
        if not query.get("labelSelector") and not query.get("fieldSelector"):
            metadata["remainingItemCount"] = page.remaining
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
    return encode(head)[:-1] + b',"items":[' + b",".join(page.items) + b"]}"


def _json(data: Json, status: int = 200) -> web.Response:
    return web.Response(body=encode(data), status=status, content_type="application/json")


def _object(stored: Stored, status: int = 200) -> web.Response:
    return web.Response(body=stored.encoded(), status=status, content_type="application/json")


def _status(error: ApiError) -> web.Response:
    response = _json(error.status(), error.code)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response
