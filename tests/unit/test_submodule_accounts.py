"""Private submodules in other accounts: tokens of a GitHub App for each, which reach repositories of that account alone."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from rabbit2docker.consumer.executors.kubernetes.manifest import credentials_secret
from rabbit2docker.consumer.providers.repository_check import RepositoryCheck
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import ProviderSettings, Settings, TenantSettings
from tests.support.app_stage import Stage, build, github, server, session
from tests.support.fetch_bench import Bench
from tests.support.git_http import answer, redirect
from tests.support.git_lfs import ATTRIBUTES, LfsServer
from tests.support.github_app import INSTALLATION, OWNER, Enterprise
from tests.support.records import a_spec
from tests.support.repositories import Repository

__all__ = ["github", "server", "session"]

DATA = "acme-data"
"""An account whose name begins with that of OWNER."""
PERSON = "lab-person"
OTHER = "other"
"""An account that no setting names."""
ACCOUNTS = ["Acme-Data", PERSON]


@pytest.fixture
async def stage(github: Enterprise, session: aiohttp.ClientSession) -> Stage:
    return Stage(github, session, submodule_accounts=ACCOUNTS)


@pytest.fixture
def bench(tmp_path: Path, github: Enterprise) -> Bench:
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench", github.https)
    bench.environment["GIT_SSL_CAINFO"] = str(github.authority)
    return bench


async def fetched(stage: Stage, bench: Bench, url: str, ref: str) -> dict[str, Any]:
    """Mint tokens and build; nothing that is left has any of them."""
    access = await stage.for_build(url, ref, bench.directory / "credentials")
    result = await build(bench, access, url, ref)
    shown = bench.log.read_text() + json.dumps([result, access.instructions])
    if (bench.directory / "environment").exists():
        shown += (bench.directory / "environment").read_text()
    assert not [secret for secret in stage.github.secrets if secret in shown]
    return result


def outer_of(github: Enterprise, account: str, inner: Repository, **options: Any) -> Repository:
    """Make a repository of OWNER whose submodule `sub` is in an account."""
    outer = github.repository("outer", **options)
    outer.add_submodule("sub", github.url(inner, account), inner.head())
    return outer


async def test_private_submodules_of_listed_accounts_are_fetched_each_with_its_own_token(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    own = github.repository("own", {"own.txt": "Own."})
    person = github.repository("person", {"person.txt": "A person's."}, account=PERSON)
    data = github.repository("data", {"data.txt": "Data."}, account=DATA)
    data.add_submodule("below", github.url(person, PERSON), person.head())
    # Hosts do not distinguish upper and lower case, git does.
    outer = outer_of(github, "ACME-data", data)
    outer.add_submodule("own", f"../{own.name}", own.head())
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "ok", bench.texts()
    for path, text in {
        "sub/data.txt": "Data.",
        "sub/below/person.txt": "A person's.",
        "own/own.txt": "Own.",
    }.items():
        assert (bench.tree / path).read_text() == text
    senders = {made.name: github.accounts_of_tokens_for(made) for made in (outer, own, data, person)}
    assert senders == {outer.name: {OWNER}, own.name: {OWNER}, data.name: {DATA}, person.name: {PERSON}}
    assert not [
        token for token in github.tokens if len({path.split("/")[0] for path in token.repositories}) > 1
    ]


async def test_submodules_of_accounts_that_are_not_listed_get_no_token_of_theirs(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    inner = github.repository("inner", account=OTHER)
    outer = outer_of(github, OTHER, inner)
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "credentials_refused"
    assert {path for token in github.tokens for path in token.repositories} == {f"{OWNER}/{outer.name}"}


async def test_a_public_repository_without_the_app_has_private_submodules_of_listed_accounts(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    data = github.repository("data", {"data.txt": "Data."}, account=DATA)
    outer = outer_of(github, DATA, data, installed=False)
    github.public.add(f"{OWNER}/{outer.name}")
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "ok", bench.texts()
    assert (bench.tree / "sub" / "data.txt").read_text() == "Data."
    assert github.accounts_of_tokens_for(data) == {DATA}


async def test_a_listed_repository_of_its_own_account_keeps_the_token_of_its_account(
    github: Enterprise, session: aiohttp.ClientSession, bench: Bench
) -> None:
    stage = Stage(github, session, submodule_accounts=[OWNER])
    inner = github.repository("inner", {"inner.txt": "Inside."})
    outer = outer_of(github, OWNER, inner)
    access = await stage.for_build(github.url(outer), outer.head(), bench.directory / "credentials")
    assert list(access.files) == ["login_0"]
    assert list(access.instructions["apps"]) == [github.host]
    assert (await build(bench, access, github.url(outer), outer.head()))["reason"] == "ok", bench.texts()


def uninstall(github: Enterprise) -> None:
    github.installed = {path for path in github.installed if not path.startswith(f"{DATA}/")}


def suspend(github: Enterprise) -> None:
    github.suspended_accounts.add(DATA)


REFUSALS: dict[Callable[[Enterprise], None], str] = {
    uninstall: f"is not installed on {DATA}/",
    suspend: "is suspended",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
async def test_a_private_submodule_of_an_account_without_a_token_is_named(
    stage: Stage, github: Enterprise, bench: Bench, spoil: Callable[[Enterprise], None]
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)
    spoil(github)
    with capture_logs() as logs:
        result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "repository_private"
    assert "The submodule sub (" in result["message"]
    assert f"no token for the account {DATA}" in result["message"]
    assert REFUSALS[spoil] in result["message"]
    assert github.accounts_of_tokens_for(data) == set()
    [warning] = [entry for entry in logs if entry["event"] == "submodule account skipped"]
    assert (warning["log_level"], warning["account"]) == ("warning", DATA)
    assert REFUSALS[spoil] in warning["error"]


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
async def test_a_public_submodule_of_an_account_without_a_token_is_fetched(
    stage: Stage, github: Enterprise, bench: Bench, spoil: Callable[[Enterprise], None]
) -> None:
    data = github.repository("data", {"data.txt": "Data."}, account=DATA)
    person = github.repository("person", {"person.txt": "A person's."}, account=PERSON)
    outer = outer_of(github, DATA, data)
    outer.add_submodule("more", github.url(person, PERSON), person.head())
    spoil(github)
    github.public.add(f"{DATA}/{data.name}")
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "ok", bench.texts()
    assert (bench.tree / "sub" / "data.txt").read_text() == "Data."
    assert github.accounts_of_tokens_for(person) == {PERSON}


async def test_a_repository_that_moved_from_a_listed_account_to_another_gets_no_token(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    data = github.repository("data", account=DATA, installed=False)
    github.moved[f"{DATA}/{data.name}"] = f"{OTHER}/{data.name}"
    github.installed.add(f"{OTHER}/{data.name}")
    outer = outer_of(github, DATA, data)
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert result["reason"] == "repository_private"
    assert f"belongs to the account {OTHER}" in result["message"]
    assert github.accounts_of_tokens_for(data) == set()


async def test_a_host_that_does_not_answer_for_an_account_is_waited_for(
    stage: Stage, github: Enterprise, tmp_path: Path
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)
    github.always = answer(502, path=f"/api/v3/repos/{DATA}")
    with pytest.raises(ExecutorUnavailable, match="answered with status 502"):
        await stage.for_build(github.url(outer), outer.head(), tmp_path)


async def test_builds_share_the_tokens_of_accounts_while_they_last_for_a_build(
    stage: Stage, github: Enterprise, tmp_path: Path
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)

    async def minted() -> int:
        before = len(github.tokens)
        access = await stage.for_build(github.url(outer), outer.head(), tmp_path)
        about = access.instructions["apps"][f"{github.host}/{DATA}"]
        assert about["expires_at"] - stage.later - time.time() > 3000
        return len([token for token in github.tokens[before:] if f"{DATA}/{data.name}" in token.repositories])

    # One for the question whether it can be read, which is good for the build as well.
    assert await minted() == 1
    stage.later = 500.0
    assert await minted() == 0
    stage.later = 700.0
    assert await minted() == 1


async def test_a_token_of_an_account_that_expires_before_the_fetch_is_followed_by_another_attempt(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)
    url = github.url(outer)
    access = await stage.for_build(url, outer.head(), bench.directory / "credentials")
    for token in github.tokens:
        token.expires_at -= github.lifetime if f"{DATA}/{data.name}" in token.repositories else 0
    access.instructions["apps"][f"{github.host}/{DATA}"]["expires_at"] -= github.lifetime
    result = await build(bench, access, url, outer.head())
    assert result["reason"] == "fetch_interrupted"
    assert "The submodule sub" in result["message"]
    assert "the token of the GitHub App for this attempt has expired" in result["message"]


@pytest.fixture
def lfs(github: Enterprise) -> Iterator[LfsServer]:
    """Serve large files behind the server's tokens, and the content of objects without."""
    lfs = LfsServer(href=f"{github.https.server.url}/lfs-content/{{oid}}")
    github.https.faults.append(lfs)
    yield lfs
    github.https.faults.remove(lfs)


