"""The builder's client of Git LFS, against real servers on loopback."""

import base64
import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.builder import builder
from rabbit2docker.consumer.builder.builder import (
    AddressRules,
    GitAccess,
    HttpFailed,
    Target,
    UrlRefused,
    Web,
    fetch_large_files,
)
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason
from tests.support.certificates import write_certificates
from tests.support.fetch_bench import Bench
from tests.support.git_http import GitHttp, answer, git_http, redirect
from tests.support.git_lfs import ABSENT, ATTRIBUTES, LfsServer, pointer

SECRET = "planted-secret"
CONTENT = b"the content\n" * 100
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitHttp]:
    (tmp_path / "served").mkdir()
    with git_http(tmp_path / "served") as server:
        yield server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[GitHttp]:
    """Another server, which a repository may name."""
    (tmp_path / "elsewhere").mkdir()
    with git_http(tmp_path / "elsewhere") as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, git: GitHttp) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", git)


@pytest.fixture
def lfs(git: GitHttp) -> LfsServer:
    server = LfsServer({OID: CONTENT})
    git.faults.append(server)
    return server


class Download:
    """Fetches CONTENT in this process, as the builder does in one of its own."""

    def __init__(self, directory: Path, git: GitHttp, output: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.url = f"{git.server.url}/one"
        self.output = output

    def run(self, lfs_url: str | None = None, *objects: str, allow_private: bool = True) -> dict[str, Any]:
        """Return the record of the end, with what is missing."""
        job = {
            "url": lfs_url or f"{self.url}.git/info/lfs",
            "trusted": self.url,
            "allow_private": allow_private,
            "directory": str(self.directory),
            "objects": {oid: len(CONTENT) for oid in objects or [OID]},
        }
        (self.directory / "job.json").write_text(json.dumps(job))
        fetch_large_files(str(self.directory / "job.json"))
        records = [json.loads(line) for line in self.output.readouterr().out.splitlines()]
        missing = {oid: why for record in records for oid, why in record.get("missing", {}).items()}
        assert (self.directory / OID).exists() == (not missing and not records[-1]["end"])
        return {**records[-1], "missing": missing}

    def problem(self, lfs_url: str | None = None, **options: Any) -> str:
        """Return why the content is missing, which does not pass."""
        result = self.run(lfs_url, **options)
        assert not result.get("may_pass"), result
        return str(result["missing"].get(OID) or result["end"])


@pytest.fixture
def download(
    tmp_path: Path, git: GitHttp, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Download:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(builder, "HELPER_SECONDS", 120.0)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "objects").mkdir()
    return Download(tmp_path / "objects", git, capfd)


def config(home: Path, name: str, value: str) -> None:
    """Give the operator's git a setting."""
    subprocess.run(["git", "config", "--file", home / ".gitconfig", "--add", name, value], check=True)


def is_lfs(handler: Any) -> bool:
    """Return whether a request is for Git LFS."""
    return "/info/lfs/" in handler.path


def lfs_answers(status: int, body: bytes) -> Callable[[Any], bool]:
    """Return the fault of a server of Git LFS that always answers this."""

    def fault(handler: Any) -> bool:
        if not is_lfs(handler):
            return False
        handler.send(status, body)
        return True

    return fault


def object_at(href: str, **headers: str) -> str:
    """Return the answer of a server that has the content at an address."""
    download = {"href": href, "header": headers}
    return json.dumps({"objects": [{"oid": OID, "actions": {"download": download}}]})


def warning(bench: Bench, files: dict[str, str | bytes], **spec: Any) -> str:
    """Build a repository with files of Git LFS, and return the warning."""
    result = bench.run(bench.repository({**ATTRIBUTES, "a.bin": pointer(CONTENT), **files}), **spec)
    assert result["reason"] == "ok", (result, bench.texts())
    [text] = result["warnings"]
    assert f"Warning: {text}" in bench.texts()
    return str(text)


def only(bench: Bench, files: dict[str, str | bytes] | None = None, **spec: Any) -> None:
    """Build a repository with files of Git LFS, all of which come."""
    result = bench.run(bench.repository({**ATTRIBUTES, "a.bin": pointer(CONTENT), **(files or {})}), **spec)
    assert result["reason"] == "ok", (result, bench.texts())
    assert "warnings" not in result
    assert (bench.tree / "a.bin").read_bytes() == CONTENT


class TestContent:
    def test_content_takes_the_place_of_pointers_and_git_sees_no_change(
        self, bench: Bench, lfs: LfsServer
    ) -> None:
        small = lfs.add(b"small\n")
        only(
            bench, {"d é/b.bin": pointer(CONTENT), "c.bin": small, "plain.txt": ABSENT, "d.bin": "no pointer"}
        )
        assert (bench.tree / "d é/b.bin").read_bytes() == CONTENT
        assert (bench.tree / "c.bin").read_bytes() == b"small\n"
        assert (bench.tree / "plain.txt").read_text() == ABSENT
        [batch] = lfs.batches
        assert sorted(item["size"] for item in batch["objects"]) == [6, len(CONTENT)]
        status = ["git", "-C", str(bench.tree), "status", "--porcelain"]
        assert subprocess.run(status, capture_output=True, check=True).stdout == b""
        assert not (bench.tree / ".git" / "large-files").exists()

    def test_many_objects_are_asked_for_in_parts(self, download: Download, lfs: LfsServer) -> None:
        contents = [b"%1200d" % number for number in range(120)]
        for content in contents:
            lfs.add(content)
        assert (
            download.run(None, OID, *(hashlib.sha256(content).hexdigest() for content in contents))["end"]
            == ""
        )
        assert [len(batch["objects"]) for batch in lfs.batches] == [100, 21]
        assert sorted(
            path.read_bytes() for path in download.directory.iterdir() if path.suffix != ".json"
        ) == [
            *contents,
            CONTENT,
        ]

    def test_a_file_that_lfsconfig_leaves_out_is_not_fetched(self, bench: Bench, lfs: LfsServer) -> None:
        only(bench, {"data/b.bin": ABSENT, ".lfsconfig": '[lfs]\nfetchexclude = "data, other"\n'})
        assert (bench.tree / "data/b.bin").read_text() == ABSENT
        assert ".lfsconfig leaves 1 file" in "\n".join(bench.texts())

    def test_files_of_a_submodule_come_from_its_own_server(self, bench: Bench, lfs: LfsServer) -> None:
        inner = bench.repository({**ATTRIBUTES, "in.bin": pointer(CONTENT), "gone.bin": ABSENT}, "inner")
        outer = bench.repository()
        outer.add_submodule("sub", inner.url, inner.head())
        result = bench.run(outer)
        assert result["reason"] == "ok", result
        assert (bench.tree / "sub/in.bin").read_bytes() == CONTENT
        assert result["warnings"][0].startswith("1 file is missing of the submodule sub, such as gone.bin: ")


class TestMissing:
    def test_what_is_missing_is_named_and_the_others_come(self, bench: Bench, lfs: LfsServer) -> None:
        broken = pointer(CONTENT).replace("oid", "ext-0-x sha256:1\noid")
        text = warning(bench, {"gone.bin": ABSENT, "gone-too.bin": ABSENT, "odd.bin": broken})
        assert text.startswith("3 files are missing, such as gone")
        assert "does not have it (404): Object does not exist" in text
        assert (bench.tree / "a.bin").read_bytes() == CONTENT
        assert (bench.tree / "gone.bin").read_text() == ABSENT
        assert (bench.tree / "odd.bin").read_text() == broken

    def test_a_broken_pointer_is_said_without_asking_a_server(self, bench: Bench, lfs: LfsServer) -> None:
        broken = pointer(CONTENT) + "x-more 1\n"
        result = bench.run(bench.repository({**ATTRIBUTES, "odd.bin": broken}))
        assert "The pointer is broken" in result["warnings"][0]
        assert not lfs.batches

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (CONTENT[:-1] + b"?", "content with another SHA-256"),
            (CONTENT[:-1], f"sent {len(CONTENT) - 1} bytes, the pointer names {len(CONTENT)}"),
            (CONTENT + b"?", f"more than the {len(CONTENT)} bytes"),
        ],
    )
    def test_wrong_content_is_refused(
        self, download: Download, lfs: LfsServer, body: bytes, words: str
    ) -> None:
        lfs.objects[OID] = body
        assert words in download.problem()

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("<html>", "does not speak the protocol"),
            ("[" * 100_000, "does not speak the protocol"),
            ('{"objects": [1]}', "does not speak the protocol"),
            ('{"objects": []}', "gives no address"),
            ('{"transfer": "tus", "objects": []}', "basic transfer"),
            (object_at("http://[x"), "cannot be read"),
            (object_at("http://a:99999999/"), "cannot be read"),
            (object_at("/x", A="b\r\nc: d"), "header that is not valid"),
            (object_at("ssh://a.example/x"), "begins with `ssh:`"),
        ],
    )
    def test_an_odd_answer_is_no_defect_of_the_builder(
        self, download: Download, git: GitHttp, body: str, words: str
    ) -> None:
        git.faults.append(lfs_answers(200, body.encode()))
        assert words in download.problem()

    @pytest.mark.parametrize("status", [400, 403, 404, 410, 413, 422, 501, 509])
    def test_a_refusal_is_reported_in_the_words_of_the_server(
        self, download: Download, git: GitHttp, status: int
    ) -> None:
        body = b'{"message": "This repository is over its data quota."}'
        git.faults.append(lfs_answers(status, body))
        assert f"answered with status {status}: This repository is over its data quota." in download.problem()


