"""Specs of gists resolve to exactly one version, or are rejected with the reason."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rabbit2docker.consumer.providers.gist import GistProvider
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.github import GIST, MAIN, PULL, TAGGED, FakeGitHub, sha


@pytest.fixture
async def fake() -> AsyncIterator[FakeGitHub]:
    fake = FakeGitHub()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


async def resolved(fake: FakeGitHub, spec: str, **changes: Any) -> Any:
    settings = ProviderSettings.model_validate({"github_api_url": str(fake.server.make_url("/")), **changes})
    async with aiohttp.ClientSession() as session:
        return await GistProvider(settings, session).resolve(spec)


@pytest.mark.parametrize(
    ("ref", "commit"),
    [
        ("", MAIN),
        ("/", MAIN),
        ("/HEAD", MAIN),
        ("/master", MAIN),
        ("/main", MAIN),
        (f"/{TAGGED}", TAGGED),
        (f"/{TAGGED[:7]}", TAGGED),
        (f"/{PULL}", PULL),
    ],
)
async def test_a_version_of_a_gist_resolves(fake: FakeGitHub, ref: str, commit: str) -> None:
    repository = await resolved(fake, f"ada/{GIST}{ref}")
    assert repository.resolved_ref == commit
    assert repository.repo_url == f"https://gist.github.com/ada/{GIST}.git"
    assert (repository.build_slug, repository.content_provider) == (GIST, "Git")


async def test_any_user_in_front_of_the_id_stands_for_the_owner(fake: FakeGitHub) -> None:
    assert (await resolved(fake, f"eve/{GIST}")).repo_url == f"https://gist.github.com/ada/{GIST}.git"
    fake.gist["owner"] = None
    assert (await resolved(fake, f"eve/{GIST}")).repo_url == f"https://gist.github.com/eve/{GIST}.git"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (f"ada/{GIST}/{sha(50)}", RejectReason.REF_NOT_FOUND),
        (f"ada/{GIST}/v1", RejectReason.REF_NOT_FOUND),
        ("ada/abcdef", RejectReason.REPOSITORY_NOT_FOUND),
        (GIST, RejectReason.INVALID_SPEC),
        (f"ada/{GIST}/a/b", RejectReason.INVALID_SPEC),
        ("ada/requirements", RejectReason.INVALID_SPEC),
        (f"../{GIST}", RejectReason.INVALID_SPEC),
        (f"ada/{GIST}/--x", RejectReason.REFUSED_URL),
    ],
)
async def test_an_unknown_gist_version_or_spec_is_rejected(
    fake: FakeGitHub, spec: str, reason: RejectReason
) -> None:
    with pytest.raises(RequestRejected) as caught:
        await resolved(fake, spec)
    assert caught.value.reason is reason


async def test_a_secret_gist_needs_the_operators_permission(fake: FakeGitHub) -> None:
    fake.gist["public"] = False
    with pytest.raises(
        RequestRejected, match="You seem to want to use a secret Gist, but do not have"
    ) as caught:
        await resolved(fake, f"ada/{GIST}")
    assert caught.value.reason is RejectReason.NOT_ALLOWED
    assert (await resolved(fake, f"ada/{GIST}", allow_secret_gists=True)).resolved_ref == MAIN


@pytest.mark.parametrize("history", [[], None, "x", [{}], [{"version": "--x"}], [7]])
async def test_a_gist_without_a_readable_history_is_waited_for(fake: FakeGitHub, history: object) -> None:
    fake.gist["history"] = history
    with pytest.raises(ProviderUnavailable, match="no versions"):
        await resolved(fake, f"ada/{GIST}")


async def test_a_gist_on_an_enterprise_server_has_its_own_host(fake: FakeGitHub) -> None:
    repository = await resolved(fake, f"ada/{GIST}", github_hostname="git.corp.example")
    assert repository.repo_url == f"https://gist.git.corp.example/ada/{GIST}.git"


async def test_half_a_response_is_waited_for(fake: FakeGitHub) -> None:
    fake.always = lambda: web.Response(text='{"public": true, "history": [')
    with pytest.raises(ProviderUnavailable, match="not JSON"):
        await resolved(fake, f"ada/{GIST}")
