"""A service with a tenant that has a GitHub App, and builds with the tokens that it gets."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from rabbit2docker.consumer.credentials import GitCredentials, TenantAccess
from rabbit2docker.consumer.executors.fetch_access import FetchAccess, fetch_files
from rabbit2docker.consumer.git_files import write_files
from rabbit2docker.consumer.providers.base import Repository as Resolved
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.github_app import InstallationTokens
from rabbit2docker.consumer.providers.http import JudgedResolver
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings, TenantSettings
from tests.support.fetch_bench import Bench
from tests.support.github_app import Enterprise, enterprise
from tests.support.records import a_spec


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enterprise]:
    with enterprise(tmp_path_factory.mktemp("app") / "github") as server:
        yield server


@pytest.fixture
def github(server: Enterprise, monkeypatch: pytest.MonkeyPatch) -> Iterator[Enterprise]:
    """The server, empty, which git trusts; what a test changes about it is undone."""
    monkeypatch.setenv("GIT_SSL_CAINFO", str(server.authority))
    kept = {**vars(server), "permissions": dict(server.permissions)}
    key = server.key_file.read_bytes()
    for content in (
        server.installed,
        server.public,
        server.suspended_accounts,
        server.moved,
        server.tokens,
        server.shown,
    ):
        content.clear()
    server.https.requests.clear()
    try:
        yield server
    finally:
        vars(server).update(kept)
        server.key_file.write_bytes(key)


@pytest.fixture
async def session(github: Enterprise) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that trusts the server."""
    trusted = ssl.create_default_context(cafile=github.authority)
    connector = aiohttp.TCPConnector(ssl=trusted, resolver=JudgedResolver(), use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


class Stage:
    """A service with a tenant that has the App, and the time by which it keeps tokens."""

    def __init__(self, github: Enterprise, session: aiohttp.ClientSession, **login: Any) -> None:
        self.github = github
        self.settings = ProviderSettings(allow_private_addresses=True, github_hostname=github.host)
        self.credentials = GitCredentials(
            {"physics": TenantSettings.model_validate(github.tenant(**login)), "biology": TenantSettings()}
        )
        self.later = 0.0
        tokens = InstallationTokens(self.settings, session, now=lambda: time.time() + self.later)
        self.credentials.use_apps(tokens)
        self.providers = Providers(self.settings, session, None, self.credentials)

    @property
    def access(self) -> TenantAccess:
        return self.credentials.of("physics")

    async def resolve(self, prefix: str, url: str, ref: str, tenant: str = "physics") -> Resolved:
        start = quote(url, safe="") if prefix == "git" else "/".join(url.split("/")[-2:])
        spec = f"{start}/{ref}"
        return await self.providers.get(prefix).resolve(spec, self.credentials.of(tenant))

    async def refusal(self, url: str, tenant: str = "physics", prefix: str = "gh") -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            await self.resolve(prefix, url, "main", tenant)
        return caught.value

    async def for_build(self, url: str, ref: str, directory: Path) -> FetchAccess:
        spec = a_spec().model_copy(update={"tenant": "physics", "repo_url": url, "resolved_ref": ref})
        found = await fetch_files(self.credentials, spec, directory)
        assert found
        return found


async def build(bench: Bench, access: FetchAccess, url: str, ref: str) -> dict[str, Any]:
    """Run the builder with the credentials of an attempt."""
    directory = Path(access.instructions["directory"])
    await asyncio.to_thread(write_files, directory, access.files)
    return await asyncio.to_thread(bench.run, url, ref, git=access.instructions)