class TestPassing:
    @pytest.mark.parametrize("path", ["/one.git/info/lfs", "/lfs-content/"])
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_an_error_of_the_server_may_pass(
        self, download: Download, git: GitHttp, lfs: LfsServer, path: str, status: int
    ) -> None:
        git.faults[:0] = [answer(status, times=1, path=path)]
        result = download.run()
        assert (result["may_pass"], result["missing"]) == (True, {})
        assert f"status {status}" in result["end"]
        assert download.run()["end"] == ""

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
            b"A" * 70_000,
        ],
    )
    def test_an_answer_that_is_no_http_may_pass(self, download: Download, git: GitHttp, said: bytes) -> None:
        def fault(handler: Any) -> bool:
            handler.wfile.write(said)
            handler.close_connection = True
            return True

        git.faults.append(fault)
        result = download.run()
        assert result["may_pass"], result
        assert git.server.url.removeprefix("http://") in result["end"]

    def test_a_cut_connection_may_pass(self, download: Download, git: GitHttp, lfs: LfsServer) -> None:
        def fault(handler: Any) -> bool:
            if not handler.path.startswith("/lfs-content/"):
                return False
            handler.cut(200, {}, CONTENT)
            return True

        git.faults[:0] = [fault]
        result = download.run()
        assert (result["may_pass"], "broke off in the middle" in result["end"]) == (True, True)

    def test_no_image_has_pointers_because_a_server_was_down(self, bench: Bench, git: GitHttp) -> None:
        git.faults.append(lfs_answers(503, b'{"message": "Maintenance"}'))
        result = bench.run(bench.repository({**ATTRIBUTES, "a.bin": pointer(CONTENT)}), fetch_retries=1)
        reason = FailureReason(result["reason"])
        assert (reason, CATEGORY_OF[reason].value) == ("fetch_interrupted", "infrastructure")
        assert "status 503: Maintenance" in result["message"]
        assert sum("/info/lfs/" in request for request in git.requests) == 2


