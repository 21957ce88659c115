"""Specs of GitHub repositories resolve to exactly one commit, or are rejected with the reason."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rabbit2docker import metrics
from rabbit2docker.consumer.providers.gh import GitHubProvider
from rabbit2docker.errors import ProviderUnavailable, RequestRejected, TransientError
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.github import FOO_MAIN, MAIN, PULL, SAME_BRANCH, SAME_TAG, TAGGED, FakeGitHub, sha


@pytest.fixture
async def fake() -> AsyncIterator[FakeGitHub]:
    fake = FakeGitHub()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


@pytest.fixture
async def provider(fake: FakeGitHub) -> AsyncIterator[GitHubProvider]:
    async with aiohttp.ClientSession() as session:
        yield GitHubProvider(settings(fake), session)


def settings(fake: FakeGitHub, **changes: Any) -> ProviderSettings:
    return ProviderSettings.model_validate({"github_api_url": str(fake.server.make_url("/")), **changes})


async def refusal(provider: GitHubProvider, spec: str) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await provider.resolve(spec)
    return caught.value


@pytest.mark.parametrize(
    ("ref", "commit"),
    [
        ("main", MAIN),
        ("foo/main", FOO_MAIN),
        ("foo%2Fmain", FOO_MAIN),
        ("main/", MAIN),
        ("HEAD", MAIN),
        ("v1", TAGGED),
        ("v1.0", MAIN),
        ("signed-twice", TAGGED),
        ("same", SAME_BRANCH),
        ("tags/same", SAME_TAG),
        ("refs/tags/same", SAME_TAG),
        ("heads/main", MAIN),
        ("refs/heads/main", MAIN),
        ("refs/pull/7/head", PULL),
        ("pull/7/head", PULL),
        (TAGGED, TAGGED),
        (TAGGED.upper(), TAGGED),
        (PULL[:39], PULL),
        ("master", MAIN),
    ],
)
async def test_a_ref_resolves_to_its_commit(provider: GitHubProvider, ref: str, commit: str) -> None:
    repository = await provider.resolve(f"o/r/{ref}")
    assert repository.resolved_ref == commit


@pytest.mark.parametrize(
    "ref",
    ["mai", "foo", "v", "FOO/MAIN", f"{MAIN}0", f"{MAIN}{MAIN[:24]}", sha(50), "beef", "pull/8/head", "tree"],
)
async def test_an_incomplete_or_unknown_ref_is_not_found(provider: GitHubProvider, ref: str) -> None:
    error = await refusal(provider, f"o/r/{ref}")
    assert error.reason is RejectReason.REF_NOT_FOUND
    assert "o/r" in error.message


async def test_a_ref_in_an_empty_repository_is_not_found(fake: FakeGitHub, provider: GitHubProvider) -> None:
    fake.head = None
    assert (await refusal(provider, "o/r/HEAD")).reason is RejectReason.REF_NOT_FOUND


@pytest.mark.parametrize("ref", ["main", "HEAD", MAIN, "abcdef0"])
async def test_a_missing_repository_is_distinguished_from_a_missing_ref(
    provider: GitHubProvider, ref: str
) -> None:
    error = await refusal(provider, f"o2/r/{ref}")
    assert error.reason is RejectReason.REPOSITORY_NOT_FOUND
    assert "private" in error.message


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ("o/r", RejectReason.INVALID_SPEC, 'Did you mean "o/r/HEAD"?'),
        ("o/r/", RejectReason.INVALID_SPEC, 'Did you mean "o/r/HEAD"?'),
        ("o", RejectReason.INVALID_SPEC, "owner/repository/ref"),
        ("short/HEAD", RejectReason.INVALID_SPEC, "The owner is missing"),
        ("", RejectReason.INVALID_SPEC, "owner/repository/ref"),
        ("../r/main", RejectReason.INVALID_SPEC, "'..'"),
        ("o/.git/main", RejectReason.INVALID_SPEC, "''"),
        ("o/r?x/main", RejectReason.INVALID_SPEC, "'r?x'"),
        ("o/r/a..b", RejectReason.INVALID_SPEC, "cannot be a branch"),
        ("o/r/HEAD~1", RejectReason.INVALID_SPEC, "cannot be a branch"),
        ("o/r/a%0Ab", RejectReason.INVALID_SPEC, "cannot be a branch"),
        ("o/r/../../x", RejectReason.INVALID_SPEC, "cannot be a branch"),
        ("o/r/--upload-pack=id", RejectReason.REFUSED_URL, "option"),
    ],
)
def test_an_invalid_spec_is_rejected_without_a_request_to_github(
    spec: str, reason: RejectReason, message: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        GitHubProvider(ProviderSettings()).check(spec)
    assert caught.value.reason is reason
    assert message in caught.value.message


def test_a_github_repository_is_named_as_in_binderhub() -> None:
    repository = GitHubProvider(ProviderSettings()).pin("Jupyterhub/zero-to.git/0.9.1", MAIN)
    assert repository.repo_url == "https://github.com/Jupyterhub/zero-to"
    assert repository.build_slug == "Jupyterhub-zero-to"
    assert (repository.spec, repository.resolved_ref) == ("Jupyterhub/zero-to.git/0.9.1", MAIN)
    assert (repository.content_provider, repository.display_name) == ("Git", "Jupyterhub/zero-to")


def test_repositories_of_a_github_enterprise_server_have_its_address() -> None:
    provider = GitHubProvider(ProviderSettings(github_hostname="git.corp.example"))
    assert provider.pin("o/r/HEAD", MAIN).repo_url == "https://git.corp.example/o/r"


@pytest.mark.parametrize("spec", ["short/HEAD", "HEAD", "o/r/none/HEAD", "o/empty/HEAD", "o/r/none"])
async def test_advice_never_repeats_a_suffix(fake: FakeGitHub, provider: GitHubProvider, spec: str) -> None:
    fake.head = None
    message = (await refusal(provider, spec)).message
    assert "HEAD/HEAD" not in message
    assert message.count("HEAD") <= 2
    if spec == "o/r/none/HEAD":
        assert "Did you mean 'none'?" in message


async def test_the_default_branch_in_the_place_of_master_is_said(provider: GitHubProvider) -> None:
    repository = await provider.resolve("o/r/master")
    assert repository.resolved_ref == MAIN
    assert repository.notice == "o/r has no branch 'master': its default branch is used instead."
    assert (await provider.resolve("o/r/main")).notice is None
    assert (await provider.resolve("o/r/HEAD")).notice is None


async def test_a_repeated_request_is_revalidated_and_costs_no_rate_limit(
    fake: FakeGitHub, provider: GitHubProvider
) -> None:
    for _ in range(3):
        assert (await provider.resolve("o/r/main")).resolved_ref == MAIN
    assert (len(fake.requests), fake.not_modified) == (3, 2)


async def test_a_moved_branch_is_seen_at_once(fake: FakeGitHub, provider: GitHubProvider) -> None:
    await provider.resolve("o/r/main")
    fake.refs["refs/heads/main"] = ("commit", PULL)
    assert (await provider.resolve("o/r/main")).resolved_ref == PULL


async def test_the_token_is_sent_and_never_shown(fake: FakeGitHub) -> None:
    async with aiohttp.ClientSession() as session:
        provider = GitHubProvider(settings(fake, github_token="s3cret"), session)
        await provider.resolve("o/r/main")
        assert fake.authorization == {"Bearer s3cret"}
        fake.always = lambda: web.json_response({"message": "Bad credentials"}, status=401)
        with pytest.raises(ProviderUnavailable, match="rejects the token") as caught:
            await provider.resolve("o/r/main")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "in 600"}, 590, 600),
        (429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "in 600"}, 590, 600),
        (403, {"Retry-After": "7", "X-RateLimit-Remaining": "58"}, 7, 7),
        (429, {}, 60, 60),
    ],
)
async def test_a_rate_limit_carries_the_time_that_github_asks_for(
    fake: FakeGitHub,
    provider: GitHubProvider,
    status: int,
    headers: dict[str, str],
    least: float,
    most: float,
) -> None:
    sent = {name: value.replace("in 600", str(int(time.time()) + 600)) for name, value in headers.items()}
    fake.always = lambda: web.json_response({"message": "limit"}, status=status, headers=sent)
    with pytest.raises(ProviderUnavailable, match="github_token") as caught:
        await provider.resolve("o/r/main")
    assert caught.value.retry_after is not None
    assert least <= caught.value.retry_after <= most
    with pytest.raises(TransientError, match="limits this service's requests") as again:
        await provider.resolve("o/r/other")
    assert again.value.retry_after is not None
    assert least - 5 <= again.value.retry_after <= most
    assert len(fake.requests) == 1  # GitHub is not asked again before the time it named


@pytest.mark.parametrize("status", [403, 451])
async def test_the_rejection_of_a_blocked_repository_quotes_github(
    fake: FakeGitHub, provider: GitHubProvider, status: int
) -> None:
    fake.always = lambda: web.json_response({"message": "Repository access blocked"}, status=status)
    error = await refusal(provider, "o/r/main")
    assert error.reason is RejectReason.REPOSITORY_PRIVATE
    assert "Repository access blocked" in error.message


@pytest.mark.parametrize(
    "response",
    [
        lambda: web.Response(status=502, text="<html>"),
        lambda: web.Response(status=200, text="<html>"),
        lambda: web.json_response([{"ref": "refs/heads/main", "object": {"type": "commit", "sha": "--x"}}]),
        lambda: web.json_response([{"ref": "refs/heads/main", "object": "nonsense"}]),
    ],
)
async def test_server_errors_and_malformed_responses_are_transient(
    fake: FakeGitHub, provider: GitHubProvider, response: Callable[[], web.Response]
) -> None:
    fake.always = response
    with pytest.raises(ProviderUnavailable):
        await provider.resolve("o/r/main")


async def test_an_unreachable_github_is_transient(fake: FakeGitHub, provider: GitHubProvider) -> None:
    await fake.server.close()
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        await provider.resolve("o/r/main")


async def test_a_renamed_repository_is_pinned_to_where_it_went(
    fake: FakeGitHub, provider: GitHubProvider
) -> None:
    fake.old_names = {"old"}
    repository = await provider.resolve("old/r/main")
    assert (repository.resolved_ref, repository.repo_url) == (MAIN, "https://github.com/o/r")
    assert repository.build_slug == "old-r", "an image of BinderHub's is found by the old name"
    assert repository.notice == "old/r has moved to o/r, which is built."
    again = await provider.resolve("old/r/master")
    assert again.repo_url == "https://github.com/o/r", "cached responses are redirected, too"
    assert again.notice
    assert "default branch" in again.notice
    fake.old_names = set()
    fake.refs["refs/heads/main"] = ("commit", PULL)
    with pytest.raises(RequestRejected):
        await provider.resolve("old/r/main")


async def test_a_redirect_into_the_network_is_refused(fake: FakeGitHub) -> None:
    where = {"Location": "http://169.254.169.254/latest/meta-data/"}
    fake.always = lambda: web.Response(status=301, headers=where)
    async with aiohttp.ClientSession() as session:
        provider = GitHubProvider(settings(fake, github_token="s3cret"), session)
        error = await refusal(provider, "o/r/main")
    assert error.reason is RejectReason.REFUSED_URL
    assert "redirects elsewhere" in error.message
    assert "169.254.169.254" in error.message


async def test_a_used_up_limit_is_waited_for_before_the_refusal(
    fake: FakeGitHub, provider: GitHubProvider
) -> None:
    spent = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 600)}
    fake.always = lambda: web.Response(text=MAIN, headers=spent)
    assert (await provider.resolve("o/r/HEAD")).resolved_ref == MAIN
    with pytest.raises(ProviderUnavailable, match=r"until \d\d:\d\d UTC") as caught:
        await provider.resolve("o/r/HEAD")
    assert caught.value.retry_after is not None
    assert 590 <= caught.value.retry_after <= 600
    assert len(fake.requests) == 1


@pytest.mark.parametrize(("token", "credential"), [(None, "none"), ("s3cret", "token")])
async def test_what_is_left_of_the_limit_is_a_metric_of_the_credential(
    fake: FakeGitHub, token: str | None, credential: str
) -> None:
    left = 40 if token is None else 4000
    fake.always = lambda: web.Response(text=MAIN, headers={"X-RateLimit-Remaining": str(left)})
    async with aiohttp.ClientSession() as session:
        await GitHubProvider(settings(fake, github_token=token), session).resolve("o/r/HEAD")
    host = settings(fake).github_hostname
    labels = {"provider": "gh", "host": host, "credential": credential}
    assert metrics.REGISTRY.get_sample_value("rabbit2docker_host_requests_left", labels) == left
