"""A local cache of all objects of one type, kept by a list and a watch, that is never silently out of date.

A watch that ends is resumed from the last version, or after a new list if the API server no longer has that version.
Objects that are missing in a new list are reported as removed, because the watch will not report them any more.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import aiohttp
import structlog
from cachetools import TTLCache
from pydantic import ValidationError

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.kubernetes.client import PAGE_OBJECTS, ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.models import (
    AnyList,
    BookmarkEvent,
    ErrorEvent,
    KubeObject,
    Lease,
    LeaseEvent,
    LeaseList,
    ListMetadata,
    Metadata,
    Pod,
    PodEvent,
    PodList,
)
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.retry import Backoff, doubling

log = structlog.get_logger()

WATCH_SECONDS: Final = (240, 480)
"""Range of the requested duration of a watch, chosen at random so that replicas do not reconnect all at once."""
READ_TIMEOUT_SECONDS: Final = 90.0
"""Bookmarks arrive about every minute: a watch without data for longer than this is dead."""
PAUSES: Final = doubling(0.2, 3.0)
"""Short to the end: what happens to pods is not known until the watch is back."""
MIN_WATCH_SECONDS: Final = 1.0
"""A watch or a list that is outdated sooner counts as a failure, so that retries are delayed."""
LINE_BYTES: Final = 32 << 20
REMOVED_UIDS: Final = 10_000
"""Number of removed objects remembered by uid, so that a late response to one of our calls does not restore them."""
_GONE: Final = 410


class _HasMetadata(Protocol):
    @property
    def metadata(self) -> Metadata:
        """Return the object's metadata."""


T = TypeVar("T", bound=_HasMetadata)


class Page(NamedTuple, Generic[T]):
    """One page of a list."""

    metadata: ListMetadata
    items: tuple[T, ...]
    unreadable: frozenset[str] = frozenset()
    """uids of objects that exist but could not be parsed."""


class ResourceType(Generic[T]):
    """A type of objects, with its parsers."""

    def __init__(
        self, plural: str, parse_page: Callable[[bytes], Page[T]], parse_event: Callable[[bytes], T]
    ) -> None:
        """Store the plural name, and the parsers for a page of a list and for a line of a watch."""
        self.plural = plural
        self.parse_page = parse_page
        self.parse_event = parse_event


def _pod_page(data: bytes) -> Page[Pod]:
    try:
        page = PodList.model_validate_json(data)
    except ValidationError:
        return _parse_one_by_one(data, Pod.model_validate_json)
    return Page(page.metadata, page.items)


def _lease_page(data: bytes) -> Page[Lease]:
    try:
        page = LeaseList.model_validate_json(data)
    except ValidationError:
        return _parse_one_by_one(data, Lease.model_validate_json)
    return Page(page.metadata, page.items)


def _parse_one_by_one(data: bytes, parse: Callable[[bytes], T]) -> Page[T]:
    """Parse a page object by object, so that one invalid object does not hide the others."""
    page = AnyList.model_validate_json(data)
    items: list[T] = []
    unreadable: set[str] = set()
    for item in page.items:
        try:
            items.append(parse(json.dumps(item).encode()))
        except ValidationError as error:
            metadata = item.get("metadata") or {}
            log.error("invalid object skipped", name=metadata.get("name"), error=str(error))
            unreadable.add(str(metadata.get("uid")))
    return Page(page.metadata, tuple(items), frozenset(unreadable))


PODS: Final = ResourceType[Pod]("pods", _pod_page, lambda line: PodEvent.model_validate_json(line).object)
LEASES: Final = ResourceType[Lease](
    "leases", _lease_page, lambda line: LeaseEvent.model_validate_json(line).object
)


class VersionExpired(Exception):
    """The API server no longer has the version to resume a watch from: a new list is needed."""


