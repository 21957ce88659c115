"""The interface that every provider implements, and the repository that it resolves to."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:  # names are formed without it, in a tenth of the time
    from rabbit2docker.consumer.credentials import TenantAccess


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
    resolved_spec: str = ""
    """The spec with the version in the place of what named it, as in BinderHub."""
    ref_url: str = ""
    """The page of the version, as in BinderHub."""
    source_ref: str | None = None
    """Full name of the ref at which the version was found; None if it was requested by its id."""
    notice: str | None = None
    """Text for users if another version is built than the spec names."""
    is_private: bool = False
    """True if it can be read only with the credentials of the tenant that requested it."""

    def moved(self, url: str, *, old: str, new: str) -> Self:
        """Return it at its new address; its names stay those of the spec. `old`, `new`: for the notice."""
        notice = f"{old} has moved to {new}, which is built."
        return replace(self, repo_url=url, notice=" ".join(filter(None, (self.notice, notice))))


class Provider(Protocol):
    """One kind of repository. Only `resolve` contacts the host."""

    prefix: str

    def check(self, spec: str) -> None:
        """Raise RequestRejected(INVALID_SPEC or REFUSED_URL) when the spec cannot be read; contacts no host."""

    async def resolve(self, spec: str, access: "TenantAccess" = ...) -> Repository:
        """Return the repository at the version that the spec names now, with the credentials of `access` if need be.

        Raises RequestRejected (no such ref or repository, private, refused address) or ProviderUnavailable (the host
        is away, slow or limits the rate).
        """

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository at version `ref`, which is not verified; contacts no host. Raises RequestRejected."""