class TestLimits:
    def test_the_sizes_of_pointers_count_before_anything_is_fetched(
        self, bench: Bench, lfs: LfsServer
    ) -> None:
        huge = pointer(CONTENT).replace(f"size {len(CONTENT)}", f"size {10**17}")
        result = bench.run(bench.repository({**ATTRIBUTES, "a.bin": huge}), max_repository_bytes=2 * 1024**2)
        assert result["reason"] == "repository_too_large"
        assert not lfs.batches

    def test_one_object_for_many_pointers_counts_for_each(self, bench: Bench, lfs: LfsServer) -> None:
        content = b"0" * 500_000
        files = {f"{number}.bin": lfs.add(content) for number in range(10)}
        result = bench.run(bench.repository({**ATTRIBUTES, **files}), max_repository_bytes=2 * 1024**2)
        assert result["reason"] == "repository_too_large"
        assert not lfs.batches

    def test_a_server_that_sends_nothing_is_ended_with_the_fetch(self, bench: Bench, git: GitHttp) -> None:
        def fault(handler: Any) -> bool:
            if not is_lfs(handler):
                return False
            handler.connection.settimeout(60)
            handler.connection.recv(1)  # until the client closes the connection
            return True

        git.faults.append(fault)
        result = bench.run(bench.repository({**ATTRIBUTES, "a.bin": pointer(CONTENT)}), fetch_seconds=4)
        assert result["reason"] == "timeout"


