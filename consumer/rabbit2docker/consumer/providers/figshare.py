"""Articles of Figshare. Spec: a DOI, with a version or for the newest."""

from rabbit2docker.consumer.credentials import ANYBODY, TenantAccess
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.dataset_host import (
    DatasetFile,
    DatasetProvider,
    file_size,
    malformed,
    objects,
)
from rabbit2docker.consumer.providers.datasets import FigshareSpec, pin_figshare
from rabbit2docker_schemas.providers import PROVIDERS


class FigshareProvider(DatasetProvider):
    """Resolves a DOI with Figshare's API; one without a version stands for the newest, as at Figshare."""

    prefix = PROVIDERS["figshare"].prefix

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC) when the spec is not the DOI of an article."""
        FigshareSpec.parse(spec)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the article at version `ref`."""
        return pin_figshare(spec, ref)

    async def resolve(self, spec: str, access: TenantAccess = ANYBODY) -> Repository:
        """Return the article at the version that the DOI names, or its newest."""
        parsed = FigshareSpec.parse(spec)
        api = self.api(self.settings.figshare_api_url, is_trusted=True)
        subject = f"article {parsed.article}"
        version = parsed.version
        if version is None:
            newest = file_size(
                (await self.read(api, f"articles/{parsed.article}", subject=subject)).get("version")
            )
            if not newest:
                raise malformed(api.host, f"version of the {subject}")
            version = str(newest)
        path = f"articles/{parsed.article}/versions/{version}"
        article = await self.read(api, path, subject=f"{subject} in version {version}")
        files = [
            DatasetFile(str(file.get("name") or ""), file_size(file.get("size")))
            for file in objects(article.get("files"))
            if not file.get("is_link_only")
        ]
        self.check_files(f"The {subject} of Figshare", files)
        return self.pin(spec, f"{parsed.article}.v{version}")
