"""GitHub Apps of tenants: tokens for single repositories, which find and build what only the App can read."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rabbit2docker.consumer.credentials import GitCredentials, repository_path
from rabbit2docker.consumer.intake.worker import DEAD_LETTERED
from rabbit2docker.consumer.providers.catalog import connect_apps
from rabbit2docker.consumer.providers.repository_check import RepositoryCheck
from rabbit2docker.errors import CredentialsRefused, ProviderUnavailable
from rabbit2docker.settings import ProviderSettings, Settings, TenantSettings
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason, RejectReason
from tests.support.app_stage import Stage, build, github, server, session
from tests.support.fetch_bench import Bench
from tests.support.git_http import Handler, answer
from tests.support.github_app import APP_ID, INSTALLATION, OWNER, Enterprise, new_key
from tests.support.repositories import Repository

__all__ = ["github", "server", "session"]


@pytest.fixture
async def stage(github: Enterprise, session: aiohttp.ClientSession) -> Stage:
    return Stage(github, session)


@pytest.mark.parametrize("prefix", ["gh", "git"])
async def test_a_private_repository_is_resolved_by_branch_tag_and_short_commit_id(
    stage: Stage, github: Enterprise, prefix: str
) -> None:
    repository = github.repository("work")
    old = repository.head()
    repository.git("tag", "v1")
    new = repository.commit({"a.txt": "new"})
    for ref, commit in {"main": new, "v1": old, old[:9]: old}.items():
        found = await stage.resolve(prefix, github.url(repository), ref)
        assert (found.resolved_ref, found.is_private) == (commit, True), ref
    assert [token.repositories for token in github.tokens] == [{f"{OWNER}/{repository.name}"}]
    other = await stage.refusal(github.url(repository), "biology", prefix)
    assert other.reason in (RejectReason.REPOSITORY_NOT_FOUND, RejectReason.REPOSITORY_PRIVATE)


async def test_many_look_ups_at_once_share_a_token_until_it_is_about_to_expire(
    stage: Stage, github: Enterprise
) -> None:
    url = github.url(github.repository("work"))
    await asyncio.gather(*(stage.resolve("gh", url, "main") for _ in range(5)))
    stage.later = github.lifetime - 400
    await stage.resolve("gh", url, "main")
    assert len(github.tokens) == 1
    stage.later = github.lifetime - 200
    await stage.resolve("gh", url, "main")
    assert len(github.tokens) == 2


@pytest.mark.parametrize("prefix", ["gh", "git"])
async def test_a_token_that_was_withdrawn_is_replaced_at_once(
    stage: Stage, github: Enterprise, prefix: str
) -> None:
    url = github.url(github.repository("work"))
    await stage.resolve(prefix, url, "main")
    github.tokens.clear()
    assert (await stage.resolve(prefix, url, "main")).is_private
    assert len(github.tokens) == 1


async def test_what_is_public_needs_no_installation(stage: Stage, github: Enterprise) -> None:
    repository = github.repository("open", installed=False)
    github.public.add(f"{OWNER}/{repository.name}")
    for prefix in ("gh", "git"):
        found = await stage.resolve(prefix, github.url(repository), "main")
        assert (found.resolved_ref, found.is_private) == (repository.head(), False)
    assert github.tokens == []


def uninstall(github: Enterprise) -> None:
    github.installed.clear()


def suspend(github: Enterprise) -> None:
    github.suspended = True


def replace_key(github: Enterprise) -> None:
    new_key(github.key_file)


def break_key(github: Enterprise) -> None:
    github.key_file.write_text(
        "-----BEGIN RSA PRIVATE KEY-----\nnot-a-key-5d2e\n-----END RSA PRIVATE KEY-----\n"
    )


def withdraw_permission(github: Enterprise) -> None:
    del github.permissions["contents"]


def set_clock_back(github: Enterprise) -> None:
    github.clock = 3600


def set_clock_ahead(github: Enterprise) -> None:
    github.clock = -300


REFUSALS = {
    suspend: "is suspended. The operator, or the owner",
    replace_key: "refuses the private key of the GitHub App 4711",
    break_key: "cannot be used: it must be an RSA key",
    withdraw_permission: "must give the App the permission Contents: read",
    set_clock_back: "seconds behind that of",
    set_clock_ahead: "seconds ahead of that of",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
async def test_each_cause_of_a_refusal_is_named_for_the_operator(
    stage: Stage, github: Enterprise, spoil: Any
) -> None:
    url = github.url(github.repository("work"))
    spoil(github)
    for prefix in ("gh", "git"):
        error = await stage.refusal(url, prefix=prefix)
        assert isinstance(error, CredentialsRefused)
        assert (error.reason, error.retryable) == (RejectReason.CREDENTIALS_REFUSED, True)
        assert REFUSALS[spoil] in error.message
        assert not [secret for secret in [*github.secrets, "not-a-key-5d2e"] if secret in error.message]


async def test_a_repository_without_the_app_is_rejected_as_one_that_may_not_exist(
    stage: Stage, github: Enterprise
) -> None:
    uninstalled = github.url(github.repository("work"))
    missing = uninstalled.replace("work", "mistyped")
    uninstall(github)
    for url in (missing, uninstalled):
        for prefix in ("gh", "gh", "git"):
            error = await stage.refusal(url, prefix=prefix)
            # Not among the dead letters, which operators would have to look at for each wrong name.
            assert error.reason not in DEAD_LETTERED
            assert error.reason is RejectReason.REPOSITORY_PRIVATE
            assert f"is not installed on {repository_path(url)}" in error.message
            assert "Check owner and name" in error.message


async def test_an_app_that_does_not_exist_is_named(stage: Stage, github: Enterprise) -> None:
    url = github.url(github.repository("work"))
    settings = TenantSettings.model_validate(github.tenant(app_id=12345))
    stage.credentials._tenants["physics"] = settings
    assert "has no GitHub App 12345" in (await stage.refusal(url)).message


def limited(handler: Handler) -> bool:
    headers = {
        "X-RateLimit-Limit": "5000",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(time.time()) + 90),
    }
    handler.send(
        403, b'{"message": "API rate limit exceeded"}', headers | {"Content-Type": "application/json"}
    )
    return True


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answer(502, body=b"<html>Bad gateway</html>"), "answered with status 502"),
        (answer(200, body=b"<html>Hello</html>"), "not JSON"),
        (answer(200, body=b'{"id": "x"}'), "unknown form"),
        (answer(200, body=b'{"id": 1'), "not JSON"),
        (answer(404, body=b"<html>No</html>"), "not JSON"),
        (limited, "limits the requests of the GitHub App 4711"),
    ],
    ids=["502", "html", "other", "half", "html-404", "limit"],
)
async def test_a_host_that_answers_otherwise_is_waited_for(
    stage: Stage, github: Enterprise, fault: Any, words: str
) -> None:
    url = github.url(github.repository("work"))
    github.always = fault
    with pytest.raises(ProviderUnavailable, match=words) as caught:
        await stage.resolve("gh", url, "main")
    assert caught.value.retry_after is None or 60 < caught.value.retry_after <= 91
    github.always = None
    assert (await stage.resolve("gh", url, "main")).is_private


# -- builds


@pytest.fixture
def bench(tmp_path: Path, github: Enterprise) -> Bench:
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench", github.https)
    bench.environment["GIT_SSL_CAINFO"] = str(github.authority)
    return bench


def with_submodules(github: Enterprise) -> Repository:
    """Make a repository with a submodule that has another one, and a public one that the App is not installed on."""
    deep = github.repository("deep", {"deep.txt": "Deep."})
    inner = github.repository("inner", {"inner.txt": "Inside."})
    inner.add_submodule("below", f"../{deep.name}", deep.head())
    open_one = github.repository("open", {"open.txt": "Open."}, installed=False)
    github.public.add(f"{OWNER}/{open_one.name}")
    outer = github.repository("outer")
    outer.add_submodule("sub", f"../{inner.name}.git", inner.head())
    outer.add_submodule("open", github.url(open_one), open_one.head())
    return outer


async def test_a_build_reads_the_repository_and_its_submodules(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    outer = with_submodules(github)
    url = github.url(outer)
    access = await stage.for_build(url, outer.head(), bench.directory / "credentials")
    assert not [secret for secret in github.secrets if secret in json.dumps(access.instructions)]
    assert access.instructions["apps"][github.host]["expires_at"] > time.time() + 3000
    result = await build(bench, access, url, outer.head())
    assert result["reason"] == "ok", bench.texts()
    for path, text in {
        "sub/inner.txt": "Inside.",
        "sub/below/deep.txt": "Deep.",
        "open/open.txt": "Open.",
    }.items():
        assert (bench.tree / path).read_text() == text
    names = {name.partition("/")[2].partition("-")[0] for name in github.tokens[-1].repositories}
    assert names == {"outer", "inner", "deep"}
    shown = bench.log.read_text() + json.dumps(result) + (bench.directory / "environment").read_text()
    assert not [secret for secret in github.secrets if secret in shown]


async def test_a_build_gets_a_token_that_lasts(stage: Stage, github: Enterprise, tmp_path: Path) -> None:
    repository = github.repository("work")
    url = github.url(repository)
    await stage.resolve("gh", url, "main")
    stage.later = 1200.0
    await stage.resolve("gh", url, "main")
    assert len(github.tokens) == 1
    await stage.for_build(url, repository.head(), tmp_path)
    assert len(github.tokens) == 2


async def test_a_token_that_expires_before_the_fetch_is_followed_by_another_attempt(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    repository = github.repository("work")
    github.lifetime = -1.0
    access = await stage.for_build(github.url(repository), repository.head(), bench.directory / "credentials")
    result = await build(bench, access, github.url(repository), repository.head())
    assert result["reason"] == "fetch_interrupted"
    assert "the token of the GitHub App for this attempt has expired" in result["message"]


async def test_a_token_that_is_withdrawn_in_the_middle_is_the_operators_matter(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    repository = github.repository("work")
    access = await stage.for_build(github.url(repository), repository.head(), bench.directory / "credentials")
    github.tokens.clear()
    result = await build(bench, access, github.url(repository), repository.head())
    assert CATEGORY_OF[FailureReason(result["reason"])] == "operator"
    assert "refuses the credentials" in result["message"]


async def test_a_build_says_why_the_app_has_no_token(stage: Stage, github: Enterprise, bench: Bench) -> None:
    repository = github.repository("work")
    github.suspended = True
    access = await stage.for_build(github.url(repository), repository.head(), bench.directory / "credentials")
    result = await build(bench, access, github.url(repository), repository.head())
    assert (result["reason"], "is suspended" in result["message"]) == ("credentials_refused", True)


# -- what operators see


async def test_an_operator_sees_each_step(github: Enterprise, session: aiohttp.ClientSession) -> None:
    url = github.url(github.repository("work"))
    given = {
        "tenants": {"physics": github.tenant()},
        "providers": ProviderSettings(allow_private_addresses=True),
    }
    check = RepositoryCheck(session, Settings.model_validate(given), "physics")
    found = [step async for step in check.steps(url)]
    assert [(step.name, step.is_ok) for step in found] == [
        (name, True) for name in ("address", "host", "credentials", "token", "refs")
    ]
    assert f"the GitHub App {APP_ID} for {github.host}" in found[2].message
    assert f"Installation {INSTALLATION} of the App has the repository" in found[3].message
    assert "it is private" in found[4].message
    assert not [secret for secret in github.secrets if secret in repr(found)]
    github.suspended = True
    check = RepositoryCheck(session, Settings.model_validate(given), "physics")
    steps = {step.name: step async for step in check.steps(url)}
    assert (steps["token"].is_ok, "is suspended" in steps["token"].message) == (False, True)


async def test_a_token_is_shown_in_no_representation(stage: Stage, github: Enterprise) -> None:
    url = github.url(github.repository("work"))
    token = await stage.access.app_token(url)
    shown = repr(
        [token, await stage.access.for_url(url), await stage.access._app(*next(stage.access._for(url)))]
    )
    assert not [secret for secret in github.secrets if secret in shown]


@pytest.mark.parametrize(
    "given",
    [
        {"app_id": 1},
        {"app_key_file": "/key"},
        {"app_id": 1, "app_key_file": "/key", "token_file": "/token"},
        {"app_id": 1, "app_key_file": "/key", "user": "me"},
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="app_"):
        TenantSettings.model_validate({"git": {"github.com": given}})


async def test_only_tenants_with_an_app_load_what_it_needs(session: aiohttp.ClientSession) -> None:
    credentials = GitCredentials({"a": TenantSettings()})
    connect_apps(credentials, ProviderSettings(), session)
    assert credentials._apps is None