class TestAddresses:
    """A proxy plays the internet; what it is asked for is what the builder would connect to."""

    @pytest.fixture
    def internet(self, monkeypatch: pytest.MonkeyPatch, download: Download, git: GitHttp) -> Download:
        monkeypatch.setenv("http_proxy", git.server.url)
        download.url = "http://git.example.org/one"
        return download

    def test_a_proxy_connects_to_what_is_allowed(self, internet: Download, lfs: LfsServer) -> None:
        assert internet.run(allow_private=False)["end"] == ""
        assert len(lfs.headers) == 2

    @pytest.mark.parametrize(
        "url",
        [
            "http://169.254.169.254/latest",
            "http://[::ffff:127.0.0.1]/x",
            "http://db.internal/x",
            "http://2130706433/",
        ],
    )
    def test_a_server_inside_the_network_is_not_asked(
        self, internet: Download, lfs: LfsServer, url: str
    ) -> None:
        assert "is inside the network of the service" in internet.problem(url, allow_private=False)
        assert not lfs.headers

    def test_the_repository_of_a_build_cannot_name_one(self, bench: Bench, lfs: LfsServer) -> None:
        bench.environment |= {"http_proxy": bench.git.server.url, "no_proxy": ""}
        files = {".lfsconfig": "[lfs]\nurl = http://169.254.169.254/latest\n"}
        repository = bench.repository({**ATTRIBUTES, "a.bin": pointer(CONTENT), **files})
        public = f"http://git.example.org/{repository.name}"
        result = bench.run(public, repository.head(), allow_private_addresses=False)
        assert result["reason"] == "ok", (result, bench.texts())
        assert "names 169.254.169.254, which is inside the network" in result["warnings"][0]
        assert not lfs.headers

    def test_a_download_inside_the_network_is_not_asked_for(self, internet: Download, lfs: LfsServer) -> None:
        lfs.href = "http://169.254.169.254/lfs-content/{oid}"
        assert "names 169.254.169.254, which is inside the network" in internet.problem(allow_private=False)
        assert len(lfs.headers) == len(lfs.batches) == 1

    def test_a_redirect_into_the_network_is_not_followed(
        self, internet: Download, git: GitHttp, lfs: LfsServer
    ) -> None:
        git.faults[:0] = [redirect("/lfs-content", "http://10.0.0.7/lfs-content")]
        assert "names 10.0.0.7, which is inside the network" in internet.problem(allow_private=False)
        assert len(lfs.headers) == 1

    def test_a_circle_of_redirects_comes_to_an_end(
        self, download: Download, git: GitHttp, lfs: LfsServer
    ) -> None:
        git.faults[:0] = [redirect("/lfs-content", f"{git.server.url}/lfs-content")]
        assert "redirects too many times" in download.problem()

    @pytest.mark.parametrize(
        "url",
        [
            "ssh://git@example.org/x",
            "file:///etc/passwd",
            "git://example.org/x",
            "https://me:it@example.org/x",
        ],
    )
    def test_other_kinds_of_addresses_are_refused(self, download: Download, lfs: LfsServer, url: str) -> None:
        assert "The address of the server for Git LFS, " in download.problem(url)
        assert not lfs.headers

    def web(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Web:
        """Return a client whose name service has these addresses."""
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        return Web(AddressRules(allow_private=False), GitAccess([]))

    def test_a_name_that_resolves_to_an_internal_address_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web = self.web(monkeypatch, "93.184.215.14", "127.0.0.1")
        with pytest.raises(UrlRefused, match=r"leads to example\.org at 127\.0\.0\.1, inside the network"):
            web.request("https://example.org/x", {}).__enter__()

    def test_the_address_that_was_judged_is_connected_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        web = self.web(monkeypatch, "93.184.215.14")
        asked: list[tuple[str, int]] = []

        def connect(address: tuple[str, int], *_: object) -> socket.socket:
            asked.append(address)
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(socket, "create_connection", connect)
        with pytest.raises(HttpFailed, match="gave no answer"):
            web.request("http://example.org/x", {}).__enter__()
        assert asked == [("93.184.215.14", 80)]

    def test_a_name_that_does_not_exist_is_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        web = self.web(monkeypatch)
        for code, may_pass in ((socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)):

            def look_up(*_: object, error: int = code, **__: object) -> None:
                raise socket.gaierror(error, "?")

            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            with pytest.raises(HttpFailed) as caught:
                web._addresses(Target("https", "example.org", 443))
            assert caught.value.may_pass == may_pass


class TestCertificates:
    @pytest.fixture
    def secure(self, tmp_path: Path) -> Iterator[str]:
        """The URL of a server of Git LFS whose certificate is from the authority of the tests."""
        write_certificates(tmp_path / "certificates")
        (tmp_path / "secure").mkdir()
        with git_http(tmp_path / "secure", certificates=tmp_path / "certificates") as server:
            url = server.server.url
            server.faults.append(LfsServer({OID: CONTENT}, href=f"{url}/lfs-content/{{oid}}"))
            yield f"{url}/lfs"

    def test_an_unknown_authority_is_no_reason_to_try_again(self, download: Download, secure: str) -> None:
        problem = download.problem(secure)
        assert f"the certificate of {secure[8:-4]} is not valid: unable to get local issuer" in problem

    def test_an_authority_that_git_is_configured_with_is_trusted(
        self, download: Download, secure: str, tmp_path: Path
    ) -> None:
        config(Path(os.environ["HOME"]), "http.sslCAInfo", str(tmp_path / "certificates" / "ca.pem"))
        assert download.run(secure)["end"] == ""

    def test_a_server_with_encryption_leads_to_none_without(
        self, download: Download, tmp_path: Path, secure: str, git: GitHttp
    ) -> None:
        with git_http(tmp_path / "secure", certificates=tmp_path / "certificates") as redirecting:
            redirecting.faults.append(redirect("/lfs", f"{git.server.url}/lfs"))
            config(Path(os.environ["HOME"]), "http.sslVerify", "false")
            problem = download.problem(f"{redirecting.server.url}/lfs")
        assert "leads from https:// to an address without encryption" in problem
        assert not git.requests


class TestCredentials:
    LOGIN = "Basic " + base64.b64encode(f"robot:{SECRET}".encode()).decode()
    HELPER = f"!f() {{ echo username=robot; echo password={SECRET}; }}; f"

    def test_the_server_of_the_repository_gets_them_when_it_asks(self, bench: Bench, lfs: LfsServer) -> None:
        lfs.login, lfs.token = self.LOGIN, "RemoteAuth one"
        bench.environment["HOME"] = str(bench.directory)
        config(bench.directory, "credential.helper", self.HELPER)
        only(bench)
        assert [sent.get("authorization") for sent in lfs.headers] == [None, self.LOGIN, "RemoteAuth one"]
        assert SECRET not in bench.log.read_text()

    def test_a_server_asks_for_a_password_and_there_is_none(self, download: Download, lfs: LfsServer) -> None:
        lfs.login = self.LOGIN
        assert "asks for a password: Credentials needed" in download.problem()

    def test_credentials_for_another_server_are_used_there(self, download: Download, other: GitHttp) -> None:
        other.faults.append(LfsServer({OID: CONTENT}, login=self.LOGIN))
        home = Path(os.environ["HOME"])
        (home / "credentials").write_text(other.server.url.replace("://", f"://robot:{SECRET}@") + "\n")
        config(home, "credential.helper", f"store --file={home / 'credentials'}")
        assert download.run(f"{other.server.url}/lfs")["end"] == ""

    @pytest.mark.parametrize("through", ["lfsconfig", "href", "redirect"])
    def test_a_server_that_a_repository_names_gets_no_credentials_of_another_one(
        self, download: Download, git: GitHttp, other: GitHttp, lfs: LfsServer, through: str
    ) -> None:
        evil = LfsServer({OID: CONTENT}, login=self.LOGIN, token=self.LOGIN)
        other.faults.append(evil)
        home = Path(os.environ["HOME"])
        config(home, "credential.helper", self.HELPER)
        config(home, "http.extraHeader", f"X-Token: {SECRET}")
        (home / ".netrc").write_text(f"default login robot password {SECRET}")
        if through == "href":
            lfs.href = f"{other.server.url}/lfs-content/{{oid}}"
        elif through == "redirect":
            git.faults[:0] = [redirect("/lfs-content", f"{other.server.url}/lfs-content")]
            lfs.token = "RemoteAuth one"
        problem = download.problem(f"{other.server.url}/lfs" if through == "lfsconfig" else None)
        assert f"{other.server.url.removeprefix('http://')} asks for a password" in problem
        assert evil.headers
        for secret in (SECRET, self.LOGIN, "RemoteAuth"):
            assert secret not in str(evil.headers)
        assert all(sent["x-token"] == SECRET for sent in lfs.headers)

    def test_an_address_that_the_operator_maps_is_used_as_git_uses_it(
        self, download: Download, git: GitHttp, lfs: LfsServer
    ) -> None:
        lfs.login = self.LOGIN
        mapped = git.server.url.replace("://", f"://robot:{SECRET}@") + "/"
        config(Path(os.environ["HOME"]), f"url.{mapped}.insteadOf", "https://git.example.org/")
        download.url = "https://git.example.org/one"
        assert download.run(allow_private=False)["end"] == ""
