"""The interface that every provider implements, and the repository that it resolves to."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Repository:
    """A resolved spec: the names and the address of the content, pinned to one version."""

    provider: str
    """Prefix of the provider, such as `gh`."""
    spec: str
    """The spec as requested."""
    repo_url: str
    """The URL that repo2docker fetches from; never holds credentials."""
    resolved_ref: str
    """Immutable version: a full commit id where the content is a git repository."""
    build_slug: str
    """The part of image and build names that identifies the repository, identical to BinderHub's."""
    content_provider: str
    """Class name of the repo2docker content provider that fetches it."""
    display_name: str
    """Name for users, such as `owner/repository`."""
    source_ref: str | None = None
    """Full name of the ref at which the version was found; None if it was requested by its id."""
    notice: str | None = None
    """Text for users if another version is built than the spec names."""


class Provider(Protocol):
    """One kind of repository. Only `resolve` contacts the host."""

    prefix: str

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC or REFUSED_URL) when the spec cannot be read; contacts no host."""

    async def resolve(self, spec: str) -> Repository:
        """Return the repository at the version that the spec names now.

        Raises RequestRejected (no such ref or repository, private, refused address) or ProviderUnavailable (the host
        is away, slow or limits the rate).
        """

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository at version `ref`, which is not verified; contacts no host. Raises RequestRejected."""
