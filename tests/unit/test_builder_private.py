"""The builder's fetch with the credentials of a tenant, which are files that its specification names."""

import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import pytest

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.builder.builder import Fetcher, Source, Target
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason
from tests.support.fetch_bench import Bench
from tests.support.git_lfs import ATTRIBUTES, LfsServer
from tests.support.private_git import TOKEN, PrivateGit, private_git
from tests.support.repositories import Repository
from tests.support.ssh_server import make_key

CHOSEN = "chosen-by-the-operator-1b2c"


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGit]:
    with private_git(tmp_path_factory.mktemp("private") / "git") as git:
        yield git


@pytest.fixture
def bench(tmp_path: Path, git: PrivateGit) -> Bench:
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench", git.https)
    bench.environment["GIT_SSL_CAINFO"] = str(git.authority)
    # What is for all hosts, and must not get in the way.
    bench.environment |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": f"!f() {{ echo username=me; echo password={CHOSEN}; }}; f",
    }
    return bench


def run(bench: Bench, git: PrivateGit, url: str, ref: str, **options: Any) -> dict[str, Any]:
    return run_with(bench, git, url, ref, options)


def run_with(
    bench: Bench,
    git: PrivateGit,
    url: str,
    ref: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    **spec: Any,
) -> dict[str, Any]:
    """Run with the credentials of a tenant, whose settings `options` change."""
    instructions = bench.give_credentials(git.tenant(**options))
    assert not [secret for secret in git.secrets if secret in json.dumps(instructions)]
    return bench.run(url, ref, git=instructions, **spec)


def outcome(result: dict[str, Any]) -> tuple[str, str]:
    return result["reason"], CATEGORY_OF[FailureReason(result["reason"])].value


def nested(git: PrivateGit, submodule: str) -> Repository:
    inner = git.repository("inner", {"inner.txt": "Inside."})
    outer = git.repository("outer")
    address = submodule.format(path=inner.directory, name=inner.name, port=git.ssh.port, user=git.ssh.user)
    outer.add_submodule("sub", address, inner.head())
    return outer


def test_an_https_repository_with_a_submodule_of_its_host(bench: Bench, git: PrivateGit) -> None:
    outer = nested(git, "../{name}")
    assert run(bench, git, outer.url, outer.head())["reason"] == "ok", bench.texts()
    assert (bench.tree / "sub" / "inner.txt").read_text() == "Inside."
    assert CHOSEN not in repr(git.offered)
    assert not [secret for secret in git.secrets if secret in (bench.directory / "environment").read_text()]


@pytest.mark.parametrize("submodule", ["../{name}", "ssh://{user}@127.0.0.1:{port}{path}"])
def test_an_ssh_repository_with_a_submodule_of_its_host(
    bench: Bench, git: PrivateGit, submodule: str
) -> None:
    outer = nested(git, submodule)
    assert run(bench, git, git.ssh_url(outer), outer.head())["reason"] == "ok", bench.texts()
    assert (bench.tree / "sub" / "inner.txt").read_text() == "Inside."


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_ssh_connects_to_the_addresses_that_were_checked_whatever_its_name_leads_to(
    tmp_path: Path, family: str
) -> None:
    """The name leads to 127.0.0.1 by the time of the connection; what was checked is another address."""
    judged = "127.0.0.9" if family == "127.0.0.1" else family
    kind = socket.AF_INET6 if ":" in judged else socket.AF_INET
    try:
        right = socket.create_server((judged, 0), family=kind)
    except OSError as error:
        pytest.skip(f"{judged} is needed: {error}")
    with right, socket.create_server(("127.0.0.1", right.getsockname()[1])) as wrong:
        right.settimeout(60)
        runner = Mock(workdir=str(tmp_path))
        runner.run = lambda command, on_line, seconds: on_line(judged) or 0
        port = right.getsockname()[1]
        spec = {"git": {"ssh_command": "ssh -F none -o BatchMode=yes"}}
        fetcher = Fetcher(spec, runner, str(tmp_path), print)
        fetcher._rules.check = lambda url: Target("ssh", "localhost", port)  # type: ignore[method-assign]
        fetcher._rules.check_addresses = lambda *_: None  # type: ignore[method-assign]
        url = f"ssh://git@localhost:{port}/one"
        [option] = fetcher.checked(Source(url, "HEAD"))
        environment = {**os.environ, "GIT_SSH_COMMAND": option.partition("=")[2]}
        asked = subprocess.Popen(["git", "ls-remote", url], env=environment, stderr=subprocess.DEVNULL)
        with right.accept()[0] as connection:
            assert connection.recv(100).startswith(b"SSH-2.0-")
        asked.wait()
        wrong.setblocking(False)
        with pytest.raises(BlockingIOError):
            wrong.accept()


