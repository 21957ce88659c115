"""Datasets of Dataverse installations. Spec: the DOI of a dataset, or of a file in one."""

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.dataset_host import (
    DatasetFile,
    DatasetProvider,
    file_size,
    malformed,
    objects,
)
from rabbit2docker.consumer.providers.datasets import dataverse_repository, parse_doi, pin_dataverse
from rabbit2docker.consumer.providers.host_api import HostApi
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason


class DataverseProvider(DatasetProvider):
    """Resolves a DOI to the latest published version of the dataset; versions have no DOIs of their own."""

    prefix = PROVIDERS["dataverse"].prefix

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec is not a DOI."""
        parse_doi(spec)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the dataset at version `ref`."""
        return pin_dataverse(spec, ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the dataset at its latest version."""
        doi = parse_doi(spec)
        page = urlsplit(await self.page_of(doi))
        identifier = (parse_qs(page.query).get("persistentId") or [""])[0]
        if not identifier:
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND,
                f"The DOI {doi} is not one of a Dataverse installation: it leads to {page.netloc[:100]}. Use the provider "
                "of that site, if there is one.",
            )
        # The installation is named by the DOI, and so by the request.
        api = self.api(f"{page.scheme}://{page.netloc}", is_trusted=False)
        identifier, dataset = await self._dataset(api, identifier, doi)
        latest = dataset.get("latestVersion")
        version = latest if isinstance(latest, dict) else {}
        found = (dataset.get("id"), version.get("versionNumber"), version.get("versionMinorNumber"))
        own = dataset.get("identifier")
        if not all(type(number) is int for number in found) or not isinstance(own, str):
            raise malformed(api.host, f"published version of the dataset {doi}")
        self.check_files(f"The dataset {doi}", _files(version))
        ref = f"{found[0]}.v{found[1]}.{found[2]}"
        name = f"{dataset.get('authority') or doi.partition('/')[0]}/{own}"
        return dataverse_repository(spec, ref, name, f"{api.base_url}/citation?persistentId={identifier}")

    async def _dataset(self, api: HostApi, identifier: str, doi: str) -> tuple[str, dict[str, Any]]:
        """Return the persistent id of a dataset and its data, also for the persistent id of one of its files."""
        content = await self._data(
            api, f"api/datasets/:persistentId?persistentId={_quoted(identifier)}", doi, (200, 404)
        )
        if content:
            return identifier, content
        path = f"api/files/:persistentId?persistentId={_quoted(identifier)}&returnDatasetVersion=true"
        version = (await self._data(api, path, doi)).get("datasetVersion")
        identifier = str(version.get("datasetPersistentId") if isinstance(version, dict) else "")
        return identifier, await self._data(
            api, f"api/datasets/:persistentId?persistentId={_quoted(identifier)}", doi
        )

    async def _data(
        self, api: HostApi, path: str, doi: str, expected: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:
        data = (await self.read(api, path, subject=f"dataset {doi}", expected=expected)).get("data")
        return data if isinstance(data, dict) else {}


def _files(version: dict[str, Any]) -> list[DatasetFile]:
    found = []
    for entry in objects(version.get("files")):
        file = entry.get("dataFile")
        # repo2docker downloads the original of a table, which may be larger than what was made of it.
        sizes = (file.get("originalFileSize"), file.get("filesize")) if isinstance(file, dict) else ()
        found.append(
            DatasetFile(str(entry.get("label") or ""), max((file_size(size) for size in sizes), default=0))
        )
    return found


def _quoted(identifier: str) -> str:
    return quote(identifier, safe="/:;()._-~")
