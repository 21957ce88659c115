"""Helpers of the dataset providers: DOIs, versions by time, and limits on what a dataset holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
from cachetools import LRUCache

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.providers.datasets import doi_path
from rabbit2docker.consumer.providers.host_api import HostApi
from rabbit2docker.consumer.providers.http import HttpClient, host_of
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

MAX_HOSTS: Final = 256


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file that repo2docker will download."""

    name: str
    size: int
    """In bytes; 0 where the host does not say."""


class DatasetProvider:
    """Base of the providers of datasets."""

    prefix: str

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Take addresses and limits from the settings. Without `session`, `resolve` is not possible."""
        self.settings = settings
        self._client = HttpClient(settings, session)
        self._breakers = breakers or Breakers()
        self._max_bytes = settings.max_dataset_bytes
        self._apis: LRUCache[tuple[str, bool], HostApi] = LRUCache(MAX_HOSTS)

    def api(self, base_url: str, *, is_trusted: bool) -> HostApi:
        """Return the API below a URL; the same one each time, so that it remembers limits."""
        key = (base_url, is_trusted)
        if (known := self._apis.get(key)) is None:
            known = self._apis[key] = HostApi(
                self._client,
                provider=self.prefix,
                host=host_of(base_url),
                base_url=base_url,
                is_trusted=is_trusted,
            )
        return known

    async def read(
        self, api: HostApi, path: str, *, subject: str, expected: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:
        """Return the JSON object at `path`; an empty one for an expected status other than 200."""
        with self._breakers.guard(api.dependency):
            answer = await api.get(path, subject=subject, expected=expected)
            return answer.json_object() if answer.status == 200 else {}

    async def page_of(self, doi: str) -> str:
        """Return the URL that a DOI is registered for, which repo2docker looks up in the same way."""
        api = self.api(self.settings.doi_url, is_trusted=True)
        path = f"api/handles/{quote(doi_path(doi), safe='/:;()._-~%')}"
        content = await self.read(api, path, subject=f"DOI {doi}")
        values = content.get("values")
        for value in values if isinstance(values, list) else []:
            data = value.get("data") if isinstance(value, dict) and value.get("type") == "URL" else None
            if isinstance(data, dict) and isinstance(data.get("value"), str):
                return str(data["value"])
        raise RequestRejected(
            RejectReason.REPOSITORY_NOT_FOUND,
            f"The DOI {doi} leads to no page. Check it at https://doi.org/{doi}.",
        )

    async def final_url(self, url: str, *, is_trusted: bool, subject: str) -> str:
        """Return the URL of a page after all redirects."""
        parts = urlsplit(url)
        api = self.api(f"{parts.scheme}://{parts.netloc}", is_trusted=is_trusted)
        path = parts._replace(scheme="", netloc="").geturl().lstrip("/")
        with self._breakers.guard(api.dependency):
            answer = await api.get(path, subject=subject, accept="*/*", has_body=False)
        return answer.url

    def check_files(self, subject: str, files: Iterable[DatasetFile]) -> None:
        """Raise RequestRejected for a dataset without files, or one that is larger than the limit."""
        found = list(files)
        if not found:
            raise RequestRejected(
                RejectReason.REPOSITORY_EMPTY,
                f"{subject} has no files that can be downloaded. Add files to it, or make them public.",
            )
        if (size := sum(file.size for file in found)) > self._max_bytes:
            largest = max(found, key=lambda file: file.size)
            raise RequestRejected(
                RejectReason.REPOSITORY_TOO_LARGE,
                f"{subject} has {in_units(size)}, and this service builds datasets of up to {in_units(self._max_bytes)}. "
                f"The largest file is {largest.name[:100]} with {in_units(largest.size)}. Publish code and environment "
                "without the data and download that when it is used, or ask the operator for a higher limit.",
            )


def in_units(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def objects(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list in a host's answer."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def file_size(value: object) -> int:
    """Return a size in a host's answer, 0 if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    return int(value) if type(value) in (int, float) and 0 <= value < 1e18 else 0  # type: ignore[operator, call-overload]


def epoch(text: object, host: str) -> str:
    """Return a time as whole seconds since 1970, as BinderHub does: without regard to its zone, which is always UTC."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise ProviderUnavailable(
            f"{host} returned no time of the last change: waiting for its repair."
        ) from error
    return str(int(moment.replace(tzinfo=UTC).timestamp()))


def malformed(host: str, what: str) -> ProviderUnavailable:
    """Return the error for an answer that lacks what it must have."""
    return ProviderUnavailable(f"{host} returned no {what}: waiting for its repair.")
