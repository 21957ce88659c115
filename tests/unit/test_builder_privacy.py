"""The name of an image that has content which needs credentials: no other tenant gets an image of that name."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetch_bench import Bench
from tests.support.git_lfs import ATTRIBUTES, LfsServer
from tests.support.private_git import TOKEN, PrivateGit, private_git
from tests.support.repositories import Repository
from tests.unit.test_builder_private import run_with

SHARED = "registry.example/shared-one:1"
OWN = "registry.example/shared-alpha.one:1"


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGit]:
    with private_git(tmp_path_factory.mktemp("privacy") / "git") as git:
        yield git


@pytest.fixture
def bench(tmp_path: Path, git: PrivateGit) -> Bench:
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench", git.https)
    bench.environment |= {"GIT_SSL_CAINFO": str(git.authority), "HOME": str(tmp_path)}
    return bench


def image(bench: Bench, git: PrivateGit, made: Repository, url: str = "", **spec: Any) -> str:
    """Build with the tenant's credentials, and return the name of the image that was built and pushed."""
    label = {"io.rabbit2docker.image": SHARED}
    result = run_with(
        bench, git, url or made.url, made.head(), image=SHARED, private_image=OWN, provenance=label, **spec
    )
    return built(bench, result)


def built(bench: Bench, result: dict[str, Any]) -> str:
    assert result["reason"] == "ok", bench.texts()
    arguments = bench.arguments()
    named = arguments[arguments.index("--image-name") + 1]
    assert named == result["image"]
    [build] = bench.builds()
    assert f"--tag\0{named}" in "\0".join(build)
    assert (bench.directory / "pushed").read_text().split() == [named]
    return named


@pytest.fixture(autouse=True)
def record_pushes(bench: Bench) -> None:
    script = (bench.bin / "docker").read_text()
    bench.script("docker", script.replace("push) ", f'push) echo "$2" >> {bench.directory}/pushed; '))


def public(git: PrivateGit, files: dict[str, str] | None = None) -> Repository:
    return git.repository("public", files or {"README.md": "Public.\n"})


def with_submodule(git: PrivateGit, url: str, commit: str) -> Repository:
    outer = public(git)
    outer.add_submodule("sub", url, commit)
    return outer


def test_what_anybody_can_read_keeps_the_shared_name(bench: Bench, git: PrivateGit) -> None:
    inner = public(git)
    outer = with_submodule(git, f"../{inner.name}", inner.head())
    assert image(bench, git, outer) == SHARED
    assert not any("no other tenant" in text for text in bench.texts())
    [build] = bench.builds()
    assert f"io.rabbit2docker.image={SHARED}" in build


@pytest.mark.parametrize("submodule", ["../{name}", "ssh://{user}@127.0.0.1:{port}{path}"])
def test_a_private_submodule_makes_the_image_the_tenants_own(
    bench: Bench, git: PrivateGit, submodule: str
) -> None:
    inner = git.repository("inner")
    address = submodule.format(name=inner.name, user=git.ssh.user, port=git.ssh.port, path=inner.directory)
    outer = with_submodule(git, address, inner.head())
    assert image(bench, git, outer) == OWN
    [build] = bench.builds()
    assert f"io.rabbit2docker.image={OWN}" in build
    assert [text for text in bench.texts() if "no other tenant" in text and "submodule sub" in text]
    assert not [secret for secret in git.secrets if secret in "\n".join(bench.texts())]


def test_so_does_a_submodule_of_a_public_submodule(bench: Bench, git: PrivateGit) -> None:
    inner = git.repository("inner")
    middle = with_submodule(git, f"../{inner.name}", inner.head())
    outer = with_submodule(git, f"../{middle.name}", middle.head())
    assert image(bench, git, outer) == OWN


def test_so_does_a_repository_that_became_private_since_the_look_up(bench: Bench, git: PrivateGit) -> None:
    assert image(bench, git, git.repository("work")) == OWN


def test_a_key_for_ssh_counts_although_the_same_repository_is_public(bench: Bench, git: PrivateGit) -> None:
    made = public(git)
    assert image(bench, git, made, git.ssh_url(made)) == OWN


@pytest.mark.parametrize("needs_login", [True, False])
def test_files_of_git_lfs_count_if_their_server_asks_for_a_login(
    bench: Bench, git: PrivateGit, needs_login: bool
) -> None:
    login = f"Basic {git.secrets[1]}" if needs_login else ""
    lfs = LfsServer(login=login, href=f"{git.https.server.url}/lfs-content/{{oid}}")
    git.https.faults.insert(0, lfs)
    try:
        made = public(git, {**ATTRIBUTES, "data.bin": lfs.add(b"A large file.")})
        named = image(bench, git, made)
    finally:
        git.https.faults.remove(lfs)
    assert named == (OWN if needs_login else SHARED)
    assert (bench.tree / "data.bin").read_bytes() == b"A large file."


def of_helper(bench: Bench, git: PrivateGit) -> None:
    value = f"!f() {{ echo username={git.user}; echo password={TOKEN}; }}; f"
    given = {"KEY_0": f"credential.{git.https.server.url}.helper", "VALUE_0": value, "COUNT": "1"}
    bench.environment |= {f"GIT_CONFIG_{name}": text for name, text in given.items()}


def of_header(bench: Bench, git: PrivateGit) -> None:
    login = base64.b64encode(f"{git.user}:{TOKEN}".encode()).decode()
    given = {
        "KEY_0": f"http.{git.https.server.url}/.extraHeader",
        "VALUE_0": f"Authorization: Basic {login}",
        "COUNT": "1",
    }
    bench.environment |= {f"GIT_CONFIG_{name}": text for name, text in given.items()}


def of_netrc(bench: Bench, git: PrivateGit) -> None:
    home = Path(bench.environment["HOME"])
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {git.user} password {TOKEN}\n")


def of_address(bench: Bench, git: PrivateGit) -> None:
    scheme, _, host = git.https.server.url.partition("://")
    given = {
        "KEY_0": f"url.{scheme}://{git.user}:{TOKEN}@{host}/.insteadOf",
        "VALUE_0": f"{git.https.server.url}/",
        "COUNT": "1",
    }
    bench.environment |= {f"GIT_CONFIG_{name}": text for name, text in given.items()}


@pytest.mark.parametrize("give", [of_helper, of_header, of_netrc, of_address])
def test_credentials_that_the_operator_has_for_all_tenants_count_as_well(
    bench: Bench, git: PrivateGit, give: Any
) -> None:
    give(bench, git)
    inner = git.repository("inner")
    outer = with_submodule(git, f"../{inner.name}", inner.head())
    options = {"image": SHARED, "private_image": OWN}
    assert built(bench, bench.run(outer.url, outer.head(), **options)) == OWN


def test_those_that_were_not_needed_do_not(bench: Bench, git: PrivateGit) -> None:
    of_header(bench, git)
    made = public(git)
    result = bench.run(made.url, made.head(), image=SHARED, private_image=OWN)
    assert built(bench, result) == SHARED


def test_nothing_more_is_asked_for_a_tenant_without_a_shared_prefix(bench: Bench, git: PrivateGit) -> None:
    made = public(git)

    def requests(**spec: Any) -> int:
        before = len(git.https.requests)
        assert bench.run(made.url, made.head(), image=SHARED, **spec)["image"] == SHARED
        return len(git.https.requests) - before

    assert requests() < requests(private_image=OWN)
