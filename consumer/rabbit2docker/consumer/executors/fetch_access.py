"""The credentials of a tenant for the fetch of one attempt, common to all executors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rabbit2docker.consumer.credentials import GitCredentials, HostCredential, names_of
from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.git_files import git_files
from rabbit2docker.errors import ExecutorUnavailable, ProviderUnavailable, RequestRejected


@dataclass(frozen=True, slots=True)
class FetchAccess:
    """Credentials for the fetch of an attempt."""

    files: dict[str, str] = field(repr=False)
    instructions: dict[str, Any]
    """The part of the builder's specification about them. It holds no secrets."""


async def fetch_files(
    credentials: GitCredentials, spec: AttemptSpec, directory: str | Path
) -> FetchAccess | None:
    """Return what the fetch of an attempt needs of the credentials of its request and tenant.

    Raises ExecutorUnavailable.
    """
    if spec.content_provider != "Git":
        return None
    access, problem = credentials.of(spec.tenant), ""
    try:
        access = await credentials.of_request(spec.tenant, spec.request_id, spec.request.credentials)
    except RequestRejected as error:
        # The repository was found with them, and may be public all the same.
        problem = error.message
    try:
        credentials_of_hosts = await access.for_build(spec.repo_url, spec.resolved_ref)
    except ProviderUnavailable as error:
        raise ExecutorUnavailable(error.message, retry_after=error.retry_after) from error
    found = git_files(credentials_of_hosts, directory)
    apps = {
        "/".join(filter(None, (entry.host, entry.account))): _about_app(entry)
        for entry in credentials_of_hosts
        if entry.expires_at or entry.problem or entry.account
    }
    if problem:
        apps |= {name: {"expires_at": None, "problem": problem} for name in names_of(spec.repo_url)[-1:]}
    if found is None and not apps:
        return None
    instructions: dict[str, Any] = {
        "directory": str(directory),
        "config": found.config if found else (),
        "ssh_command": found.ssh_command if found else None,
        "ssh_hosts": access.ssh_hosts(),
        **({"apps": apps} if apps else {}),
    }
    return FetchAccess(found.files if found else {}, instructions)


def _about_app(entry: HostCredential) -> dict[str, Any]:
    """Return what explains a refusal of a host to the builder."""
    return {"expires_at": entry.expires_at, "problem": entry.problem}
