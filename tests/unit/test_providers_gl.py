"""Specs of GitLab projects resolve to exactly one commit, or are rejected with the reason."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from rabbit2docker.consumer.providers.gl import GitLabProvider
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.github import FOO_MAIN, MAIN, PULL, SAME_BRANCH, SAME_TAG, TAGGED, sha
from tests.support.gitlab import PROJECT, FakeGitLab

ESCAPED = quote(PROJECT, safe="")


@pytest.fixture
async def fake() -> AsyncIterator[FakeGitLab]:
    fake = FakeGitLab()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


@pytest.fixture
async def provider(fake: FakeGitLab) -> AsyncIterator[GitLabProvider]:
    async with aiohttp.ClientSession() as session:
        yield GitLabProvider(settings(fake), session)


def settings(fake: FakeGitLab, **changes: Any) -> ProviderSettings:
    return ProviderSettings.model_validate(
        {"gitlab_api_url": str(fake.server.make_url("/api/v4")), **changes}
    )


async def refusal(provider: GitLabProvider, spec: str) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await provider.resolve(spec)
    return caught.value


@pytest.mark.parametrize(
    ("ref", "commit"),
    [
        ("main", MAIN),
        ("feature%2Fx", FOO_MAIN),
        ("feature/x", FOO_MAIN),
        ("HEAD", MAIN),
        ("v1", TAGGED),
        ("refs/tags/v1", TAGGED),
        ("same", SAME_BRANCH),
        ("refs%2Ftags%2Fsame", SAME_TAG),
        ("beef", PULL),
        ("refs/merge-requests/7/head", PULL),
        ("merge-requests/7/head", PULL),
        (TAGGED, TAGGED),
        (TAGGED.upper(), TAGGED),
        (TAGGED[:8], TAGGED),
        ("master", MAIN),
    ],
)
async def test_a_ref_resolves_to_its_commit(provider: GitLabProvider, ref: str, commit: str) -> None:
    repository = await provider.resolve(f"{ESCAPED}/{ref}")
    assert repository.resolved_ref == commit
    assert repository.repo_url == f"https://gitlab.com/{PROJECT}.git"
    assert bool(repository.notice) == (ref == "master")


@pytest.mark.parametrize("ref", ["mai", "v2", sha(50), "abcdef", "refs/merge-requests/8/head", "refs/x/y"])
async def test_an_unknown_ref_is_not_taken_for_an_unknown_project(provider: GitLabProvider, ref: str) -> None:
    assert (await refusal(provider, f"{ESCAPED}/{ref}")).reason is RejectReason.REF_NOT_FOUND
    missing = await refusal(provider, f"group%2Fother/{ref}")
    assert missing.reason is RejectReason.REPOSITORY_NOT_FOUND
    assert "private" in missing.message


async def test_an_empty_project_has_no_version(fake: FakeGitLab, provider: GitLabProvider) -> None:
    fake.head = None
    error = await refusal(provider, f"{ESCAPED}/HEAD")
    assert error.reason is RejectReason.REF_NOT_FOUND
    assert "empty" in error.message


async def test_a_branch_named_like_a_full_commit_is_not_that_commit(
    fake: FakeGitLab, provider: GitLabProvider
) -> None:
    fake.branches[sha(77)] = MAIN
    assert (await refusal(provider, f"{ESCAPED}/{sha(77)}")).reason is RejectReason.REF_NOT_FOUND


async def test_a_renamed_project_is_pinned_to_where_it_went(
    fake: FakeGitLab, provider: GitLabProvider
) -> None:
    fake.old_names = {"old/project"}
    repository = await provider.resolve("old%2Fproject/main")
    assert repository.repo_url == f"https://gitlab.com/{PROJECT}.git"
    assert repository.build_slug == "old-project"
    assert repository.notice == f"old/project has moved to {PROJECT}, which is built."


async def test_the_token_goes_to_gitlab_in_a_header_and_never_into_messages(fake: FakeGitLab) -> None:
    async with aiohttp.ClientSession() as session:
        provider = GitLabProvider(settings(fake, gitlab_token="s3cret"), session)
        await provider.resolve(f"{ESCAPED}/main")
        assert fake.tokens == {"s3cret"}
        assert not any("s3cret" in path for path in fake.requests)
        fake.always = lambda: web.json_response({"message": "401 Unauthorized"}, status=401)
        with pytest.raises(
            ProviderUnavailable, match=r"rejects the token in providers\.gitlab_token"
        ) as caught:
            await provider.resolve(f"{ESCAPED}/main")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "response",
    [
        lambda: web.Response(status=502, text="<html>"),
        lambda: web.Response(text="<html>sign in</html>"),
        lambda: web.Response(text='{"id": "4'),
        lambda: web.json_response({"commit": {"id": "--upload-pack"}}),
        lambda: web.json_response([]),
        lambda: web.Response(status=429, headers={"RateLimit-Remaining": "0", "RateLimit-Reset": "90"}),
    ],
)
async def test_a_bad_day_of_the_host_is_waited_for(
    fake: FakeGitLab, provider: GitLabProvider, response: Callable[[], web.Response]
) -> None:
    fake.always = response
    with pytest.raises(ProviderUnavailable) as caught:
        await provider.resolve(f"{ESCAPED}/main")
    if response().status == 429:
        assert caught.value.retry_after == pytest.approx(90, abs=5)
        assert "gitlab.com limits this service's requests until" in caught.value.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("group%2Fproject", "An unresolved ref is required"),
        ("group%2Fproject/", "An unresolved ref is required"),
        ("group/project/main", 'Did you mean "group%2Fproject/main"?'),
        ("project/main", "its group or user is missing"),
        ("group%2F..%2Fx/main", "'..'"),
        ("group%2Fa b/main", "'a b'"),
        ("group%2Fproject/a..b", "cannot be a branch"),
    ],
)
def test_an_invalid_spec_is_rejected_without_a_request(spec: str, message: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        GitLabProvider(ProviderSettings()).check(spec)
    assert caught.value.reason is RejectReason.INVALID_SPEC
    assert message in caught.value.message


def test_projects_of_another_server_have_its_address() -> None:
    provider = GitLabProvider(ProviderSettings(gitlab_hostname="git.corp.example"))
    assert provider.pin("a%2Fb/HEAD", MAIN).repo_url == "https://git.corp.example/a/b.git"
