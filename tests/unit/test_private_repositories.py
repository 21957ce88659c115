"""Private repositories are found with the credentials of their tenant, which reach no other host."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from rabbit2docker.consumer.credentials import GitCredentials, TenantAccess
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.base import Repository as Resolved
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.git import GitProvider
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.consumer.providers.repository_check import RepositoryCheck
from rabbit2docker.errors import CredentialsRefused, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings, Settings, TenantSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.git_http import redirect
from tests.support.private_git import PrivateGit, private_git
from tests.support.repositories import Repository
from tests.support.ssh_server import make_key

SETTINGS = ProviderSettings(allow_private_addresses=True)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGit]:
    with private_git(tmp_path_factory.mktemp("private") / "git") as git:
        yield git


@pytest.fixture
def git(servers: PrivateGit, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateGit]:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(servers.authority))
    kept = servers.token_file.read_text(), servers.known_hosts_file.read_text()
    servers.offered.clear()
    yield servers
    servers.token_file.write_text(kept[0])
    servers.known_hosts_file.write_text(kept[1])


Address = Callable[[PrivateGit, Repository], str]
ADDRESSES: dict[str, Address] = {
    "https": lambda git, repository: repository.url,
    "ssh": lambda git, repository: git.ssh_url(repository),
}


async def resolve(git: PrivateGit, url: str, ref: str, tenant: str = "physics", **login: str) -> Resolved:
    settings = {"physics": TenantSettings.model_validate(git.tenant(**login)), "biology": TenantSettings()}
    credentials = GitCredentials(settings)
    trusted = ssl.create_default_context(cafile=git.authority)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
        provider = Providers(SETTINGS, session, None, credentials).get("git")
        return await provider.resolve(f"{quote(url, safe='')}/{quote(ref, safe='')}", credentials.of(tenant))


async def refusal(git: PrivateGit, url: str, ref: str = "main", **options: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await resolve(git, url, ref, **options)
    return caught.value


@pytest.mark.parametrize("kind", ADDRESSES)
async def test_a_private_repository_is_resolved_by_branch_tag_and_short_commit_id(
    git: PrivateGit, kind: str
) -> None:
    repository = git.repository("work")
    old = repository.head()
    repository.git("tag", "-a", "v1", "-m", "First")
    new = repository.commit({"a.txt": "new"})
    url = ADDRESSES[kind](git, repository)
    for ref, commit in {
        "main": new, "v1": old, old: old, old[:9].upper(): old
    }.items():  # fmt: skip
        found = await resolve(git, url, ref)
        assert (found.resolved_ref, found.repo_url, found.is_private) == (commit, url, True), ref
    missing = await refusal(git, url, "0123456")
    assert (missing.reason, "no branch or tag '0123456'" in missing.message) == ("ref_not_found", True)


@pytest.mark.parametrize("ref", ["main", "COMMIT"])
async def test_what_is_public_is_read_without_the_credentials(git: PrivateGit, ref: str) -> None:
    repository = git.repository("public")
    found = await resolve(git, repository.url, ref.replace("COMMIT", repository.head()))
    assert (found.resolved_ref, found.is_private) == (repository.head(), False)
    assert git.offered == []


async def test_another_tenant_has_no_use_of_them(git: PrivateGit) -> None:
    repository = git.repository("work")
    private = await refusal(git, repository.url, tenant="biology")
    assert private.reason is RejectReason.REPOSITORY_PRIVATE
    assert git.offered == []
    by_ssh = await refusal(git, git.ssh_url(repository), tenant="biology")
    assert by_ssh.reason is RejectReason.REFUSED_URL
    assert "no key is configured" in by_ssh.message


async def test_a_deploy_token_of_gitlab_resolves_projects_without_the_api(git: PrivateGit) -> None:
    repository = git.repository("project")
    group = git.https.root / "group"
    group.mkdir()
    (group / f"{repository.name}.git").symlink_to(repository.directory)
    settings = SETTINGS.model_copy(update={"gitlab_hostname": git.https_host})
    access = GitCredentials({"a": TenantSettings.model_validate(git.tenant())}).of("a")
    spec = f"{quote(f'group/{repository.name}', safe='')}/{{ref}}"
    async with aiohttp.ClientSession() as session:
        provider = Providers(settings, session).get("gl")
        for ref in ("main", repository.head()[:9]):
            found = await provider.resolve(spec.format(ref=ref), access)
            assert (found.resolved_ref, found.is_private) == (repository.head(), True)
            assert (found.build_slug, found.notice) == (
                provider.pin(spec.format(ref=ref), ref).build_slug,
                None,
            )
        found = await provider.resolve(spec.format(ref="master"), access)
        assert found.resolved_ref == repository.head()
        assert (
            found.notice
            == f"group/{repository.name} has no branch 'master': its default branch is used instead."
        )
        with pytest.raises(RequestRejected, match="has no branch, tag or commit 'gone'"):
            await provider.resolve(spec.format(ref="gone"), access)


async def test_ssh_is_refused_where_no_tenant_has_a_key(git: PrivateGit) -> None:
    provider = Providers(SETTINGS).get("git")
    with pytest.raises(RequestRejected, match="begins with `ssh:`"):
        provider.check(f"{quote(git.ssh.url(Path('/x')), safe='')}/main")
    other = await refusal(git, "ssh://git@other.example/x")
    assert other.reason is RejectReason.REFUSED_URL


async def test_an_expired_token_is_the_operators_to_renew(git: PrivateGit) -> None:
    repository = git.repository("work")
    git.token_file.write_text("an-expired-token\n")
    error = await refusal(git, repository.url)
    assert isinstance(error, CredentialsRefused)
    assert (error.reason, error.retryable) == ("credentials_refused", True)
    assert "The operator must renew them." in error.message
    assert "an-expired-token" not in error.message


@pytest.mark.parametrize("name", ["repository.invalid", "localhost"])
async def test_ssh_connects_to_the_address_that_was_checked_and_knows_the_host_by_its_name(
    git: PrivateGit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The name leads nowhere, or to another machine, by the time at which ssh would look it up."""
    asked: list[str] = []

    async def resolve(_self: AddressPolicy, url: str) -> list[str]:
        asked.append(url)
        return ["127.0.0.9", "127.0.0.1"]  # nothing listens at the first

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    repository = git.repository("work")
    known = tmp_path / "known_hosts"
    known.write_text(git.ssh.known_hosts.replace("127.0.0.1", name))
    tenant = git.tenant()
    [login] = [entry for host, entry in tenant["git"].items() if host != git.https_host]
    tenant["git"][f"{name}:{git.ssh.port}"] = {**login, "known_hosts_file": str(known)}
    credentials = GitCredentials({"physics": TenantSettings.model_validate(tenant)})
    provider = GitProvider(SETTINGS, ssh_hosts=credentials.ssh_hosts())
    url = git.ssh_url(repository).replace("127.0.0.1", name)
    found = await provider.resolve(f"{quote(url, safe='')}/main", credentials.of("physics"))
    assert found.resolved_ref == repository.head()
    assert asked
    known.write_text(git.ssh.known_hosts)  # the key is that of an address, not of the name
    credentials = GitCredentials({"physics": TenantSettings.model_validate(tenant)})
    with pytest.raises(CredentialsRefused, match="No SSH key"):
        await GitProvider(SETTINGS, ssh_hosts=credentials.ssh_hosts()).resolve(
            f"{quote(url, safe='')}/main", credentials.of("physics")
        )