class Informer(Generic[T]):
    """Caches all objects that match a selector and reports each change."""

    def __init__(
        self,
        api: ApiClient,
        resource_type: ResourceType[T],
        path: str,
        selector: str,
        *,
        on_change: Callable[[T], None],
        on_removed: Callable[[T], None],
        name: str,
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> None:
        """Watch the collection at `path`; `on_change` and `on_removed` must not block.

        `name` is its label in metrics and logs. A watch without data for `read_timeout_seconds` is reopened.
        """
        self._api = api
        self._type = resource_type
        self._path = path
        self._selector = selector
        self._on_change = on_change
        self._on_removed = on_removed
        self._name = name
        self._read_timeout = read_timeout_seconds
        self._objects: dict[str, T] = {}
        self._removed: TTLCache[str, bool] = TTLCache(REMOVED_UIDS, 3600)
        self._version = ""
        self._received_at: float | None = None
        self._listed_at = 0.0
        self._backoff = Backoff(PAUSES)
        self.problem: str | None = "not synchronized yet"
        """Error of the watch, for users; None while it works."""
        self.synced = asyncio.Event()
        """Set once the first list is complete."""
        metrics.KUBERNETES_WATCH_AGE.labels(watch=name).set_function(lambda: self.age() or 0.0)

    def age(self) -> float | None:
        """Return the seconds since the API server last sent data; None before the first time."""
        return None if self._received_at is None else time.monotonic() - self._received_at

    @property
    def objects(self) -> dict[str, T]:
        """Return the cached objects by uid. Callers must not modify the dict."""
        return self._objects

    def update(self, found: T) -> None:
        """Cache an object from the response to one of our calls, unless the watch is ahead of it."""
        if found.metadata.uid not in self._removed:
            self._put(found)

    def discard(self, found: T) -> None:
        """Drop an object that one of our calls deleted, without reporting it."""
        self._objects.pop(found.metadata.uid, None)
        self._removed[found.metadata.uid] = True

    async def run(self) -> None:
        """List and watch until cancelled; errors are retried with backoff."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except VersionExpired:
                log.info("watch expired", watch=self._name)
                self._version = ""
                if time.monotonic() - self._listed_at < MIN_WATCH_SECONDS:
                    await self._sleep_after(
                        TimeoutError("the version of a new list is too old to be watched")
                    )
            except (ExecutorUnavailable, ApiStatusError, aiohttp.ClientError, TimeoutError, OSError) as error:
                await self._sleep_after(error)
            except ValidationError as error:
                # A new list skips an invalid object; resuming the watch would fail on it again.
                log.error("invalid watch event received", watch=self._name, error=str(error))
                self._version = ""
                await self._sleep_after(error)

    async def _sleep_after(self, error: Exception) -> None:
        retry_after = error.retry_after if isinstance(error, ExecutorUnavailable) else None
        seconds = self._backoff.next(at_least=retry_after or 0.0)
        # A watch that breaks is ordinary; one that cannot be opened again is a problem.
        if self._backoff.failures > 1:
            self.problem = self._describe(error)
            log.warning("watch failed", watch=self._name, error=self.problem, delay_seconds=round(seconds, 1))
        await asyncio.sleep(seconds)

    def _describe(self, error: Exception) -> str:
        if isinstance(error, ApiStatusError) and error.status == 403:
            return f"{error.message}. The service's Role must allow list and watch on {self._type.plural}"
        return str(error) or type(error).__name__

    def _mark_received(self) -> None:
        self._received_at = time.monotonic()
        self.problem = None

    async def _list(self) -> None:
        found: dict[str, T] = {}
        unreadable: frozenset[str] = frozenset()
        version = ""
        listing = self._api.pages(
            self._path,
            self._type.parse_page,
            priority=CallPriority.READ,
            size=PAGE_OBJECTS,
            query={"labelSelector": self._selector},
        )
        async with aclosing(listing) as pages:
            async for page in pages:
                found.update({item.metadata.uid: item for item in page.items})
                unreadable |= page.unreadable
                version = page.metadata.resource_version
        metrics.KUBERNETES_LISTS.labels(watch=self._name).inc()
        self._replace_all(found, unreadable, version)
        self._listed_at = time.monotonic()
        self._mark_received()
        self.synced.set()

    def _replace_all(self, found: dict[str, T], unreadable: frozenset[str], version: str) -> None:
        """Make the cache equal to a complete list of that version, and report the differences."""
        for uid, known in list(self._objects.items()):
            # An object that one of our calls created during the list may be newer than the list.
            is_newer = _is_newer(known.metadata, version)
            if uid not in found and uid not in unreadable and not is_newer:
                self._remove(known)
        for item in found.values():
            self._put(item)
        self._version = version

    async def _watch(self) -> None:
        query = {
            "labelSelector": self._selector,
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        opened_at = time.monotonic()
        try:
            async with self._api.stream(self._path, query, read_seconds=self._read_timeout) as response:
                self._mark_received()
                async for line in split_lines(response.content):
                    self._handle(line)
                    self._mark_received()
                    self._backoff.reset()
        except ApiStatusError as error:
            if error.status == _GONE:
                raise VersionExpired from error
            raise
        if time.monotonic() - opened_at < MIN_WATCH_SECONDS:
            raise TimeoutError("the API server ended the watch as soon as it was opened")
        self._backoff.reset()

    def _handle(self, line: bytes) -> None:
        # The API server writes the type first: it is read without parsing the whole line.
        event_type = line[9 : line.find(b'"', 9)] if line.startswith(b'{"type":"') else _type_of(line)
        match event_type:
            case b"ADDED" | b"MODIFIED":
                found = self._type.parse_event(line)
                self._put(found)
                self._version = found.metadata.resource_version
            case b"DELETED":
                found = self._type.parse_event(line)
                self._remove(found)
                self._version = found.metadata.resource_version
            case b"BOOKMARK":
                self._version = BookmarkEvent.model_validate_json(line).object.metadata.resource_version
            case b"ERROR":
                status = ErrorEvent.model_validate_json(line).object
                if status.code == _GONE:
                    raise VersionExpired
                raise ExecutorUnavailable(
                    f"The API server ended the watch: {status.message or status.reason}"
                )
            case _:
                log.warning("unknown watch event ignored", watch=self._name, line=line[:100])

    def _put(self, found: T) -> None:
        known = self._objects.get(found.metadata.uid)
        if known is not None and _is_newer(known.metadata, found.metadata.resource_version):
            return
        self._objects[found.metadata.uid] = found
        if known is None or known != found:
            self._on_change(found)

    def _remove(self, found: T) -> None:
        self.discard(found)
        self._on_removed(found)


def _is_newer(metadata: Metadata, version: str) -> bool:
    """Return whether an object is newer than a version of the same resource type; False if that cannot be known.

    The API only guarantees that versions can be compared for equality, but where they are numbers they increase.
    """
    own = metadata.resource_version
    return own.isdigit() and version.isdigit() and int(own) > int(version)


def _type_of(line: bytes) -> bytes:
    class Typed(KubeObject):
        type: str = ""

    return Typed.model_validate_json(line).type.encode()


async def split_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield complete lines of up to LINE_BYTES; an incomplete last line is dropped. Raises TimeoutError for longer ones."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            if len(rest) > LINE_BYTES:
                raise TimeoutError("a line exceeds the maximum length")
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line:
                yield line
