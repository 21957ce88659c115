"""Whose image is whose: the names of a tenant's images, and the registry accounts that see them."""

from itertools import permutations
from typing import Final

import aiohttp

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.images.registry import Registry
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import DockerSettings, Settings
from rabbit2docker.settings.constants import DEFAULT_TENANTS

DEFAULT: Final = DEFAULT_TENANTS[0]
"""The tenant whose images have BinderHub's names."""
_OWN: Final = "."
"""Ends the name of a tenant in a prefix. The part of a name that follows from a repository has no such sign."""


class TenantImages:
    """Beginnings of image names, by tenant."""

    def __init__(self, settings: Settings) -> None:
        """Raise ConfigurationError if a repository of one tenant could have the image name of another's."""
        self._common = settings.images.prefix
        self._chosen = {
            name: tenant.images.prefix for name, tenant in settings.tenants.items() if tenant.images.prefix
        }
        self._prefixes = {name: self._of(name) for name in {*settings.tenants, DEFAULT}}
        for first, second in permutations(self._prefixes, 2):
            self._check(first, second)

    def prefix(self, tenant: str, *, is_private: bool = False) -> str:
        """Return the beginning of a tenant's image names. Images with private content are never shared."""
        own = self._of(tenant)
        sharing = [name for name, prefix in self._prefixes.items() if _plain(prefix) == _plain(own)]
        return f"{own}{tenant}{_OWN}" if is_private and set(sharing) - {tenant} else own

    def _of(self, tenant: str) -> str:
        derived = self._common if tenant == DEFAULT else f"{self._common}{tenant}{_OWN}"
        return self._chosen.get(tenant) or derived

    def _check(self, first: str, second: str) -> None:
        short, long = _plain(self._prefixes[first]), _plain(self._prefixes[second])
        rest = long.removeprefix(short)
        if short != long and long.startswith(short) and not set(rest) & set("./"):
            raise ConfigurationError(
                f"The image prefix of the tenant {second}, {self._prefixes[second]}, continues that of {first}, "
                f"{self._prefixes[first]}: a repository of {first} could get the image name of one of {second}. Let what "
                "it adds contain a dot or a slash, or give both the same prefix to share images."
            )


def _plain(prefix: str) -> str:
    """Return a prefix as it is in image names."""
    return prefix.replace("_", "-").lower()


class TenantRegistries:
    """Looks images up with the registry accounts of their tenant."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, breakers: Breakers) -> None:
        """Use the caller's `session`, which stays open."""
        self._common = Registry(session, settings.images, settings.docker, breakers)
        self._own = {
            name: Registry(session, settings.images, DockerSettings(config=tenant.docker_config), breakers)
            for name, tenant in settings.tenants.items()
            if tenant.docker_config
        }

    async def find(self, image: str, tenant: str) -> ImageInfo | None:
        """Return the image; None if it is absent. Raises RegistryDenied and RegistryUnavailable."""
        return await self._own.get(tenant, self._common).find(image)
