"""Resources of HydroShare. Spec: anything that contains the id of a resource: the id, a DOI or a URL."""

from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.dataset_host import (
    DatasetFile,
    DatasetProvider,
    epoch,
    file_size,
    malformed,
    objects,
)
from rabbit2docker.consumer.providers.datasets import hydroshare_id, pin_hydroshare
from rabbit2docker_schemas.providers import PROVIDERS


class HydroshareProvider(DatasetProvider):
    """Resolves a resource to the time of its last change; HydroShare has no older versions."""

    prefix = PROVIDERS["hydroshare"].prefix

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec has no id of a resource."""
        hydroshare_id(spec)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the resource at version `ref`."""
        return pin_hydroshare(spec, ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the resource as it is now."""
        resource = hydroshare_id(spec)
        api = self.api(self.settings.hydroshare_url, is_trusted=True)
        subject = f"resource {resource}"
        content = await self.read(api, f"hsapi/resource/{resource}/scimeta/elements", subject=subject)
        dates = [date for date in objects(content.get("dates")) if date.get("type") == "modified"]
        if not dates:
            raise malformed(api.host, f"time of the last change of the {subject}")
        listed = await self.read(
            api, f"hsapi/resource/{resource}/files/", subject=subject, expected=(200, 400, 404, 405)
        )
        if isinstance(listed.get("results"), list):
            files = objects(listed["results"])
            sizes = [
                DatasetFile(str(file.get("file_name") or ""), file_size(file.get("size"))) for file in files
            ]
            self.check_files(f"The {subject} of HydroShare", sizes)
        return self.pin(spec, f"{resource}.v{epoch(dates[0].get('start_date'), api.host)}")