async def test_a_changed_ssh_host_key_gets_nothing(git: PrivateGit, tmp_path: Path) -> None:
    repository = git.repository("work")
    make_key(tmp_path / "other")
    other = (tmp_path / "other.pub").read_text()
    known = git.known_hosts_file.read_text()
    git.known_hosts_file.write_text(f"{known.split()[0]} {other}")
    accepted = git.ssh.log().count("Accepted")
    changed = await refusal(git, git.ssh_url(repository))
    assert changed.reason is RejectReason.HOST_KEY_REFUSED
    assert "has another SSH key than the one that is recorded" in changed.message
    git.known_hosts_file.write_text("other.example " + other)
    unknown = await refusal(git, git.ssh_url(repository))
    assert unknown.reason is RejectReason.HOST_KEY_REFUSED
    assert "No SSH key" in unknown.message
    assert git.ssh.log().count("Accepted") == accepted


async def test_a_refused_ssh_key_is_the_operators_to_renew(git: PrivateGit, tmp_path: Path) -> None:
    repository = git.repository("work")
    accepted = git.ssh.directory / "authorized_keys"
    kept = accepted.read_text()
    accepted.write_text("")
    try:
        error = await refusal(git, git.ssh_url(repository))
    finally:
        accepted.write_text(kept)
    assert error.reason is RejectReason.CREDENTIALS_REFUSED


