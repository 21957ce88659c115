"""Settings of single tenants: their names for images, and their credentials for repositories and registries."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rabbit2docker.settings.base import Group
from rabbit2docker.settings.constants import DEFAULT_TENANTS

MAX_SUBMODULE_ACCOUNTS: Final = 10
_ACCOUNT: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,98}[a-z0-9_-])?")
_HOST: Final = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


def _is_host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("a host must be a name in lower case, with its port if that is not the usual one")
    return text


GitHost = Annotated[str, AfterValidator(_is_host)]
"""`git.example.org` for the usual ports of HTTPS and SSH, or `git.example.org:8443` for this port alone."""


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


AppId = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int)]
"""The id of a GitHub App, which is a number, or its client id."""


def _as_account(text: str) -> str:
    name = text.lower()
    if not _ACCOUNT.fullmatch(name):
        raise ValueError(
            f"{text!r} cannot be an account: only letters, digits, hyphens and underscores can be in its name, which is "
            "the part before the slash in owner/repository"
        )
    return name


AccountName = Annotated[str, AfterValidator(_as_account)]
"""A user or an organization on a GitHub, which does not distinguish upper and lower case."""


class GitCredential(Group):
    """Credentials of a tenant for one host. Files are read at each use, so that they can be renewed without a restart."""

    user: str | None = None
    """User name for HTTPS, such as that of a deploy token; unset: the token is an access token, used for the API, too."""
    token_file: Path | None = None
    """File with the token or password for HTTPS."""
    app_id: AppId | None = None
    """Id or client id of a GitHub App, which is installed on the repositories: each gets tokens of its own, for an hour."""
    app_key_file: Path | None = None
    """File with the private key of the GitHub App, as GitHub generates it."""
    submodule_accounts: list[AccountName] = Field(default=[], max_length=MAX_SUBMODULE_ACCOUNTS)
    """Other accounts on the host, at most 10, whose private repositories may be submodules: where the App is installed on
    them, the fetch of a build gets a token for each, which is sent to repositories of that account alone."""
    ssh_key_file: Path | None = None
    """File with the private key for `ssh://` addresses, without a passphrase."""
    known_hosts_file: Path | None = None
    """File with the host's public keys, in the format of `ssh-keyscan`; a host with another key is refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.ssh_key_file is None) != (self.known_hosts_file is None):
            raise ValueError("ssh_key_file and known_hosts_file must be set together")
        if (self.app_id is None) != (self.app_key_file is None):
            raise ValueError("app_id and app_key_file must be set together")
        if self.app_id and (self.token_file or self.user):
            raise ValueError("app_id takes the place of token_file and user: set one or the other")
        if self.submodule_accounts and not self.app_id:
            raise ValueError(
                "submodule_accounts needs app_id: only a GitHub App has tokens of other accounts"
            )
        if twice := {name for name in self.submodule_accounts if self.submodule_accounts.count(name) > 1}:
            raise ValueError(f"submodule_accounts has {', '.join(sorted(twice))} more than once")
        if not (self.token_file or self.ssh_key_file or self.app_key_file):
            raise ValueError("token_file, app_key_file or ssh_key_file must be set")
        return self


class TenantImageSettings(Group):
    """Image names of one tenant."""

    prefix: str | None = None
    """Beginning of the tenant's image names. Unset: `images.prefix` for the tenant `default`, and with the tenant's name
    and a dot after it for any other. Tenants with equal prefixes share images of public repositories."""


class TenantSettings(Group):
    """One tenant."""

    images: TenantImageSettings = TenantImageSettings()
    docker_config: Path | None = None
    """Directory of Docker's `config.json` with the tenant's own registry accounts, in the place of `docker.config`."""
    git: dict[GitHost, GitCredential] = {}
    """Credentials for private repositories, by host. They serve look-ups and builds of this tenant only."""
    node_selector: dict[str, str] = {}
    """Labels that the nodes of this tenant's build pods must have, in addition to `kubernetes.node_selector`."""
    tolerations: list[dict[str, Any]] = []
    """Tolerations of this tenant's build pods, in addition to `kubernetes.tolerations`."""


def by_name(tenants: Any) -> Any:
    """Return settings by name where a list has names alone."""
    return {name: {} for name in tenants} if isinstance(tenants, list | tuple) else tenants


Tenants = Annotated[
    dict[str, TenantSettings],
    BeforeValidator(by_name, json_schema_input_type=dict[str, TenantSettings] | list[str]),
]
"""Settings by name; a list of names stands for tenants without settings."""


def default_tenants() -> dict[str, TenantSettings]:
    """Return the tenants of an installation that names none."""
    return {name: TenantSettings() for name in DEFAULT_TENANTS}
