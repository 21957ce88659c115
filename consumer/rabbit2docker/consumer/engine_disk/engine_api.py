"""The HTTP API of a Docker engine, as far as a cleaning needs it."""

import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp

from rabbit2docker.consumer.engine_disk.ownership import RESERVE
from rabbit2docker.consumer.engine_disk.usage import CacheRecord, Disk, EngineImage, Survey
from rabbit2docker.errors import ConfigurationError, EngineUnavailable

UNIX: Final = "unix://"
NEWEST: Final = (1, 47)
"""Later versions of the API name the limits of a prune differently."""
ANSWER_SECONDS: Final = 300.0
"""An engine that removes gigabytes answers late."""
RESERVE_BYTES: Final = 4 << 20
_NO_SPACE: Final = ("no space left", "quota exceeded")
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404


class EngineDiskFull(EngineUnavailable):
    """The disk is so full that the engine cannot even remove something."""


class EngineApi:
    """A connection to an engine on this machine. Every call raises EngineUnavailable."""

    def __init__(self, address: str) -> None:
        """Take the engine's DOCKER_HOST; raises ConfigurationError if that is no Unix socket."""
        if not address.startswith(UNIX):
            raise ConfigurationError(
                f"The disk of the Docker engine at {address} cannot be cleaned from here: only that of an engine at a "
                "unix:// address can. Unset RABBIT2DOCKER_ENGINE__DISK__MAX_BYTES and __MAX_PERCENT."
            )
        self.socket = address.removeprefix(UNIX)
        self._base = ""

    async def __aenter__(self) -> Self:
        """Open a session and agree on a version of the API."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=self.socket), timeout=timeout, base_url="http://docker"
        )
        try:
            offered = (await self._call("GET", "/version"))["ApiVersion"]
        except BaseException:
            await self._session.close()
            raise
        version = min(tuple(map(int, offered.split("."))), NEWEST)
        self._base = f"/v{'.'.join(map(str, version))}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the session."""
        await self._session.close()

    async def data_root(self) -> str:
        """Return the directory of the engine's data, as the engine sees it."""
        return str((await self._call("GET", "/info"))["DockerRootDir"])

    async def survey(self, disk: Disk | None) -> Survey:
        """Return what the engine holds."""
        found = await self._call("GET", "/system/df?type=image&type=build-cache")
        return Survey(
            images=tuple(map(_image, found["Images"] or ())),
            image_bytes=int(found["LayersSize"]),
            cache=tuple(
                _cache_record(record) for record in found["BuildCache"] or () if not record["Shared"]
            ),
            disk=disk,
        )

    async def last_tagged(self, image: EngineImage) -> datetime:
        """Return when the image was last given a name, which each build and each push does."""
        try:
            found = await self._call("GET", f"/images/{image.id}/json")
        except _Refused:
            return image.created
        return max(image.created, _time(found.get("Metadata", {}).get("LastTagTime")))

    async def remove(self, reference: str) -> bool:
        """Remove an image, or a name of it; False if it is in use or gone. Raises EngineDiskFull."""
        try:
            await self._call("DELETE", f"/images/{quote(reference, safe='/:@')}")
        except _Refused as refusal:
            if refusal.status in (_CONFLICT, _NOT_FOUND):
                return False
            raise
        return True

    async def prune(self, *, keep: int, everything: bool = False) -> int:
        """Remove build cache, what was not used for longest first, down to `keep` bytes; return the bytes removed.

        `everything` includes what belongs to images, too, and what BuildKit keeps for itself.
        """
        query = f"/build/prune?keep-storage={max(0, keep)}{'&all=1' if everything else ''}"
        return int((await self._call("POST", query))["SpaceReclaimed"])

    async def make_reserve(self) -> None:
        """Make the image that is removed first when nothing else can be."""
        query = f"/images/create?fromSrc=-&changes={quote(f'LABEL {RESERVE}=1')}"
        await self._call("POST", query, data=_reserve_archive())

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens to images, without end."""
        filters = quote(json.dumps({"type": {"image": True}}))
        forever = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.get(
                f"{self._base}/events?filters={filters}", timeout=forever
            ) as response:
                async for line in response.content:
                    yield json.loads(line)
        except (aiohttp.ClientError, ValueError) as error:
            raise _away(error) from error
        raise EngineUnavailable("The Docker engine has ended the stream of its events.")

    async def _call(self, method: str, path: str, *, data: io.BytesIO | None = None) -> Any:
        try:
            async with self._session.request(method, f"{self._base}{path}", data=data) as response:
                text = await response.text()
                if response.status >= 400:
                    raise _refusal(response.status, text)
                return json.loads(text) if response.content_type == "application/json" and text else None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(error) from error
        except ValueError:
            return None  # several documents, of an import


class _Refused(EngineUnavailable):
    """The engine answers that it does not do it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _refusal(status: int, text: str) -> EngineUnavailable:
    if any(words in text.lower() for words in _NO_SPACE):
        return EngineDiskFull("The disk of the Docker engine is full.")
    return _Refused(status, f"The Docker engine refuses with {status}: {text[:300].strip()}")


def _away(error: Exception) -> EngineUnavailable:
    return EngineUnavailable(f"The Docker engine does not answer: {error!r}.")


def _image(data: Mapping[str, Any]) -> EngineImage:
    return EngineImage(
        id=str(data["Id"]),
        tags=tuple(tag for tag in data.get("RepoTags") or () if tag != "<none>:<none>"),
        digests=tuple(name for name in data.get("RepoDigests") or () if not name.startswith("<none>")),
        labels=dict(data.get("Labels") or {}),
        created=datetime.fromtimestamp(data.get("Created") or 0, UTC),
        is_used=int(data.get("Containers") or 0) > 0,
    )


def _cache_record(data: Mapping[str, Any]) -> CacheRecord:
    return CacheRecord(int(data["Size"]), max(_time(data.get("CreatedAt")), _time(data.get("LastUsedAt"))))


def _time(text: str | None) -> datetime:
    """Return a time of the engine, which has nanoseconds; the earliest one if it has none."""
    never = datetime.fromtimestamp(0, UTC)
    try:
        return max(never, datetime.fromisoformat(text)) if text else never
    except ValueError:
        return never


def _reserve_archive() -> io.BytesIO:
    content = os.urandom(RESERVE_BYTES)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("reserve")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    archive.seek(0)
    return archive
