"""Credentials as files for git, which are readable by their owner alone: arguments, variables and records hold paths."""

import asyncio
import os
import shlex
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rabbit2docker.consumer.credentials import HostCredential

LOGIN: Final = "login"
SSH_KEY: Final = "ssh_key"
SSH_CONFIG: Final = "ssh_config"
KNOWN_HOSTS: Final = "known_hosts"

# The first value of a setting counts, so this comes last.
_SSH_DEFAULTS: Final = """Host *
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile /dev/null
  UpdateHostKeys no
  IdentitiesOnly yes
  IdentityAgent none
  PreferredAuthentications publickey
  ClearAllForwardings yes
  ConnectTimeout 30
"""


@dataclass(frozen=True, slots=True)
class GitFiles:
    """Credentials as files for git, and the settings by which it finds them there. The settings hold no secrets."""

    files: dict[str, str] = field(repr=False)
    config: tuple[tuple[str, str], ...]
    ssh_command: str | None


def git_files(credentials: list[HostCredential], directory: str | Path) -> GitFiles | None:
    """Return the files for git, which will be in `directory`; None if there is nothing to write."""
    files: dict[str, str] = {}
    config: list[tuple[str, str]] = []
    served = {entry.host for entry in credentials if entry.login and not entry.account}
    # Git asks the helpers after the last empty value that is for a URL. So accounts come after their hosts, and one without
    # a login withdraws that of its host, which is another account's. Paths match by whole components.
    for number, entry in enumerate(sorted(credentials, key=lambda entry: entry.account is not None)):
        name = f"credential.https://{'/'.join(filter(None, (entry.host, entry.account)))}.helper"
        if login := entry.login:
            path = f"{directory}/{LOGIN}_{number}"
            files[f"{LOGIN}_{number}"] = f"username={login.user}\npassword={login.password}\n"
            # The empty value withdraws helpers that are for all hosts, too. Git's own helper for files would erase what a
            # host refuses.
            config += [(name, ""), (name, f'!f() {{ test "$1" = get && cat {shlex.quote(path)}; }}; f')]
        elif entry.account and entry.host in served:
            config.append((name, ""))
    keys = [(entry.host, entry.ssh) for entry in credentials if entry.ssh]
    for number, (_, key) in enumerate(keys):
        files[f"{SSH_KEY}_{number}"] = f"{key.private}\n"
    if keys:
        files[KNOWN_HOSTS] = "".join(f"{key.known_hosts}\n" for _, key in keys)
        files[SSH_CONFIG] = _ssh_config([host for host, _ in keys], directory)
    if not files:
        return None
    return GitFiles(files, tuple(config), f"ssh -F {directory}/{SSH_CONFIG}" if keys else None)


def _ssh_config(hosts: list[str], directory: str | Path) -> str:
    entries = (
        f"Host {urlsplit(f'ssh://{host}').hostname}\n  IdentityFile {directory}/{SSH_KEY}_{number}\n"
        for number, host in enumerate(hosts)
    )
    return "".join([*entries, _SSH_DEFAULTS.format(known_hosts=f"{directory}/{KNOWN_HOSTS}")])


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write the files, readable by their owner alone, into a new directory."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        handle = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)


@asynccontextmanager
async def written(credentials: list[HostCredential]) -> AsyncIterator[GitFiles | None]:
    """Have the files on disk for a call of git."""
    if not credentials:
        yield None
        return
    directory = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="r2d-git-")
    try:
        found = git_files(credentials, directory.name)
        if found:
            await asyncio.to_thread(write_files, Path(directory.name), found.files)
        yield found
    finally:
        await asyncio.shield(asyncio.to_thread(directory.cleanup))
