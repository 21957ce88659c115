"""What every provider offers, and what it answers with. The seam at which further providers plug in."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Repository:
    """A spec after resolution: everything that names and fetches the content, fixed to one version."""

    provider: str
    """Prefix of the provider, such as `gh`."""
    spec: str
    """The spec as it was asked for."""
    repo_url: str
    """What repo2docker is given to fetch from; never holds credentials."""
    resolved_ref: str
    """Immutable version: a full commit id where the content is a git repository."""
    build_slug: str
    """What image and build names are made of, identical to BinderHub's."""
    content_provider: str
    """Class name of repo2docker's content provider that fetches it."""
    display_name: str
    """For people: `owner/repository` or the like."""


class Provider(Protocol):
    """One kind of repository. Reading a spec is pure; resolving asks the host."""

    prefix: str

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC or REFUSED_URL) when the spec cannot be read; asks nobody."""

    async def resolve(self, spec: str) -> Repository:
        """Find the version that the spec names now.

        Raises RequestRejected (no such ref, no such repository, private, refused address) or
        ProviderUnavailable (the host is away, slow or limits the rate).
        """

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository as if `resolve` had answered `ref`; asks nobody. Raises RequestRejected."""