def test_a_submodule_by_ssh_on_a_host_without_a_key_is_refused(bench: Bench, git: PrivateGit) -> None:
    outer = nested(git, "git@other.example:x/y.git")
    result = run(bench, git, outer.url, outer.head())
    assert result["reason"] == "submodule_failed"
    assert "begins with `ssh:`" in result["message"]


def test_what_leaves_the_fetch_has_no_credentials_in_lines_and_messages(
    bench: Bench, git: PrivateGit
) -> None:
    """In a pod, the container of the fetch alone knows them."""
    repository = git.repository("work")
    real = shutil.which("git")
    refuse = f'case "$*" in *" fetch "*) echo "fatal: refused {TOKEN}" >&2; exit 128;; esac'
    bench.script("git", f'#!/bin/sh\n{refuse}\nexec {real} "$@"\n')
    spec = {
        "repo_url": repository.url,
        "ref": repository.head(),
        "image": "none",
        "git": bench.give_credentials(git.tenant()),
        "directory": str(bench.directory / "fetched"),
        "allow_private_addresses": True,
        "fetch_retries": 0,
    }
    environment = {**os.environ, "PATH": f"{bench.bin}:{os.environ['PATH']}", "SPEC": json.dumps(spec)}
    command = [*BUILDER_COMMAND, "--fetch", "--spec-env", "SPEC"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "fetch_interrupted" in done.stdout
    assert done.stdout.count("fatal: refused ***") == 2, done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_a_token_that_expired_since_the_look_up_is_the_operators_to_renew(
    bench: Bench, git: PrivateGit, tmp_path: Path
) -> None:
    repository = git.repository("work")
    (tmp_path / "expired").write_text("expired-token-77aa")
    result = run(bench, git, repository.url, repository.head(), token_file=str(tmp_path / "expired"))
    assert outcome(result) == ("credentials_refused", "operator")
    assert "refuses the credentials" in result["message"]
    assert "expired-token-77aa" not in json.dumps([result, bench.texts()])


def test_a_host_key_that_changed_since_the_look_up_gets_nothing(bench: Bench, git: PrivateGit) -> None:
    repository = git.repository("work")
    kept = git.known_hosts_file.read_text()
    make_key(bench.directory / "other")
    git.known_hosts_file.write_text(f"{kept.split()[0]} {(bench.directory / 'other.pub').read_text()}")
    try:
        result = run(bench, git, git.ssh_url(repository), repository.head())
    finally:
        git.known_hosts_file.write_text(kept)
    assert outcome(result) == ("host_key_refused", "operator")
    assert "has another SSH key than the one that is recorded" in result["message"]


def test_a_key_that_is_no_longer_accepted(bench: Bench, git: PrivateGit) -> None:
    repository = git.repository("work")
    accepted = git.ssh.directory / "authorized_keys"
    kept = accepted.read_text()
    accepted.write_text("")
    try:
        result = run(bench, git, git.ssh_url(repository), repository.head())
    finally:
        accepted.write_text(kept)
    assert outcome(result) == ("credentials_refused", "operator")


def test_what_a_repository_prints_of_the_credentials_is_redacted(bench: Bench, git: PrivateGit) -> None:
    repository = git.repository("work")
    said = "\n".join(f"echo 'found {secret}'" for secret in git.secrets)
    script = (bench.bin / "fake-python").read_text()
    bench.script("fake-python", script.replace("docker buildx", f"{said}\ndocker buildx"))
    assert run(bench, git, repository.url, repository.head())["reason"] == "ok", bench.texts()
    assert sum("found" in text for text in bench.texts()) == len(git.secrets)
    assert not [secret for secret in git.secrets if secret in "\n".join(bench.texts())]


# In the place of the server's shell: answers what Git LFS asks for, and runs everything else.
LFS_SHELL = """#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in
git-lfs-authenticate*) echo "$SSH_ORIGINAL_COMMAND" >> {asked}; {answer};;
*) exec sh -c "$SSH_ORIGINAL_COMMAND";;
esac
"""


@pytest.fixture
def lfs(git: PrivateGit) -> Iterator[LfsServer]:
    server = LfsServer(login="RemoteAuth lfs-token-91ab", href=f"{git.https.server.url}/lfs-content/{{oid}}")
    git.https.faults.insert(0, server)
    kept = (git.ssh.directory / "authorized_keys").read_text()
    yield server
    (git.ssh.directory / "authorized_keys").write_text(kept)
    git.https.faults.remove(server)


def with_shell(git: PrivateGit, directory: Path, answer: str) -> Path:
    """Have the server of SSH answer what Git LFS asks for; return the file with the questions."""
    script, asked = directory / "shell", directory / "asked"
    script.write_text(LFS_SHELL.format(asked=asked, answer=answer))
    keys = git.ssh.directory / "authorized_keys"
    keys.write_text(f'command="sh {script}" {keys.read_text()}')
    return asked


def named(git: PrivateGit, header: str = "RemoteAuth lfs-token-91ab") -> str:
    content = {"href": f"{git.https.server.url}/x.git/info/lfs", "header": {"Authorization": header}}
    return f"echo {shlex.quote(json.dumps(content))}"


def test_files_of_git_lfs_come_from_the_server_that_ssh_names(
    bench: Bench, git: PrivateGit, lfs: LfsServer
) -> None:
    repository = git.repository("it's large", {**ATTRIBUTES, "data.bin": lfs.add(b"Large.")})
    asked = with_shell(git, bench.directory, named(git))
    result = run(bench, git, quote(git.ssh_url(repository), safe=":/@"), repository.head())
    assert (result["reason"], result.get("warnings", [])) == ("ok", []), bench.texts()
    assert (bench.tree / "data.bin").read_bytes() == b"Large."
    path = str(repository.directory)
    assert asked.read_text() == f"git-lfs-authenticate {shlex.quote(path)} download\n"
    assert "lfs-token-91ab" not in bench.log.read_text() + json.dumps(result)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("echo 'command not found' >&2; exit 127", "names no server for Git LFS by SSH: command not found"),
        ("echo '<html>'", "an answer by SSH that cannot be read"),
        ('echo \'{"href": "http://10.0.0.1/lfs"}\'', "begins otherwise than with https://"),
        ('echo \'{"href": "file:///etc/passwd"}\'', "begins otherwise than with https://"),
    ],
)
def test_files_stay_pointers_where_ssh_names_no_server(
    bench: Bench, git: PrivateGit, lfs: LfsServer, answer: str, words: str
) -> None:
    repository = git.repository("large", {**ATTRIBUTES, "data.bin": lfs.add(b"Large.")})
    with_shell(git, bench.directory, answer)
    result = run(bench, git, git.ssh_url(repository), repository.head())
    assert result["reason"] == "ok"
    assert words in result["warnings"][0]
    assert lfs.batches == []
