"""The builder's fetch stage: real git and real servers on loopback, with scripts in the place of repo2docker and docker."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rabbit2docker.consumer.builder.builder import (
    LOOK_UP,
    AddressRules,
    AttemptEnded,
    Fetcher,
    FetchFailed,
    Source,
    Target,
    UrlRefused,
    check_tree,
    classify_git,
    goes_through_proxy,
    submodule_place,
    submodule_url,
    unquoted,
)
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.errors import RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason
from tests.support.disks import a_small_disk
from tests.support.fetch_bench import PYTHON, Bench
from tests.support.git_http import (
    NEEDS_PASSWORD,
    GitHttp,
    answer,
    cut_pack,
    git_http,
    redirect,
    stall_in_pack,
    static_files,
)
from tests.support.repositories import Repository
from tests.unit.test_address_policy import INTERNAL_HOSTS, MALFORMED_URLS

SECRET = "planted-secret"
TEXT = "".join(f"{number} lines of text that do not compress to nothing\n" for number in range(2000))


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitHttp]:
    (tmp_path / "served").mkdir()
    with git_http(tmp_path / "served") as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, git: GitHttp) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", git)


def category(result: dict[str, Any]) -> str:
    return CATEGORY_OF[FailureReason(result["reason"])].value


class TestCommits:
    def test_one_commit_is_fetched_and_handed_to_repo2docker_as_a_directory(self, bench: Bench) -> None:
        repository = bench.repository({"a.txt": "first"})
        first = repository.head()
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, first)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "first"
        history = ["git", "-C", str(bench.tree), "log", "--format=%H"]
        assert subprocess.run(history, capture_output=True, text=True, check=True).stdout.split() == [first]
        arguments = bench.arguments()
        [build] = bench.builds()
        assert f"--label=repo2docker.repo={repository.url}" in build
        assert f"--label=repo2docker.ref={first}" in build
        assert arguments[arguments.index("--ref") + 1] == first

    def test_the_builders_directory_is_in_no_line_and_no_message(self, bench: Bench) -> None:
        said = [
            "Picked Local content provider.",
            "Using local repo $last.",
            "$last/apt.txt is odd",
            "in $last: none",
        ]
        script = PYTHON.format(directory=bench.directory)
        bench.script("fake-python", script + "".join(f'echo "{line}"\n' for line in said) + "exit 1\n")
        result = bench.run(bench.repository())
        assert str(bench.directory) not in "".join([*bench.texts(), result["message"]])
        assert bench.texts()[-2:] == ["apt.txt is odd", "in the repository: none"]

    def test_a_branch_of_a_server_that_gives_out_refs_only_is_fetched_by_its_name(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.environment["GIT_PROTOCOL"] = "version=0"
        repository = bench.repository({"a.txt": "first"})
        first = repository.head()
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, first)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "first"

    @pytest.mark.parametrize("version", ["version=0", "version=2"])
    def test_a_commit_of_a_pull_request_is_fetched(self, bench: Bench, git: GitHttp, version: str) -> None:
        git.environment["GIT_PROTOCOL"] = version
        repository = bench.repository()
        repository.git("checkout", "--quiet", "--detach")
        pull = repository.commit({"new.txt": "proposed"})
        repository.git("update-ref", "refs/pull/7/head", pull)
        repository.git("checkout", "--quiet", "main")
        result = bench.run(repository, pull, source_ref="refs/pull/7/head")
        assert result["reason"] == "ok", bench.texts()
        assert (bench.tree / "new.txt").read_text() == "proposed"

    @pytest.mark.parametrize(
        "branch",
        [
            "a#b",
            "100%",
            "c++",
            "a@b",
            "a&b",
            "a;b",
            "it's",
            'say"',
            "$HOME",
            "a/b/c",
            "\u00fcn\u00ef",
            "(x)!",
        ],
    )
    def test_a_branch_is_fetched_whatever_its_name(self, bench: Bench, git: GitHttp, branch: str) -> None:
        # The server gives out no commit by its id, and the branch has moved on since it was looked up.
        git.environment["GIT_PROTOCOL"] = "version=0"
        repository = bench.repository()
        repository.git("checkout", "--quiet", "-b", branch)
        commit = repository.commit({"new.txt": "there"})
        repository.commit({"new.txt": "later"})
        repository.git("checkout", "--quiet", "main")
        result = bench.run(repository, commit, source_ref=f"refs/heads/{branch}")
        assert result["reason"] == "ok", bench.texts()
        assert (bench.tree / "new.txt").read_text() == "there"

    def test_files_are_fetched_whatever_their_names(self, bench: Bench) -> None:
        names = ["-rf", "--upload-pack=x", "new\nline", "n" * 200, "d\u00e9p\u00f4t", "a b", "$HOME", "*"]
        result = bench.run(bench.repository(dict.fromkeys(names, "content")))
        assert result["reason"] == "ok", bench.texts()
        assert {path.name for path in bench.tree.iterdir()} - {".git"} == set(names)

    @pytest.mark.parametrize("path", ["runtime.txt", "binder/runtime.txt", "deep/.binder/runtime.txt"])
    def test_a_runtime_that_repo2docker_ignores_for_its_byte_order_mark_is_a_warning(
        self, bench: Bench, path: str
    ) -> None:
        repository = bench.repository({path: "\ufeffpython-3.9\n", "deep/requirements.txt": "\ufeffnumpy\n"})
        subdir = {"subdir": "deep"} if path.startswith("deep/") else {}
        result = bench.run(repository, **subdir)
        [warning] = result["warnings"]
        assert f"repo2docker ignores {path.removeprefix('deep/')}." in warning
        assert "save it as UTF-8 without one" in warning
        assert f"Warning: {warning}" in bench.texts()

    def test_a_commit_that_a_force_push_left_behind_is_fetched(self, bench: Bench) -> None:
        repository = bench.repository()
        left = repository.commit({"old.txt": "left behind"})
        repository.git("reset", "--quiet", "--hard", "HEAD^")
        assert bench.run(repository, left, source_ref="refs/heads/main")["reason"] == "ok", bench.texts()
        assert (bench.tree / "old.txt").exists()

    def test_a_repository_of_a_server_without_git_is_fetched(self, bench: Bench, git: GitHttp) -> None:
        repository = bench.repository({"a.txt": "first"})
        first = repository.head()
        repository.commit({"a.txt": "second"})
        repository.git("update-server-info")
        git.faults.append(static_files)
        assert bench.run(f"{repository.url}/.git", first)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "first"

    def test_a_repository_with_sha256_ids_is_fetched(self, bench: Bench) -> None:
        repository = bench.repository()
        (repository.directory / ".git").rename(repository.directory.parent / "away")
        repository.git("init", "--quiet", "--object-format=sha256", "--initial-branch=main")
        commit = repository.commit({"a.txt": "text"})
        assert len(commit) == 64
        assert bench.run(repository, commit)["reason"] == "ok", bench.texts()
        assert (bench.tree / "a.txt").read_text() == "text"

    @pytest.mark.parametrize("version", ["version=0", "version=2"])
    def test_a_commit_that_does_not_exist_is_not_found(
        self, bench: Bench, git: GitHttp, version: str
    ) -> None:
        git.environment["GIT_PROTOCOL"] = version
        result = bench.run(bench.repository(), "1" * 40, source_ref="refs/heads/main")
        assert (result["reason"], category(result)) == ("ref_not_found", "user")
        # A server of version 2 says so itself; from an older one, everything has to be fetched to be sure.
        assert any("git-upload-pack" in request for request in git.requests)
        assert (git.packs() <= 1) == (version == "version=2")
        assert "1" * 40 in result["message"]

    def test_the_whole_history_with_its_tags_is_fetched_if_configured(self, bench: Bench) -> None:
        repository = bench.repository()
        repository.git("tag", "v1")
        repository.commit({"a.txt": "second"})
        assert bench.run(repository, fetch_depth=0)["reason"] == "ok", bench.texts()
        describe = ["git", "-C", str(bench.tree), "describe", "--tags"]
        assert subprocess.run(describe, capture_output=True, text=True, check=True).stdout.startswith(
            "v1-1-g"
        )

    def test_a_renamed_repository_is_followed_to_its_new_address(self, bench: Bench, git: GitHttp) -> None:
        repository = bench.repository()
        git.faults.append(redirect("/old/name", repository.url))
        result = bench.run(f"{git.server.url}/old/name", repository.head())
        assert result["reason"] == "ok", bench.texts()


class TestFaults:
    def test_a_cut_pack_is_fetched_again_and_the_log_has_the_words_of_git(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.faults.append(cut_pack())
        result = bench.run(bench.repository({"a.txt": TEXT}))
        assert result["reason"] == "ok", bench.texts()
        [line] = [text for text in bench.texts() if "Trying again" in text]
        assert "RPC failed" in line or "early EOF" in line
        assert line.endswith(". Trying again in 1 s.")

    def test_a_pack_that_is_always_cut_is_a_fault_of_the_infrastructure(
        self, bench: Bench, git: GitHttp
    ) -> None:
        git.faults.append(cut_pack(99))
        result = bench.run(bench.repository({"a.txt": TEXT}))
        assert (result["reason"], category(result)) == ("fetch_interrupted", "infrastructure")
        assert "RPC failed" in result["message"]
        assert git.packs() == 2

    def test_a_server_error_is_repeated(self, bench: Bench, git: GitHttp) -> None:
        git.faults.append(answer(500, times=1))
        assert bench.run(bench.repository())["reason"] == "ok", bench.texts()
        assert any("500" in text and "Trying again" in text for text in bench.texts())

    def test_a_refused_connection_is_a_fault_of_the_infrastructure(self, bench: Bench) -> None:
        result = bench.run("http://127.0.0.1:1/ada/one", "1" * 40)
        assert (result["reason"], category(result)) == ("fetch_interrupted", "infrastructure")

    @pytest.mark.parametrize(
        ("fault", "reason", "words"),
        [
            (answer(401, headers=NEEDS_PASSWORD), "repository_private", "requires credentials"),
            (answer(403), "repository_private", "requires credentials"),
            (answer(404), "fetch_failed", "no git repository"),
            (answer(410), "fetch_failed", "no git repository"),
            (answer(200, body=b"<!DOCTYPE html>\n<html>\n</html>\n"), "fetch_failed", "no git repository"),
            (answer(302, headers={"Location": "https://login.example/sign-in"}), "fetch_failed", "redirects"),
        ],
    )
    def test_a_lasting_fault_is_the_users_and_not_repeated(
        self, bench: Bench, git: GitHttp, fault: Any, reason: str, words: str
    ) -> None:
        git.faults.append(fault)
        result = bench.run(bench.repository())
        assert (result["reason"], category(result)) == (reason, "user"), result
        assert words in result["message"]
        assert not any("Trying again" in text for text in bench.texts())


class TestSubmodules:
    def test_submodules_are_fetched_at_every_level_also_with_relative_addresses(self, bench: Bench) -> None:
        inner, middle, outer = (bench.repository({"name": name}, name) for name in ("in", "mid", "out"))
        middle.add_submodule("deep/inner", inner.url, inner.head())
        outer.add_submodule("middle", f"../{middle.name}", middle.head())
        assert bench.run(outer)["reason"] == "ok", bench.texts()
        assert (bench.tree / "middle" / "name").read_text() == "mid"
        assert (bench.tree / "middle" / "deep" / "inner" / "name").read_text() == "in"

    def test_a_submodule_that_is_not_to_be_updated_stays_empty(self, bench: Bench) -> None:
        repository = bench.repository()
        repository.add_submodule("sub", "https://unknown.example/a", "1" * 40, update="none")
        assert bench.run(repository)["reason"] == "ok", bench.texts()
        assert list((bench.tree / "sub").iterdir()) == []

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (answer(404, path="/gone"), "there is no git repository at"),
            (answer(401, path="/gone", headers=NEEDS_PASSWORD), "asks for a password"),
            (None, "has no commit 1111"),
        ],
    )
    def test_a_failure_names_the_submodule_and_what_is_wrong_with_it(
        self, bench: Bench, git: GitHttp, fault: Any, words: str
    ) -> None:
        other = bench.repository(name="gone")
        repository = bench.repository()
        repository.add_submodule("libs/sub", f"../{other.name}", "1" * 40)
        git.faults += [fault] if fault else []
        result = bench.run(repository)
        assert (result["reason"], category(result)) == ("submodule_failed", "user")
        assert result["message"].startswith(f"The submodule libs/sub ({other.url}) ")
        assert words in result["message"]

    def test_a_cut_connection_to_a_submodule_is_repeated(self, bench: Bench, git: GitHttp) -> None:
        other, repository = bench.repository({"a.txt": TEXT}), bench.repository()
        repository.add_submodule("sub", other.url, other.head())
        git.faults.append(answer(503, times=1, path=f"/{other.name}"))
        assert bench.run(repository)["reason"] == "ok", bench.texts()
        assert any(text.startswith("The submodule sub") and "503" in text for text in bench.texts())

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc", "/etc", "ext::sh -c touch% /tmp/x", "--upload-pack=touch /tmp/x", "ssh://git@example.org/a",
            "git@example.org:a/b", "https://user:password@example.org/a", "../../../../a", "../../../../../etc",
        ],
    )  # fmt: skip
    def test_an_address_that_a_request_may_not_use_is_refused(self, bench: Bench, url: str) -> None:
        repository = bench.repository()
        repository.add_submodule("sub", url, "1" * 40)
        result = bench.run(repository)
        assert (result["reason"], category(result)) == ("submodule_failed", "user"), result
        assert result["message"].startswith("The submodule sub ")
        assert "password@" not in result["message"]

    def test_a_submodule_without_an_address_is_named(self, bench: Bench) -> None:
        repository = bench.repository()
        repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},stray")
        repository.git("commit", "--quiet", "--message", "A stray entry")
        result = bench.run(repository)
        assert result["reason"] == "submodule_failed"
        assert "stray" in result["message"]
        assert ".gitmodules" in result["message"]

    def test_a_repository_that_contains_itself_comes_to_an_end(self, bench: Bench) -> None:
        repository = bench.repository()
        for _ in range(10):
            repository.add_submodule("again", f"../{repository.name}", repository.head())
        result = bench.run(repository)
        assert result["reason"] == "submodule_failed"
        assert "8 levels" in result["message"]


class TestAddresses:
    @pytest.mark.parametrize("allow_private", [False, True])
    @pytest.mark.parametrize(
        "url",
        [
            *(f"https://{host}/a/b" for host in INTERNAL_HOSTS),
            *MALFORMED_URLS,
            "https://me:s3cret@example.org/a", "https://github.com/a/b", "HTTPS://GitHub.COM./a/b.git",
            "http://example.org:8080/a", "git://example.org/a", "https://8.8.8.8/a", "https://[2606:4700::1111]/a",
            "https://b\u00fccher.example/a",
        ],
    )  # fmt: skip
    def test_the_builder_judges_addresses_as_the_service_does(self, url: str, allow_private: bool) -> None:
        service = AddressPolicy(ProviderSettings(allow_private_addresses=allow_private))
        try:
            expected = service.check(url)
        except RequestRejected:
            with pytest.raises(UrlRefused):
                AddressRules(allow_private).check(url)
        else:
            target = AddressRules(allow_private).check(url)
            assert tuple(target) == (expected.scheme, expected.host, expected.port)

    @pytest.mark.parametrize(
        "address", ["127.0.0.1", "10.1.2.3", "fe80::1", "169.254.169.254", "::ffff:10.0.0.1"]
    )
    def test_a_name_that_resolves_to_an_internal_address_is_refused(self, address: str) -> None:
        with pytest.raises(UrlRefused, match="inside the network"):
            AddressRules(False).check_addresses("name.example", ["93.184.215.14", address])

    @pytest.mark.parametrize(
        ("parent", "url", "expected"),
        [
            ("https://h.example/a/b", "../c.git", "https://h.example/a/c.git"),
            ("https://h.example/a/b/", "./c", "https://h.example/a/b/c"),
            ("https://h.example/a/b", "../../x/c", "https://h.example/x/c"),
            ("https://h.example/a/b", "https://g.example/c", "https://g.example/c"),
        ],
    )
    def test_relative_addresses_are_resolved_against_the_parent(
        self, parent: str, url: str, expected: str
    ) -> None:
        assert submodule_url(parent, url) == expected

    @pytest.mark.parametrize(
        "inner", ["http://127.0.0.1:{port}/one", "http://[::1]/a", "http://metadata.google.internal/a"]
    )
    def test_a_submodule_inside_the_network_is_refused(self, bench: Bench, git: GitHttp, inner: str) -> None:
        url = inner.format(port=git.server.url.rpartition(":")[2])
        repository = bench.repository()
        repository.add_submodule("sub", url, "1" * 40)
        # A proxy reaches what looks like a public host: this server.
        bench.environment = {"http_proxy": git.server.url, "no_proxy": ""}
        public = f"http://git.example.org/{repository.name}"
        result = bench.run(public, repository.head(), allow_private_addresses=False)
        assert result["reason"] == "submodule_failed", result
        assert "inside the network of the service" in result["message"]

    def test_a_redirect_into_the_network_is_refused(self, bench: Bench, git: GitHttp) -> None:
        git.faults.append(redirect("/old", "http://169.254.169.254/latest"))
        bench.environment = {"http_proxy": git.server.url, "no_proxy": ""}
        result = bench.run("http://git.example.org/old", "1" * 40, allow_private_addresses=False)
        assert result["reason"] == "fetch_failed"
        assert "169.254.169.254" in result["message"]
        assert "inside the network of the service" in result["message"]


URL = "https://git.example/early EOF/is this a git repository?"


GIT_OUTPUTS: list[tuple[list[str], str, str | None]] = [
        (["remote: fatal: repository 'x' not found", "fatal: early EOF"], "passing", "fatal: early EOF"),
        ([f"fatal: repository '{URL}/' not found"], "gone", f"fatal: repository '{URL}/' not found"),
        (["remote: Repository not found.", f"fatal: unable to access '{URL}/': Failed to connect to git.example port 443"],
         "passing", f"fatal: unable to access '{URL}/': Failed to connect to git.example port 443"),
        ([f"fatal: unable to access '{URL}/': The requested URL returned error: 429"], "passing", None),
        ([f"fatal: unable to access '{URL}/': Could not resolve host: git.example"], "unresolved", None),
        (["fatal: unable to connect to git.example:", "git.example[0: 192.0.2.1]: errno=Connection refused"],
         "passing", "fatal: unable to connect to git.example: git.example[0: 192.0.2.1]: errno=Connection refused"),
        (["fatal: remote error: access denied or repository not exported: /x"], "gone", None),
        (["error: RPC failed; curl 18 transfer closed with outstanding read data remaining", "fatal: early EOF"],
         "passing", "error: RPC failed; curl 18 transfer closed with outstanding read data remaining"),
        (["fatal: unable to access 'https://x/': SSL certificate problem: certificate has expired"], "lasting", None),
        (["git@x: Permission denied (publickey).", "fatal: Could not read from remote repository."], "private", None),
        (["fatal: unable to access 'http://127.0.0.1:18931/one/': The requested URL returned error: 301"], "redirected", None),
    (["Host key verification failed.", "fatal: Could not read from remote repository."],
     "host_key", "fatal: Could not read from remote repository."),
    ([f"fatal: remote error: upload-pack: not our ref {'1' * 40}"], "absent", None),
    ([f"error: Server does not allow request for unadvertised object {'1' * 40}"], "refused", None),
    (["remote: Total 3 (delta 0), reused 0 (delta 0), pack-reused 0",
      "fatal: unable to write loose object file: No space left on device", "fatal: unpack-objects failed"],
     "disk_full", "fatal: unable to write loose object file: No space left on device"),
    ([], "passing", "git gave no reason."),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "kind", "words"), GIT_OUTPUTS)
def test_git_is_classified_by_its_own_lines_and_not_by_names_in_them(
    lines: list[str], kind: str, words: str | None
) -> None:
    found = classify_git(lines, URL)
    assert found == (kind, words or lines[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with a_small_disk(tmp_path / "disk", "1m") as disk:
        yield disk


class TestDisk:
    @pytest.mark.parametrize("content", [os.urandom(3_000_000), b"0" * 3_000_000])
    def test_a_full_disk_is_a_fault_of_the_infrastructure(
        self, bench: Bench, small_disk: Path, content: bytes
    ) -> None:
        repository = bench.repository({"noise": content})
        result = bench.run(repository, workdir=str(small_disk / "work"))
        assert (result["reason"], category(result)) == ("disk_full", "infrastructure")
        assert "disk of the build machine is full" in result["message"]


class TestNames:
    @pytest.mark.parametrize(
        ("scheme", "variable", "expected"),
        [
            ("http", "http_proxy", True),
            ("http", "HTTP_PROXY", False),  # git ignores it
            ("http", "ALL_PROXY", False),  # builders do not inherit it
            ("https", "https_proxy", True),
            ("https", "HTTPS_PROXY", True),
            ("git", "https_proxy", False),
        ],
    )
    def test_addresses_are_left_to_a_proxy_only_if_git_uses_it(
        self, monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str, expected: bool
    ) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        monkeypatch.setenv(variable, "http://proxy.example:3128")
        assert goes_through_proxy(Target(scheme, "example.org", 1)) == expected

    def fetcher(self, tmp_path: Path, code: int, *addresses: str) -> Fetcher:
        runner = Mock(workdir=str(tmp_path))

        def run(command: list[str], on_line: Any, seconds: float) -> int:
            for address in addresses:
                on_line(address)
            return code

        runner.run = run
        return Fetcher({}, runner, str(tmp_path), print)

    def test_git_connects_to_the_addresses_that_were_checked(self, tmp_path: Path) -> None:
        fetcher = self.fetcher(tmp_path, 0, "93.184.215.14", "2606:4700::1111")
        assert fetcher.checked(Source("https://example.org/a", "HEAD")) == [
            "http.curloptResolve=example.org:443:93.184.215.14,2606:4700::1111",
            "http.curloptResolve=example.org.:443:93.184.215.14,2606:4700::1111",
        ]

    def test_git_reaches_the_checked_address_of_a_git_daemon_whatever_its_name_leads_to(
        self, tmp_path: Path
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(60)
        asked: list[bytes] = []

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                asked.append(connection.recv(1 << 16))
                line = f"{'1' * 40} refs/heads/main\0 agent=x\n"
                connection.sendall(f"{len(line) + 4:04x}{line}0000".encode())
                asked.append(connection.recv(1 << 16))

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        fetcher = self.fetcher(tmp_path, 0, "127.0.0.1")
        fetcher._rules.check_addresses = lambda *_: None  # type: ignore[method-assign]
        [pin] = fetcher.checked(Source(f"git://no-such-host.example:{port}/one", "HEAD"))
        command = ["git", "-c", pin, "ls-remote", f"git://no-such-host.example:{port}/one"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        thread.join()
        assert found.stdout == f"{'1' * 40}\trefs/heads/main\n", found.stderr
        assert f"host=no-such-host.example:{port}".encode() in asked[0]

    @pytest.mark.parametrize(
        ("code", "addresses", "may_pass", "words"),
        [
            (0, ["93.184.215.14", "127.0.0.1"], False, "at 127.0.0.1, inside the network"),
            (3, [], False, "there is no host example.org"),
            (4, [], True, "the name service did not resolve example.org"),
        ],
    )
    def test_an_unknown_name_is_an_answer_and_a_silent_name_service_is_not(
        self, tmp_path: Path, code: int, addresses: list[str], may_pass: bool, words: str
    ) -> None:
        with pytest.raises(FetchFailed) as caught:
            self.fetcher(tmp_path, code, *addresses).checked(Source("https://example.org/a", "HEAD"))
        assert caught.value.may_pass == may_pass
        assert words in caught.value.message

    def test_the_look_up_prints_addresses_or_says_that_there_are_none(self) -> None:
        for host, code, words in (("127.0.0.1", 0, "127.0.0.1"), ("a" * 70 + ".example", 3, "")):
            ended = subprocess.run(
                [sys.executable, "-I", "-S", "-c", LOOK_UP, host, "80"], capture_output=True, text=True
            )
            assert (ended.returncode, ended.stdout.strip()) == (code, words), ended.stderr


@pytest.mark.parametrize(
    "line",
    [
        "remote: No space left on device",
        "remote: Permission denied (publickey).",
        "fatal: unable to access 'https://git.example/SSL certificate problem/': Empty reply from server",
    ],
)
def test_neither_a_server_nor_an_address_decides_why_a_fetch_failed(line: str) -> None:
    lines = [line, "fatal: the remote end hung up unexpectedly"]
    assert classify_git(lines, "https://git.example/SSL certificate problem")[0] == "passing"


def test_quoted_paths_are_read_as_git_writes_them(tmp_path: Path) -> None:
    names = ["plain", "d\u00e9p\u00f4t", 'a"b\\c', "tab\there", "new\nline", " blank "]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in names:
        (tmp_path / name).touch()
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    listed = subprocess.run(
        ["git", "-C", tmp_path, "ls-files"], capture_output=True, text=True, check=True
    ).stdout
    assert {unquoted(line) for line in listed.splitlines()} == set(names)


class TestLimits:
    def test_a_repository_with_too_many_files_is_refused_before_it_is_checked_out(self, bench: Bench) -> None:
        result = bench.run(bench.repository({f"{n}.txt": str(n) for n in range(20)}), max_repository_files=10)
        assert (result["reason"], category(result)) == ("repository_too_large", "user")
        assert result["message"] == "The repository has more than 10 files, the limit of this service."

    def test_a_small_pack_with_large_files_is_refused_before_it_is_checked_out(self, bench: Bench) -> None:
        repository = bench.repository({"zeros": "0" * 4_000_000})
        result = bench.run(repository, max_repository_bytes=2 * 1024**2)
        assert result["reason"] == "repository_too_large"
        assert result["message"] == "The repository is larger than 2 MiB, the limit of this service."

    def test_a_fetch_is_ended_as_soon_as_it_has_brought_too_much(self, bench: Bench, git: GitHttp) -> None:
        git.faults.append(stall_in_pack)
        noise = os.urandom(4_000_000)
        result = bench.run(bench.repository({"noise": noise}), max_repository_bytes=1024**2)
        assert result["reason"] == "repository_too_large"

    def test_a_fetch_that_takes_too_long_is_ended(self, bench: Bench, git: GitHttp) -> None:
        def fault(handler: Any) -> bool:
            handler.connection.settimeout(60)
            handler.connection.recv(1)  # until the client closes the connection
            return True

        git.faults.append(fault)
        result = bench.run(bench.repository(), fetch_seconds=1)
        assert (result["reason"], category(result)) == ("timeout", "timeout")
        assert result["message"] == "Fetching the repository took longer than 1 seconds and was ended."


class TestLinks:
    @pytest.mark.parametrize(
        ("path", "subdir"),
        [
            ("runtime.txt", None),
            ("Dockerfile", None),
            (".dockerignore", None),
            ("binder", None),
            (".binder", None),
            ("binder/environment.yml", None),
            ("deep/runtime.txt", "deep"),
            ("deep/binder/runtime.txt", "deep"),
            (".binder/apt.txt", None),
            ("deep/.binder/runtime.txt", "deep"),
            ("deep", "deep"),
            ("deep", "deep/er"),
            ("a/deep", "a/deep"),
        ],
    )
    @pytest.mark.parametrize("relative", [False, True])
    def test_a_link_out_of_the_repository_is_refused_where_files_are_read(
        self, tmp_path: Path, path: str, subdir: str | None, relative: bool
    ) -> None:
        (tmp_path / "outside" / "er").mkdir(parents=True)
        link = tmp_path / "tree" / path
        link.parent.mkdir(parents=True)
        link.symlink_to("../" * (path.count("/") + 1) + "outside" if relative else tmp_path / "outside")
        with pytest.raises(AttemptEnded) as caught:
            check_tree(str(tmp_path / "tree"), subdir or "")
        assert caught.value.reason == "unsafe_repository"
        assert f"The link {path} leads out of the repository" in caught.value.message

    def test_a_planted_secret_is_in_no_output(self, bench: Bench) -> None:
        (bench.directory / "secret").write_text(SECRET)
        repository = bench.repository()
        (repository.directory / "runtime.txt").symlink_to("../../secret")
        result = bench.run(repository, repository.commit({"README.md": "More."}))
        assert (result["reason"], category(result)) == ("unsafe_repository", "user")
        assert result["message"] == "The link runtime.txt leads out of the repository, to ../../secret."
        assert not (bench.directory / "arguments").exists()
        assert SECRET not in bench.log.read_text() + json.dumps(result)

    def test_a_pipe_is_refused_everywhere(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        os.mkfifo(tmp_path / "deep" / "pipe")
        with pytest.raises(AttemptEnded, match="The file deep/pipe is a device, a pipe or a socket"):
            check_tree(str(tmp_path), "")

    def test_a_link_that_leads_out_through_other_links_is_refused(self, bench: Bench) -> None:
        repository = bench.repository()
        (repository.directory / "data").mkdir()
        (repository.directory / "data" / "out").symlink_to("../../..")
        (repository.directory / "config").symlink_to("data")
        (repository.directory / "apt.txt").symlink_to("config/out/spec.json")
        result = bench.run(repository, repository.commit({"README.md": "More."}))
        assert result["reason"] == "unsafe_repository"
        assert "The link apt.txt leads out of the repository" in result["message"]

    def test_links_inside_and_links_that_nothing_reads_are_kept(self, bench: Bench) -> None:
        repository = bench.repository({"config/apt.txt": "vim\n", "data/a": "a"})
        (repository.directory / "binder").symlink_to("config")
        (repository.directory / "requirements.txt").symlink_to("./config/../config/apt.txt")
        (repository.directory / "circle").symlink_to("circle")
        (repository.directory / "absent").symlink_to("nowhere")
        (repository.directory / "data" / "shared").symlink_to("/srv/shared")
        result = bench.run(repository, repository.commit({"README.md": "More."}))
        assert result["reason"] == "ok", result
        assert os.readlink(bench.tree / "data" / "shared") == "/srv/shared"

    @pytest.mark.parametrize("subdir", ["..", "a/../..", "../tree", "a/b/../../..", "/", "/etc"])
    def test_a_directory_above_the_repository_is_refused(self, tmp_path: Path, subdir: str) -> None:
        with pytest.raises(AttemptEnded, match="leads out of the repository"):
            check_tree(str(tmp_path), subdir)

    def test_a_directory_that_does_not_exist_is_named(self, bench: Bench) -> None:
        result = bench.run(bench.repository(), subdir="no/such")
        assert (result["reason"], result["message"]) == (
            "no_environment",
            "The repository has no directory no/such.",
        )

    def test_a_submodule_is_not_fetched_into_a_link(self, bench: Bench) -> None:
        other, repository = bench.repository(name="other"), bench.repository()
        outside = bench.directory / "outside"
        outside.mkdir()
        (repository.directory / "way").symlink_to(outside)
        repository.commit({"README.md": "More."})
        repository.add_submodule("way2/sub", other.url, other.head())
        repository.git("config", "--file", ".gitmodules", "submodule.way2/sub.path", "way/sub")
        repository.git("add", ".gitmodules")
        # Git makes no such tree, but a server may send one: `way` is a link, and a directory with a submodule.
        link, file = repository.git("rev-parse", "HEAD:way"), repository.git("write-tree")
        inner = make_tree(repository, f"160000 commit {other.head()}\tsub")
        modules = repository.git("rev-parse", f"{file}:.gitmodules")
        listing = f"100644 blob {modules}\t.gitmodules\n120000 blob {link}\tway\n040000 tree {inner}\tway"
        commit = repository.git("commit-tree", "-m", "Crafted", make_tree(repository, listing))
        result = bench.run(repository, commit)
        assert list(outside.iterdir()) == [], result

    def test_a_submodule_path_through_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "way").symlink_to("/tmp")
        for path in ("way", "way/sub", "../sub", ".git/sub", "a/.GIT", "/etc"):
            with pytest.raises(AttemptEnded, match="through a link or out of the repository"):
                submodule_place(str(tmp_path), path, path)


def make_tree(repository: Repository, listing: str) -> str:
    command = ["git", "-C", str(repository.directory), "mktree", "--missing"]
    return subprocess.run(command, input=listing, capture_output=True, text=True, check=True).stdout.strip()


class TestPrograms:
    def test_nothing_of_a_repository_configures_git_or_is_run(self, bench: Bench) -> None:
        ran = bench.directory / "ran"
        repository = bench.repository(
            {
                ".gitattributes": "* filter=evil diff=evil\n",
                ".gitconfig": f'[filter "evil"]\n smudge = touch {ran}\n[core]\n fsmonitor = touch {ran}\n',
                "hooks/post-checkout": f"#!/bin/sh\ntouch {ran}\n".encode(),
            }
        )
        assert bench.run(repository)["reason"] == "ok", bench.texts()
        assert not ran.exists()
        assert not list((bench.tree / ".git").glob("hooks/*"))

    def test_repo2docker_gets_no_credentials_of_git(self, bench: Bench) -> None:
        home = bench.directory / "home-of-the-service"
        home.mkdir()
        (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}")
        bench.environment = {
            "HOME": str(home),
            "DOCKER_CONFIG": "",
            "PYTHONPATH": f":src:{home}",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"X-Token: {SECRET}",
        }
        assert bench.run(bench.repository())["reason"] == "ok", bench.texts()
        environment = dict(
            line.partition("=")[::2] for line in (bench.directory / "environment").read_text().splitlines()
        )
        assert SECRET not in str(environment)
        assert environment["HOME"] != str(home)
        assert not [name for name in environment if name.startswith(("DOCKER_", "GIT_CONFIG_VALUE"))]
        assert environment["PYTHONPATH"] == str(home)
        assert environment["GIT_DIR"] == os.devnull
        config = (bench.tree / ".git" / "config").read_text()
        assert SECRET not in config
        assert bench.git.server.url in config

    def test_credentials_of_the_operator_reach_the_server(self, bench: Bench, git: GitHttp) -> None:
        seen: list[str] = []

        def fault(handler: Any) -> bool:
            seen.append(handler.headers.get("Authorization", ""))
            if not seen[-1]:
                handler.send(401, headers=NEEDS_PASSWORD)
            return not seen[-1]

        git.faults.append(fault)
        store = bench.directory / "credentials"
        store.write_text(git.server.url.replace("://", "://robot:token@") + "\n")
        bench.environment = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": f"store --file={store}",
        }
        assert bench.run(bench.repository())["reason"] == "ok", bench.texts()
        assert any(seen)

    def test_a_submodule_elsewhere_gets_no_credentials_that_are_bound_to_no_host(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        seen: list[str] = []
        (tmp_path / "elsewhere").mkdir()
        with git_http(tmp_path / "elsewhere") as other:

            def fault(handler: Any) -> bool:
                seen.append(str(handler.headers))
                handler.send(401, headers=NEEDS_PASSWORD)
                return True

            other.faults.append(fault)
            repository = bench.repository()
            repository.add_submodule("sub", f"{other.server.url}/any", "1" * 40)
            bench.script("askpass", f"#!/bin/sh\necho {SECRET}\n")
            config = {
                "http.extraHeader": f"X-Token: {SECRET}",
                "credential.helper": f"!f() {{ echo username=me; echo password={SECRET}; }}; f",
            }
            bench.environment = {"GIT_CONFIG_COUNT": "2", "GIT_ASKPASS": str(bench.bin / "askpass")}
            for number, (key, value) in enumerate(config.items()):
                bench.environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
            result = bench.run(repository)
        assert result["reason"] == "submodule_failed"
        assert "asks for a password" in result["message"]
        assert seen
        assert SECRET not in str(seen)
        assert "Authorization" not in str(seen)