def large(github: Enterprise, lfs: LfsServer, account: str, **options: Any) -> Repository:
    """Make a repository of an account with a large file."""
    content = f"Large, of {account}.".encode()
    made = github.repository(
        "large", {**ATTRIBUTES, "data.bin": lfs.add(content)}, account=account, **options
    )
    github.public.update(f"lfs-content/{oid}" for oid in lfs.objects)
    return made


async def test_large_files_of_a_submodule_come_with_the_token_of_its_account(
    stage: Stage, github: Enterprise, bench: Bench, lfs: LfsServer
) -> None:
    data, own = large(github, lfs, DATA), large(github, lfs, OWNER)
    outer = outer_of(github, DATA, data)
    outer.add_submodule("own", github.url(own), own.head())
    result = await fetched(stage, bench, github.url(outer), outer.head())
    assert (result["reason"], result.get("warnings", [])) == ("ok", []), bench.texts()
    assert (bench.tree / "sub" / "data.bin").read_text() == f"Large, of {DATA}."
    assert (bench.tree / "own" / "data.bin").read_text() == f"Large, of {OWNER}."
    assert github.accounts_of_tokens_for(data) == {DATA}
    assert github.accounts_of_tokens_for(own) == {OWNER}


async def test_a_server_of_large_files_that_redirects_to_another_account_gets_that_ones_token(
    stage: Stage, github: Enterprise, bench: Bench, lfs: LfsServer
) -> None:
    data = large(github, lfs, DATA)
    outer = outer_of(github, DATA, data)
    moved = redirect(f"/{DATA}/{data.name}.git/info/lfs", f"{github.url(outer)}.git/info/lfs")
    github.https.faults.insert(github.https.faults.index(lfs), moved)
    try:
        result = await fetched(stage, bench, github.url(outer), outer.head())
    finally:
        github.https.faults.remove(moved)
    assert (result["reason"], result.get("warnings", [])) == ("ok", []), bench.texts()
    assert github.accounts_of_tokens_for(data) == {DATA}
    assert github.accounts_of_tokens_for(outer) == {OWNER}


