"""Credentials for registries, from the same docker `config.json` that the builder's `docker push` reads.

The precedence is that of docker's command line (cli/config): a helper for the registry, then the general store, then
`auths`; where a helper is set, `auths` is not read.
"""

import asyncio
import base64
import binascii
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rabbit2docker.errors import RegistryUnavailable
from rabbit2docker.registry_urls import DOCKER_HUB_NAMES
from rabbit2docker.settings import DockerSettings

HELPER_SECONDS: Final = 15.0

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for a registry.

    `identity_token` replaces user and password; `registry_token` replaces the whole token exchange.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class DockerConfig:
    """One `config.json`, read for each lookup, because mounted Secrets change."""

    def __init__(self, settings: DockerSettings) -> None:
        """Use the directory of the settings, else `$DOCKER_CONFIG`, else `~/.docker`."""
        directory = settings.config or os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()
        self._path = Path(directory) / "config.json"

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the credentials for a registry host such as `quay.io` or `127.0.0.1:5000`, None if there are none.

        Raises RegistryUnavailable when the file cannot be read or a credential helper fails: without
        credentials a private image would look absent.
        """
        config = await self._read()
        key = _key(registry)
        if helper := _helper(config, key):
            return await self._run_helper(helper, key)
        entries = config.get("auths")
        entry = _entry(entries, key) if isinstance(entries, dict) else None
        return self._decoded(entry, registry) if isinstance(entry, dict) else None

    async def _read(self) -> dict[str, Any]:
        try:
            content = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        try:
            config = json.loads(content)
        except ValueError as error:
            raise self._unreadable("it is not JSON") from error
        if not isinstance(config, dict):
            raise self._unreadable("it is not a JSON object")
        return config

    def _decoded(self, entry: dict[str, Any], registry: str) -> Credentials | None:
        try:
            decoded = base64.b64decode(entry.get("auth") or "", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError) as error:
            raise self._unreadable(f"`auth` of {registry} is not base64") from error
        username, _, password = decoded.partition(":")
        found = Credentials(
            username=username or str(entry.get("username") or ""),
            password=password.rstrip("\0") or str(entry.get("password") or ""),
            identity_token=str(entry.get("identitytoken") or ""),
            registry_token=str(entry.get("registrytoken") or ""),
        )
        return found if found != Credentials() else None

    def _unreadable(self, reason: str) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"The docker configuration {self._path} cannot be read: {reason}. The operator must fix it."
        )

    async def _run_helper(self, helper: str, key: str) -> Credentials | None:
        """Run `docker-credential-<helper> get` (protocol of github.com/docker/docker-credential-helpers)."""
        name = f"docker-credential-{helper}"
        if not _HELPER.fullmatch(helper):
            raise self._unreadable(f"{helper!r} is not the name of a credential helper")
        code, output = await _run(name, key)
        text = output.decode(errors="replace").strip()
        if code != 0:
            if "credentials not found" in text.lower():
                return None
            raise RegistryUnavailable(f"{name} failed to return credentials for {key}: {text[-300:]}")
        try:
            answer = json.loads(text)
            username, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryUnavailable(f"{name} returned invalid credentials for {key}.") from error
        if username == _TOKEN_USER:
            return Credentials(identity_token=secret)
        return Credentials(username, secret)


async def _run(program: str, server: str) -> tuple[int, bytes]:
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise RegistryUnavailable(
            f"The docker configuration names {program}, which cannot be started: {error.strerror}."
        ) from error
    try:
        async with asyncio.timeout(HELPER_SECONDS):
            output, _ = await process.communicate(server.encode())
    except TimeoutError as error:
        raise RegistryUnavailable(f"{program} did not answer within {HELPER_SECONDS:.0f} seconds.") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, output


def _key(registry: str) -> str:
    return _DOCKER_HUB_KEY if registry.lower() in DOCKER_HUB_NAMES else registry


def _helper(config: dict[str, Any], key: str) -> str:
    helpers = config.get("credHelpers")
    own = helpers.get(key) or helpers.get(_host(key)) if isinstance(helpers, dict) else None
    return str(own or config.get("credsStore") or "")


def _entry(entries: dict[str, Any], key: str) -> object:
    if key in entries:
        return entries[key]
    return next((entry for name, entry in entries.items() if _host(name) == _host(key)), None)


def _host(key: str) -> str:
    """Return the host of a key, which is `host`, `host:port`, or an old address with scheme and path."""
    host = key.partition("://")[2] or key
    host = host.partition("/")[0].lower()
    return "index.docker.io" if host in DOCKER_HUB_NAMES else host
