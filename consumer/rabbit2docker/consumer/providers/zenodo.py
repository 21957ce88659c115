"""Records of Zenodo and of sites with its software. Spec: a DOI, of one version or of all."""

from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.dataset_host import DatasetFile, DatasetProvider, file_size, objects
from rabbit2docker.consumer.providers.datasets import ZENODO_SITES, ZenodoSite, parse_doi, pin_zenodo
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason


class ZenodoProvider(DatasetProvider):
    """Resolves a DOI to the record that its page redirects to: of the DOI for all versions, the newest."""

    prefix = PROVIDERS["zenodo"].prefix

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec is not a DOI."""
        parse_doi(spec)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the record `ref`."""
        return pin_zenodo(spec, ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the record that the DOI stands for now."""
        doi = parse_doi(spec)
        page = await self.page_of(doi)
        site = self._site_of(page, doi)
        final = await self.final_url(page, is_trusted=True, subject=f"page for the DOI {doi}")
        self._site_of(final, doi)
        number = urlsplit(final).path.rstrip("/").rpartition("/")[2]
        subject = f"record {number}"
        record = await self.read(
            self.api(site.origin, is_trusted=True), f"api/records/{quote(number, safe='')}", subject=subject
        )
        self.check_files(f"The {subject} of {urlsplit(site.origin).netloc}", _files(record))
        return replace(self.pin(spec, number), repo_url=f"{site.origin}/{site.record}/{number}")

    def _site_of(self, url: str, doi: str) -> ZenodoSite:
        """Return the site of a page. Raises RequestRejected for one that repo2docker does not know as Zenodo's."""
        parts = urlsplit(url)
        sites = (*ZENODO_SITES.values(), ZenodoSite(self.settings.zenodo_url.rstrip("/"), "records"))
        for site in sites:
            if urlsplit(site.origin).netloc == parts.netloc.lower().removeprefix("www."):
                return site
        raise RequestRejected(
            RejectReason.REPOSITORY_NOT_FOUND,
            f"The DOI {doi} is not one of Zenodo: it leads to {parts.netloc[:100]}. Use the provider of that site.",
        )


def _files(record: dict[str, Any]) -> list[DatasetFile]:
    """Return the files of a record: a list, or in InvenioRDM an object with entries."""
    files = record.get("files")
    if isinstance(files, dict):
        entries = files.get("entries")
        items = objects(list(entries.values()) if isinstance(entries, dict) else entries)
        if not items and file_size(files.get("total_bytes")):
            return [DatasetFile("all files", file_size(files["total_bytes"]))]
    else:
        items = objects(files)
    return [DatasetFile(str(item.get("key") or ""), file_size(item.get("size"))) for item in items]