async def test_tokens_of_accounts_that_a_repository_prints_are_redacted(
    stage: Stage, github: Enterprise, bench: Bench
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)
    access = await stage.for_build(github.url(outer), outer.head(), bench.directory / "credentials")
    given = [text for text in access.files.values() if "password=" in text]
    tokens = [text.partition("password=")[2].strip() for text in given]
    said = "\n".join(f"echo 'found {token}'" for token in tokens)
    script = (bench.bin / "fake-python").read_text()
    bench.script("fake-python", script.replace("docker buildx", f"{said}\ndocker buildx"))
    assert (await build(bench, access, github.url(outer), outer.head()))["reason"] == "ok", bench.texts()
    assert [text for text in bench.texts() if "found" in text] == ["found ***"] * 2
    assert not [secret for secret in github.secrets if secret in bench.log.read_text()]


async def test_the_secret_of_a_pod_has_the_tokens_and_its_specification_has_none(
    stage: Stage, github: Enterprise
) -> None:
    data = github.repository("data", account=DATA)
    outer = outer_of(github, DATA, data)
    access = await stage.for_build(github.url(outer), outer.head(), Path("/git"))
    secret = credentials_secret(Settings(), a_spec(), access.files)
    latest = {token.text for token in github.tokens if f"{DATA}/{data.name}" in token.repositories}
    assert [token for token in latest if f"password={token}\n" in repr(secret).replace("\\n", "\n")]
    assert not [entry for entry in github.secrets if entry in json.dumps(access.instructions)]


# -- what operators see


async def test_an_operator_sees_whether_each_account_has_the_app(
    github: Enterprise, session: aiohttp.ClientSession
) -> None:
    url = github.url(github.repository("work"))
    github.repository("person", account=PERSON)
    given = {
        "tenants": {"physics": github.tenant(submodule_accounts=[DATA, PERSON, "suspended"])},
        "providers": ProviderSettings(allow_private_addresses=True),
    }
    github.repository("other", account="suspended")
    github.suspended_accounts.add("suspended")
    check = RepositoryCheck(session, Settings.model_validate(given), "physics")
    steps = {step.name: step async for step in check.steps(url)}
    assert list(steps)[3:] == ["token", f"account {DATA}", f"account {PERSON}", "account suspended", "refs"]
    assert [step.is_ok for step in steps.values()][3:] == [True, False, True, False, True]
    assert f"is not installed on the account {DATA}" in steps[f"account {DATA}"].message
    number = INSTALLATION + github.accounts().index(PERSON)
    assert f"Installation {number} of the App" in steps[f"account {PERSON}"].message
    assert "is suspended" in steps["account suspended"].message
    assert not [secret for secret in github.secrets if secret in repr(steps)]


def credential(**given: Any) -> dict[str, Any]:
    return {"git": {"github.com": {"app_id": 1, "app_key_file": "/key", **given}}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"app_id": None, "app_key_file": None, "token_file": "/token"}, "submodule_accounts needs app_id"),
        ({"submodule_accounts": ["acme/work"]}, "'acme/work' cannot be an account"),
        ({"submodule_accounts": ["-acme"]}, "'-acme' cannot be an account"),
        ({"submodule_accounts": [""]}, "'' cannot be an account"),
        ({"submodule_accounts": ["acme.helper"]}, "'acme.helper' cannot be an account"),
        ({"submodule_accounts": ["acme", "Acme"]}, "has acme more than once"),
        ({"submodule_accounts": [f"account-{number}" for number in range(11)]}, "at most 10"),
    ],
    ids=str,
)
def test_submodule_accounts_that_cannot_work_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TenantSettings.model_validate(credential(**{"submodule_accounts": ["acme"], **given}))


def test_names_of_submodule_accounts_are_the_same_in_any_case() -> None:
    settings = TenantSettings.model_validate(credential(submodule_accounts=["Acme-Data", "octo_corp"]))
    assert settings.git["github.com"].submodule_accounts == ["acme-data", "octo_corp"]
