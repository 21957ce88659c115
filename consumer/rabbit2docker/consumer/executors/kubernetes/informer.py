"""One list and one watch for all objects of a kind: a mirror that is never silently out of date.

Every end of a watch is an ordinary event: it goes on from the last version, and from a new list when that version is
too old. Objects that a new list no longer has are told as removed, as nobody else will say so.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import aiohttp
import structlog
from cachetools import TTLCache
from pydantic import ValidationError

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.kubernetes.client import ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.models import (
    AnyList,
    Bookmark,
    KubeObject,
    Lease,
    LeaseList,
    LeaseWatched,
    ListMetadata,
    Metadata,
    Pod,
    PodList,
    PodWatched,
    WatchedError,
)
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable

log = structlog.get_logger()

PAGE_OBJECTS: Final = 500
WATCH_SECONDS: Final = (240, 480)
"""How long one watch is asked for, at random, so that replicas do not come back together."""
SILENCE_SECONDS: Final = 90.0
"""Bookmarks come about every minute: a stream that is silent for longer is dead."""
BACKOFF_SECONDS: Final = (0.2, 30.0)
AT_ONCE_SECONDS: Final = 1.0
"""What ends sooner would follow each other without a pause."""
LINE_BYTES: Final = 32 << 20
REMEMBERED: Final = 10_000
"""How many removed objects are known by their uid: an answer that comes late must not bring them back."""
_GONE: Final = 410


class _Named(Protocol):
    @property
    def metadata(self) -> Metadata:
        """Return name, uid and version."""


T = TypeVar("T", bound=_Named)


class Page(NamedTuple, Generic[T]):
    """A part of a list."""

    metadata: ListMetadata
    items: tuple[T, ...]
    unreadable: frozenset[str] = frozenset()
    """uids of objects that are there and make no sense to us."""


class ResourceType(Generic[T]):
    """How objects of a kind are read."""

    def __init__(self, name: str, page: Callable[[bytes], Page[T]], event: Callable[[bytes], T]) -> None:
        """Take the plural name, and what reads a page of a list and a line of a watch."""
        self.name = name
        self.page = page
        self.event = event


def _pod_page(data: bytes) -> Page[Pod]:
    try:
        page = PodList.model_validate_json(data)
    except ValidationError:
        return _readable(data, Pod.model_validate_json)
    return Page(page.metadata, page.items)


def _lease_page(data: bytes) -> Page[Lease]:
    try:
        page = LeaseList.model_validate_json(data)
    except ValidationError:
        return _readable(data, Lease.model_validate_json)
    return Page(page.metadata, page.items)


def _readable(data: bytes, read: Callable[[bytes], T]) -> Page[T]:
    """Read a page object by object, as one of them cannot be read."""
    page = AnyList.model_validate_json(data)
    items: list[T] = []
    unreadable: set[str] = set()
    for item in page.items:
        try:
            items.append(read(json.dumps(item).encode()))
        except ValidationError as error:
            metadata = item.get("metadata") or {}
            log.error("an object cannot be read", name=metadata.get("name"), error=str(error))
            unreadable.add(str(metadata.get("uid")))
    return Page(page.metadata, tuple(items), frozenset(unreadable))


PODS: Final = ResourceType[Pod]("pods", _pod_page, lambda line: PodWatched.model_validate_json(line).object)
LEASES: Final = ResourceType[Lease](
    "leases", _lease_page, lambda line: LeaseWatched.model_validate_json(line).object
)


class Gone(Exception):
    """The version to go on from is too old: a new list is needed."""


class Informer(Generic[T]):
    """Keeps all objects that a selector names, and tells each change as it comes."""

    def __init__(
        self,
        api: ApiClient,
        kind: ResourceType[T],
        path: str,
        selector: str,
        *,
        on_change: Callable[[T], None],
        on_gone: Callable[[T], None],
        role: str,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """Read the collection at `path`; `on_change` and `on_gone` must not block.

        `role` names it in metrics; a watch that is silent for `silence_seconds` is taken for dead.
        """
        self._api = api
        self._kind = kind
        self._path = path
        self._selector = selector
        self._on_change = on_change
        self._on_gone = on_gone
        self._role = role
        self._silence = silence_seconds
        self._objects: dict[str, T] = {}
        self._gone: TTLCache[str, bool] = TTLCache(REMEMBERED, 3600)
        self._version = ""
        self._heard: float | None = None
        self._listed = 0.0
        self._failures = 0
        self.problem: str | None = "not read yet"
        self.synced = asyncio.Event()
        metrics.KUBERNETES_WATCH_AGE.labels(watch=role).set_function(lambda: self.age() or 0.0)

    def age(self) -> float | None:
        """Return the seconds since the API server was last heard; None when it never was."""
        return None if self._heard is None else time.monotonic() - self._heard

    @property
    def objects(self) -> dict[str, T]:
        """Return what is known, by uid; not to be changed."""
        return self._objects

    def take(self, found: T) -> None:
        """Take in an object that an answer to one of our own calls held: ahead of the watch, or too late."""
        if found.metadata.uid not in self._gone:
            self._put(found)

    def drop(self, found: T) -> None:
        """Take out an object that one of our own calls removed."""
        self._objects.pop(found.metadata.uid, None)
        self._gone[found.metadata.uid] = True

    async def run(self) -> None:
        """Mirror until cancelled; nothing else ends it."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except Gone:
                log.info("the watch is too far behind, listing anew", kind=self._role)
                self._version = ""
                if time.monotonic() - self._listed < AT_ONCE_SECONDS:
                    await self._back_off(TimeoutError("what was just listed is too old to be watched"))
            except (ExecutorUnavailable, ApiStatusError, aiohttp.ClientError, TimeoutError, OSError) as error:
                await self._back_off(error)
            except ValidationError as error:
                # One object that cannot be read must not freeze the rest: a list says what can be known.
                log.error(
                    "the API server told something unreadable, listing anew",
                    kind=self._role,
                    error=str(error),
                )
                self._version = ""
                await self._back_off(error)

    async def _back_off(self, error: Exception) -> None:
        first, longest = BACKOFF_SECONDS
        seconds = min(longest, first * 2**self._failures) * random.uniform(0.5, 1.5)
        if isinstance(error, ExecutorUnavailable) and error.retry_after:
            seconds = max(seconds, error.retry_after)
        self._failures = min(self._failures + 1, 10)
        text = str(error) or type(error).__name__
        # A stream that ends in the middle is ordinary; one that cannot be had is not.
        if self._failures > 1:
            if isinstance(error, ApiStatusError) and error.status == 403:
                text = f"{error.message}. The service's Role must allow list and watch on {self._kind.name}"
            self.problem = text
            log.warning("cannot watch, trying again", kind=self._role, error=text, seconds=round(seconds, 1))
        await asyncio.sleep(seconds)

    def _hear(self) -> None:
        self._heard = time.monotonic()
        self.problem = None

    async def _list(self) -> None:
        seen: dict[str, T] = {}
        unreadable: frozenset[str] = frozenset()
        query = {"labelSelector": self._selector, "limit": str(PAGE_OBJECTS)}
        while True:
            data = await self._api.call("GET", self._path, urgency=CallPriority.READ, query=query)
            # A page of this size takes tens of milliseconds to parse, too long for the loop.
            page = await asyncio.to_thread(self._kind.page, data)
            metadata = page.metadata
            seen.update({item.metadata.uid: item for item in page.items})
            unreadable |= page.unreadable
            if not metadata.continue_:
                break
            query["continue"] = metadata.continue_
        metrics.KUBERNETES_LISTS.labels(watch=self._role).inc()
        for uid, known in list(self._objects.items()):
            # What our own calls made while the list was read may be newer than the list.
            is_newer = _is_newer(known.metadata, metadata.resource_version)
            if uid not in seen and uid not in unreadable and not is_newer:
                self._remove(known)
        for item in seen.values():
            self._put(item)
        self._version = metadata.resource_version
        self._listed = time.monotonic()
        self._hear()
        self.synced.set()

    async def _watch(self) -> None:
        query = {
            "labelSelector": self._selector,
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        began = time.monotonic()
        try:
            async with self._api.stream(self._path, query, read_seconds=self._silence) as response:
                self._hear()
                async for line in split_lines(response.content):
                    self._handle(line)
                    self._hear()
                    self._failures = 0
        except ApiStatusError as error:
            if error.status == _GONE:
                raise Gone from error
            raise
        if time.monotonic() - began < AT_ONCE_SECONDS:
            raise TimeoutError("the watch ended at once")
        self._failures = 0

    def _handle(self, line: bytes) -> None:
        kind = line[9 : line.find(b'"', 9)] if line.startswith(b'{"type":"') else _type_of(line)
        match kind:
            case b"ADDED" | b"MODIFIED":
                found = self._kind.event(line)
                self._put(found)
                self._version = found.metadata.resource_version
            case b"DELETED":
                found = self._kind.event(line)
                self._remove(found)
                self._version = found.metadata.resource_version
            case b"BOOKMARK":
                self._version = Bookmark.model_validate_json(line).object.metadata.resource_version
            case b"ERROR":
                status = WatchedError.model_validate_json(line).object
                if status.code == _GONE:
                    raise Gone
                raise ExecutorUnavailable(f"The watch was ended: {status.message or status.reason}")
            case _:
                log.warning("unknown kind of watch event", kind=self._role, line=line[:100])

    def _put(self, found: T) -> None:
        known = self._objects.get(found.metadata.uid)
        if known is not None and _is_newer(known.metadata, found.metadata.resource_version):
            return
        self._objects[found.metadata.uid] = found
        if known is None or known != found:
            self._on_change(found)

    def _remove(self, found: T) -> None:
        self.drop(found)
        self._on_gone(found)


def _is_newer(metadata: Metadata, version: str) -> bool:
    """Tell whether an object is newer than a version of the same kind.

    The API promises nothing but equality for versions; where they are numbers, as everywhere, they grow.
    """
    own = metadata.resource_version
    return own.isdigit() and version.isdigit() and int(own) > int(version)


def _type_of(line: bytes) -> bytes:
    class Typed(KubeObject):
        type: str = ""

    return Typed.model_validate_json(line).type.encode()


async def split_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines of any length up to LINE_BYTES; a cut one at the end is dropped."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            if len(rest) > LINE_BYTES:
                raise TimeoutError("a line without end")
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line:
                yield line
