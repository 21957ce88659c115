"""The pull Secrets of tenants for the pods of a JupyterHub's users."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rabbit2docker.settings.constants import DEFAULT_TENANTS

_SEPARATORS: Final = frozenset("./")
"""Signs that the part of an image name which follows from a repository does not have."""


class PullSecrets:
    """A hook of KubeSpawner that adds to a user's pod the pull Secret of the tenant whose image it starts.

    In `jupyterhub_config.py`:

        from rabbit2docker.client import PullSecrets

        c.KubeSpawner.modify_pod_hook = PullSecrets(
            {"alpha": "pull-alpha"}, prefix="registry.example.org/hub/r2d-"
        )
    """

    def __init__(
        self, secrets: Mapping[str, str], *, prefix: str, prefixes: Mapping[str, str] | None = None
    ) -> None:
        """Take the names of the Secrets by tenant.

        `prefix` is `images.prefix` of the service, and `prefixes` has `tenants.<name>.images.prefix` by tenant, where that
        is set. Tenants without a Secret here have none added for their images.
        """
        if not prefix:
            raise ValueError("prefix must be the setting images.prefix of the service")
        chosen = dict(prefixes or {})
        self._secrets = [
            (_plain(start), secret)
            for tenant, secret in secrets.items()
            for start in _starts(tenant, chosen.get(tenant) or _derived(tenant, prefix))
        ]

    def of_image(self, image: str) -> list[str]:
        """Return the Secrets of the tenants that have an image of this name: several if they share it."""
        name = _plain(_repository(image))
        found = [secret for start, secret in self._secrets if _is_next(name, start)]
        return list(dict.fromkeys(found))

    def __call__(self, spawner: Any, pod: Any) -> Any:
        """Return the pod with the Secrets for its images added to those that it has."""
        known = pod.spec.image_pull_secrets or []
        names = [each.get("name") if isinstance(each, Mapping) else each.name for each in known]
        containers = [*pod.spec.containers, *(pod.spec.init_containers or [])]
        found = dict.fromkeys(secret for each in containers for secret in self.of_image(_image(each)))
        added = [{"name": secret} for secret in found if secret not in names]
        if added:
            pod.spec.image_pull_secrets = [*known, *added]
        return pod


def _derived(tenant: str, prefix: str) -> str:
    return prefix if tenant in DEFAULT_TENANTS else f"{prefix}{tenant}."


def _starts(tenant: str, prefix: str) -> Iterator[str]:
    """Yield the beginnings of a tenant's image names: of public repositories, and of private ones where it shares."""
    yield prefix
    yield f"{prefix}{tenant}."


def _plain(name: str) -> str:
    """Return a name as it is in image names."""
    return name.replace("_", "-").lower()


def _repository(image: str) -> str:
    """Return the name of an image without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _is_next(name: str, start: str) -> bool:
    """Return whether a name is the beginning and what follows from a repository: no other tenant's, which is longer."""
    rest = name.removeprefix(start)
    return name.startswith(start) and bool(rest) and not _SEPARATORS & set(rest)


def _image(container: Any) -> str:
    image = container.get("image") if isinstance(container, Mapping) else container.image
    return image or ""