async def test_a_repository_that_the_credentials_do_not_show(git: PrivateGit) -> None:
    for url in (git.repository("work").url + "-gone", git.ssh.url(Path("/nowhere"))):
        error = await refusal(git, url)
        assert error.reason is RejectReason.REPOSITORY_NOT_FOUND, error.message


async def test_a_redirect_to_another_host_gets_no_credentials(git: PrivateGit, tmp_path: Path) -> None:
    repository = git.repository("work")
    with private_git(tmp_path / "other", git.authority.parent) as other:
        git.https.faults.append(
            redirect(f"/{repository.name}", f"{other.https.server.url}/{repository.name}")
        )
        try:
            error = await refusal(git, repository.url)
        finally:
            git.https.faults.pop()
        assert error.reason is RejectReason.REPOSITORY_PRIVATE
        assert other.https.server.url in error.message
        assert git.offered
        assert other.https.requests
        assert other.offered == []


async def test_a_missing_file_is_waited_for(git: PrivateGit) -> None:
    repository = git.repository("work")
    with pytest.raises(ProviderUnavailable, match="cannot be read: No such file"):
        await resolve(git, repository.url, "main", token_file="/nonexistent/token")


async def steps(git: PrivateGit, url: str, tenant: str) -> list[tuple[str, bool, str]]:
    given = {"tenants": {"physics": git.tenant()}, "providers": SETTINGS}
    settings = Settings.model_validate(given)
    async with open_session(SETTINGS) as session:
        check = RepositoryCheck(session, settings, tenant)
        return [(step.name, step.is_ok, step.message) async for step in check.steps(url)]


async def test_an_operator_sees_step_by_step_how_far_a_look_up_comes(git: PrivateGit) -> None:
    repository = git.repository("work")
    found = await steps(git, git.ssh_url(repository), "physics")
    assert [name for name, is_ok, _ in found if is_ok] == ["address", "host", "credentials", "refs"]
    assert "a key for SSH" in found[2][2]
    assert "with the credentials: it is private" in found[3][2]
    other = await steps(git, repository.url, "biology")
    assert [is_ok for _, is_ok, _ in other] == [True, True, True, False]
    assert "has none for this host" in other[2][2]
    assert "requires a password" in other[3][2]
    [(name, is_ok, message)] = await steps(git, "file:///etc", "physics")
    assert (name, is_ok) == ("address", False), message
    assert not [secret for secret in git.secrets if secret in repr([found, other])]


async def test_nothing_that_is_shown_of_credentials_has_the_secret(git: PrivateGit) -> None:
    access: TenantAccess = GitCredentials({"a": TenantSettings.model_validate(git.tenant())}).of("a")
    [entry] = await access.for_url(f"{git.https.server.url}/x")
    assert git.secrets[0] not in repr(entry)
