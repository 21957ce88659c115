"""Datasets of CKAN sites. Spec: the url-escaped URL of a dataset, perhaps of one activity of its history."""

from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.dataset_host import (
    DatasetFile,
    DatasetProvider,
    epoch,
    file_size,
    malformed,
    objects,
)
from rabbit2docker.consumer.providers.datasets import CkanSpec, pin_ckan
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason


class CkanProvider(DatasetProvider):
    """Resolves a dataset to the time of its last change, or of the change that an activity stands for."""

    prefix = PROVIDERS["ckan"].prefix

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC or REFUSED_URL)."""
        AddressPolicy(self.settings).check(CkanSpec.parse(spec).url)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the dataset at version `ref`."""
        return pin_ckan(spec, ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the dataset as it is now, or as its activity left it."""
        self.check(spec)
        parsed = CkanSpec.parse(spec)
        api = self.api(parsed.api, is_trusted=False)
        subject = f"dataset {parsed.dataset}"
        content = await self.read(api, parsed.content_url.removeprefix(f"{parsed.api}/"), subject=subject)
        result = content.get("result")
        package = result.get("package", result) if isinstance(result, dict) else None
        if content.get("success") is not True or not isinstance(package, dict):
            raise malformed(api.host, subject)
        if package.get("state") == "deleted":
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND, f"The {subject} on {api.host} was deleted."
            )
        files = [item for item in objects(package.get("resources")) if item.get("url")]
        for item in files:
            AddressPolicy(self.settings).check(str(item["url"]))
        sizes = [
            DatasetFile(str(item.get("name") or item["url"]), file_size(item.get("size"))) for item in files
        ]
        self.check_files(f"The {subject} on {api.host}", sizes)
        return self.pin(spec, f"{parsed.dataset}.v{epoch(package.get('metadata_modified'), api.host)}")
