"""Tokens of tenants in the APIs of GitHub and GitLab: for the tenant's look-ups alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from rabbit2docker.consumer.credentials import GitCredentials, TenantAccess
from rabbit2docker.consumer.providers.base import Provider
from rabbit2docker.consumer.providers.gh import GitHubProvider
from rabbit2docker.consumer.providers.gl import GitLabProvider
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings, TenantSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.github import MAIN, FakeGitHub
from tests.support.gitlab import PROJECT, FakeGitLab

TOKEN = "the-tenants-token"
SPECS = {"gh": "o/r/main", "gl": f"{quote(PROJECT, safe='')}/main"}


class Stage:
    """One host with its provider, and a tenant's access to it."""

    def __init__(self, kind: str, directory: Path, session: aiohttp.ClientSession) -> None:
        self.fake: FakeGitHub | FakeGitLab = FakeGitHub() if kind == "gh" else FakeGitLab()
        self._kind, self._session = kind, session
        self.token_file = directory / "token"
        self.token_file.write_text(TOKEN)
        host = "github.com" if kind == "gh" else "gitlab.com"
        tenant = {"git": {host: {"token_file": str(self.token_file)}}}
        self.access = GitCredentials({"a": TenantSettings.model_validate(tenant)}).of("a")

    async def start(self) -> None:
        await self.fake.server.start_server()
        base = str(self.fake.server.make_url("/"))
        settings: dict[str, Any] = {
            "gh": {"github_api_url": base, "github_token": "the-operators-token"},
            "gl": {"gitlab_api_url": f"{base}api/v4", "gitlab_token": "the-operators-token"},
        }
        make = GitHubProvider if self._kind == "gh" else GitLabProvider
        self.provider: Provider = make(ProviderSettings.model_validate(settings[self._kind]), self._session)

    async def refusal(self, access: TenantAccess) -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            await self.provider.resolve(SPECS[self._kind], access)
        return caught.value

    async def is_private(self, access: TenantAccess) -> bool:
        found = await self.provider.resolve(SPECS[self._kind], access)
        assert found.resolved_ref == MAIN
        return found.is_private


@pytest.fixture(params=SPECS)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with aiohttp.ClientSession() as session:
        stage = Stage(request.param, tmp_path, session)
        await stage.start()
        yield stage
        await stage.fake.server.close()


async def test_a_private_repository_is_found_by_its_tenant_alone(stage: Stage) -> None:
    stage.fake.private_to = {TOKEN}
    assert await stage.is_private(stage.access)
    for _ in range(2):  # also after the tenant's responses were cached
        error = await stage.refusal(TenantAccess())
        assert error.reason is RejectReason.REPOSITORY_NOT_FOUND
        assert await stage.is_private(stage.access)


async def test_a_public_repository_is_nobodys(stage: Stage) -> None:
    assert not await stage.is_private(stage.access)
    assert not await stage.is_private(TenantAccess())


async def test_an_expired_token_is_named_and_a_new_one_used_at_once(stage: Stage) -> None:
    stage.fake.private_to = {TOKEN}
    stage.token_file.write_text("expired-token")
    error = await stage.refusal(stage.access)
    assert error.reason is RejectReason.CREDENTIALS_REFUSED
    assert "it has expired or was withdrawn" in error.message
    assert "expired-token" not in error.message
    stage.token_file.write_text(TOKEN)
    assert await stage.is_private(stage.access)
