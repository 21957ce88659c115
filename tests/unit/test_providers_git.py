"""Specs of git repositories resolve to exactly one commit, or are rejected with the reason."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rabbit2docker.consumer.providers import git_urls
from rabbit2docker.consumer.providers.address_policy import AddressPolicy
from rabbit2docker.consumer.providers.git import GitProvider
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.ports import free_port
from tests.support.waiting import eventually

OPEN = ProviderSettings(allow_private_addresses=True)
SHA = "38e50c71130fcf56655685f0992f4f125bef3879"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "t"), ("EMAIL", "t@example.org"))
}


class Work:
    """A bare repository with branches and tags that are easily confused."""

    def __init__(self, root: Path) -> None:
        self.path = root / "work.git"
        self.git("init", "-q", "--bare", "--initial-branch=main", str(self.path), where=root)
        tree = self.git("mktree", feed="")
        self.commits = [self.git("commit-tree", tree, "-m", str(number)) for number in range(5)]
        main, foo, tagged, branch, tag = self.commits
        self.git("update-ref", "refs/heads/main", main)
        self.git("update-ref", "refs/heads/foo/main", foo)
        self.git("update-ref", "refs/heads/a/refs/heads/main", foo)
        self.git("tag", "-a", "v1", tagged, "-m", "first")
        self.git("update-ref", "refs/heads/same", branch)
        self.git("update-ref", "refs/tags/same", tag)
        self.git("update-ref", "refs/pull/7/head", tagged)
        self.tag_object = self.git("rev-parse", "v1")

    def git(self, *arguments: str, where: Path | None = None, feed: str | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=where or self.path,
            env=os.environ | IDENTITY,
            input=feed,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("git"))


class Host:
    """Serves repositories over smart HTTP with git's own server program, and misbehaves at other paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        app = web.Application()
        app.router.add_route("*", "/status/{status}/{rest:.*}", self._status)
        app.router.add_route("*", "/hang/{rest:.*}", self._hang)
        app.router.add_route("*", "/page/{rest:.*}", self._page)
        app.router.add_route("*", "/flood/{rest:.*}", self._flood)
        app.router.add_route("*", "/moved/{rest:.*}", self._moved)
        app.router.add_route("*", "/loop/{rest:.*}", self._loop)
        app.router.add_route("*", "/lent/{rest:.*}", self._lent)
        app.router.add_route("*", "/login/{rest:.*}", self._login)
        app.router.add_route("*", "/away/{rest:.*}", self._away)
        app.router.add_route("*", "/{rest:.*}", self._serve)
        self.server = TestServer(app)
        self.released = asyncio.Event()

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    async def _status(self, request: web.Request) -> web.Response:
        headers = {"WWW-Authenticate": "Basic"} if request.match_info["status"] == "401" else {}
        return web.Response(status=int(request.match_info["status"]), headers=headers)

    async def _hang(self, _request: web.Request) -> web.Response:
        await self.released.wait()
        return web.Response()

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(
            text="<!doctype html>\n<html>\n<body>hello</body>\n</html>\n", content_type="text/html"
        )

    async def _flood(self, _request: web.Request) -> web.Response:
        lines = "".join(f"{number:040x}\trefs/heads/b{number}\n" for number in range(200_000))
        return web.Response(text=lines)

    async def _moved(self, request: web.Request) -> web.Response:
        return web.Response(
            status=301, headers={"Location": f"/{request.match_info['rest']}?{request.query_string}"}
        )

    async def _lent(self, request: web.Request) -> web.Response:
        return web.Response(
            status=302, headers={"Location": f"/{request.match_info['rest']}?{request.query_string}"}
        )

    async def _loop(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": str(request.rel_url)})

    async def _login(self, _request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/page/sign-in"})

    async def _away(self, request: web.Request) -> web.Response:
        location = f"{request.match_info['rest']}?{request.query_string}"
        return web.Response(status=301, headers={"Location": location})

    async def _serve(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": "",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend",
            env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate(await request.read())
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200 OK").split()[0])
        return web.Response(status=status, headers=headers, body=body)


@pytest.fixture
async def host(work: Work) -> AsyncIterator[Host]:
    host = Host(work.path.parent)
    await host.server.start_server()
    yield host
    host.released.set()
    await host.server.close()


def spec(url: str, ref: str = "HEAD") -> str:
    return f"{quote(url, safe='')}/{quote(ref, safe='')}"


async def refusal(url: str, ref: str = "HEAD", *, settings: ProviderSettings = OPEN) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await GitProvider(settings).resolve(spec(url, ref))
    return caught.value


@pytest.mark.parametrize(
    ("ref", "number"),
    [
        ("HEAD", 0),
        ("main", 0),
        ("foo/main", 1),
        ("refs/heads/main", 0),
        ("heads/main", 0),
        ("v1", 2),
        ("refs/tags/v1", 2),
        ("same", 3),
        ("tags/same", 4),
        ("refs/tags/same", 4),
        ("pull/7/head", 2),
    ],
)
async def test_a_ref_resolves_to_its_commit(host: Host, work: Work, ref: str, number: int) -> None:
    repository = await GitProvider(OPEN).resolve(spec(host.url("/work.git"), ref))
    assert repository.resolved_ref == work.commits[number]
    assert repository.repo_url == host.url("/work.git")


async def test_the_full_name_of_the_ref_is_kept_for_servers_that_give_out_refs_only(
    host: Host, work: Work
) -> None:
    for ref, name in {
        "main": "refs/heads/main",
        "pull/7/head": "refs/pull/7/head",
        "v1": "refs/tags/v1",
    }.items():
        assert (await GitProvider(OPEN).resolve(spec(host.url("/work.git"), ref))).source_ref == name
    assert (await GitProvider(OPEN).resolve(spec(host.url("/work.git"), SHA))).source_ref is None


async def test_a_full_commit_id_of_a_sha256_repository_is_taken_as_it_is(host: Host) -> None:
    commit = "ab" * 32
    repository = await GitProvider(OPEN).resolve(spec(host.url("/work.git"), commit))
    assert (repository.resolved_ref, host.asked) == (commit, [])


@pytest.mark.parametrize("ref", ["mai", "foo", "MAIN", "abcdef0", f"{SHA}0", SHA * 2, "nowhere"])
async def test_an_incomplete_or_unknown_ref_is_not_found(host: Host, ref: str) -> None:
    error = await refusal(host.url("/work.git"), ref)
    assert error.reason is RejectReason.REF_NOT_FOUND
    assert ("full id of 40 characters" in error.message) == (ref in ("abcdef0", f"{SHA}0", SHA * 2))


async def test_a_full_commit_id_needs_no_request_to_the_host(host: Host) -> None:
    for written in (SHA, SHA.upper()):
        repository = await GitProvider(OPEN).resolve(spec(host.url("/work.git"), written))
        assert repository.resolved_ref == SHA
    assert host.asked == []


async def test_an_empty_repository_has_no_default_branch(host: Host, work: Work) -> None:
    work.git("init", "-q", "--bare", str(work.path.parent / "empty.git"))
    error = await refusal(host.url("/empty.git"))
    assert (error.reason, "empty" in error.message) == (RejectReason.REF_NOT_FOUND, True)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing.git", RejectReason.REPOSITORY_NOT_FOUND),
        ("/status/404/r", RejectReason.REPOSITORY_NOT_FOUND),
        ("/status/410/r", RejectReason.REPOSITORY_NOT_FOUND),
        ("/page/r", RejectReason.REPOSITORY_NOT_FOUND),
        ("/status/401/r", RejectReason.REPOSITORY_PRIVATE),
        ("/status/403/r", RejectReason.REPOSITORY_PRIVATE),
    ],
)
async def test_an_unreadable_repository_is_rejected_with_the_reason(
    host: Host, path: str, reason: RejectReason
) -> None:
    error = await refusal(host.url(path))
    assert error.reason is reason
    assert "Check the address" in error.message


@pytest.mark.parametrize("path", ["/status/500/r", "/status/503/r", "/status/429/r"])
async def test_errors_of_the_host_are_transient(host: Host, path: str) -> None:
    with pytest.raises(ProviderUnavailable, match="at the moment"):
        await GitProvider(OPEN).resolve(spec(host.url(path)))


async def test_an_unreachable_host_is_transient(unused_tcp_port: int) -> None:
    with pytest.raises(ProviderUnavailable, match="at the moment"):
        await GitProvider(OPEN).resolve(spec(f"http://127.0.0.1:{unused_tcp_port}/r"))


async def test_git_and_its_helpers_are_killed_when_the_host_hangs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    real = asyncio.create_subprocess_exec

    async def noting(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        process = await real(*arguments, **options)  # type: ignore[arg-type]
        groups.append(process.pid)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noting)
    settings = ProviderSettings(allow_private_addresses=True, timeout=0.5)
    with pytest.raises(ProviderUnavailable, match=r"within 0\.5 seconds"):
        await GitProvider(settings).resolve(spec(host.url("/hang/r")))
    # A killed process is still listed until the kernel has had time to end it.
    await eventually(lambda: not _living(groups[0]))


def _living(group: int) -> list[str]:
    """Return the programs of a process group that have not ended; ended ones may still wait to be reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _parent, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


async def test_a_host_that_sends_too_much_is_transient(host: Host) -> None:
    with pytest.raises((ProviderUnavailable, RequestRejected)):
        await GitProvider(OPEN).resolve(spec(host.url("/flood/r")))


@pytest.mark.parametrize(
    ("start", "built"), [("/moved", ""), ("/lent", "/lent"), ("/lent/moved", "/lent/moved")]
)
async def test_a_redirect_is_followed_and_a_permanent_one_pinned(
    host: Host, work: Work, start: str, built: str
) -> None:
    async with aiohttp.ClientSession() as session:
        repository = await GitProvider(OPEN, session).resolve(spec(host.url(f"{start}/work.git"), "main"))
    assert repository.resolved_ref == work.commits[0]
    assert repository.repo_url == host.url(f"{built}/work.git")
    assert repository.build_slug == host.url(f"{start}/work.git"), "names stay those of the spec"
    assert bool(repository.notice) == (start != built)


async def test_a_redirect_to_an_internal_address_is_rejected(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is strict, but the first address counts as public: as if it were a host of the requester."""
    first = host.url("/moved/work.git")
    strict, judge = AddressPolicy(ProviderSettings()), AddressPolicy.resolve

    async def resolve(_self: AddressPolicy, url: str) -> list[str]:
        return [] if url == first else await judge(strict, url)

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(RequestRejected, match="inside this network") as caught:
            await GitProvider(OPEN, session).resolve(spec(first, "main"))
    assert caught.value.reason is RejectReason.REFUSED_URL
    assert host.asked == []


@pytest.mark.parametrize(
    ("path", "reason", "words"),
    [
        ("/loop/r", RejectReason.REPOSITORY_NOT_FOUND, "redirects too many times"),
        ("/login/r", RejectReason.REPOSITORY_PRIVATE, "/page/sign-in, which is not a git repository"),
        (
            "/away/http://no-such-host.invalid/r",
            RejectReason.REPOSITORY_NOT_FOUND,
            "redirects to http://no-such-host.invalid/r. There is no host no-such-host.invalid.",
        ),
        ("/away/ftp://127.0.0.1/r", RejectReason.REFUSED_URL, "begins with `ftp:`"),
    ],
)
async def test_redirects_without_a_repository_at_their_end_are_rejected(
    host: Host, path: str, reason: RejectReason, words: str
) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(RequestRejected) as caught:
            await GitProvider(OPEN, session).resolve(spec(host.url(path)))
    assert (caught.value.reason, words in caught.value.message) == (reason, True), caught.value.message


async def test_git_connects_to_the_address_that_was_checked(
    host: Host, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_self: AddressPolicy, _url: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    url = f"http://repository.invalid:{host.server.port}/work.git"
    assert (await GitProvider(OPEN).resolve(spec(url, "main"))).resolved_ref == work.commits[0]


async def test_a_redirect_is_looked_up_at_the_address_that_was_checked(
    host: Host, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS has no answer for the name, as an attacker's may have another one for the second question."""

    async def resolve(_self: AddressPolicy, _url: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    url = f"http://repository.invalid:{host.server.port}/moved/work.git"
    async with open_session(OPEN) as session:
        found = await GitProvider(OPEN, session).resolve(spec(url, "main"))
    assert found.resolved_ref == work.commits[0]


@pytest.mark.parametrize("written", ["repository.invalid", "Repository.INVALID.", "repository.invalid:9"])
async def test_gits_own_protocol_connects_to_the_address_that_was_checked_and_names_the_host(
    written: str, work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "repository.invalid").symlink_to(work.path.parent)
    daemon_port = free_port()
    daemon = await asyncio.create_subprocess_exec(
        "git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={daemon_port}",
        f"--interpolated-path={tmp_path / 'hosts'}/%H%D", start_new_session=True,
    )  # fmt: skip

    async def resolve(_self: AddressPolicy, _url: str) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]  # nothing listens at the first

    monkeypatch.setattr(AddressPolicy, "resolve", resolve)
    monkeypatch.setitem(git_urls.DEFAULT_PORTS, "git", daemon_port)
    url = f"git://{written.replace(':9', f':{daemon_port}')}/work.git"

    async def resolved() -> str | None:
        with suppress(ProviderUnavailable):  # the daemon starts
            return (await GitProvider(OPEN).resolve(spec(url, "main"))).resolved_ref
        return None

    try:
        assert await eventually(resolved) == work.commits[0]
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        await daemon.wait()


async def test_git_does_not_inherit_credentials_or_configuration(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    (tmp_path / ".gitconfig").write_text(
        f'[url "{host.url("/work.git")}"]\n\tinsteadOf = {host.url("/nothing.git")}\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_ASKPASS", "/bin/echo")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.extraHeader")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Authorization: s3cret")
    assert (await refusal(host.url("/nothing.git"))).reason is RejectReason.REPOSITORY_NOT_FOUND
    assert (await refusal(host.url("/status/401/r"))).reason is RejectReason.REPOSITORY_PRIVATE


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/r", "http://localhost/r", "https://2130706433/r", "https://git.ns.svc/r"]
)
async def test_an_internal_address_is_rejected_even_with_a_full_commit_id(url: str) -> None:
    for ref in ("HEAD", SHA):
        assert (await refusal(url, ref, settings=ProviderSettings())).reason is RejectReason.REFUSED_URL


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https%3A%2F%2Fexample.org%2Fr", RejectReason.INVALID_SPEC),
        ("https%3A%2F%2Fexample.org%2Fr/", RejectReason.INVALID_SPEC),
        ("/HEAD", RejectReason.INVALID_SPEC),
        ("", RejectReason.INVALID_SPEC),
        ("https://example.org/r/HEAD", RejectReason.REFUSED_URL),
        ("file%3A%2F%2F%2Fetc/HEAD", RejectReason.REFUSED_URL),
        ("%2Fetc%2Fpasswd/HEAD", RejectReason.REFUSED_URL),
        ("ext%3A%3Ash%20-c%20id/HEAD", RejectReason.REFUSED_URL),
        ("--upload-pack%3Did/HEAD", RejectReason.REFUSED_URL),
        ("git%40github.com%3Ao%2Fr/HEAD", RejectReason.REFUSED_URL),
        ("https%3A%2F%2Fme%3As3cret%40example.org%2Fr/HEAD", RejectReason.REFUSED_URL),
        ("https%3A%2F%2Fexample.org%2Fr/--upload-pack%3Did", RejectReason.REFUSED_URL),
        ("https%3A%2F%2Fexample.org%2Fr/ma*n", RejectReason.INVALID_SPEC),
        ("https%3A%2F%2Fexample.org%2Fr/HEAD~1", RejectReason.INVALID_SPEC),
        ("https%3A%2F%2Fexample.org%2Fr/a%0Ab", RejectReason.INVALID_SPEC),
    ],
)
def test_an_invalid_spec_is_rejected_without_a_request_to_the_host(text: str, reason: RejectReason) -> None:
    with pytest.raises(RequestRejected) as caught:
        GitProvider(OPEN).check(text)
    assert caught.value.reason is reason
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https%3A%2F%2Fgithub.com%2Fjupyterhub%2Fzero-to-jupyterhub-k8s/0.8.0", "https://github.com/jupyterhub/zero-to-jupyterhub-k8s"),
        ("git%40github.com%3Ao%2Fr.git/HEAD", "ssh://git@github.com/o/r.git"),
        ("http%3A%2F%2F127.0.0.1%3A9%2Fr/a%2Fb", "http://127.0.0.1:9/r"),
        ("https%3A%2F%2Fdev.azure.com%2Forg%2FMy%20Project%2F_git%2Fr/HEAD", "https://dev.azure.com/org/My%20Project/_git/r"),
        ("https%3A%2F%2Fdev.azure.com%2Forg%2FMy%2520Project%2F_git%2Fr/HEAD", "https://dev.azure.com/org/My%20Project/_git/r"),
    ],
)  # fmt: skip
def test_a_git_repository_is_named_as_in_binderhub(text: str, url: str) -> None:
    repository = GitProvider(ProviderSettings()).pin(text, SHA)
    assert (repository.repo_url, repository.build_slug) == (url, url)
    assert (repository.resolved_ref, repository.content_provider) == (SHA, "Git")


@pytest.mark.parametrize(
    "url", ["https://exa mple.org/r", "https://example.org/a\tb", "https://example.org\\b"]
)
def test_blanks_that_are_no_part_of_a_path_are_rejected_with_advice(url: str) -> None:
    with pytest.raises(RequestRejected, match="write %20") as caught:
        GitProvider(OPEN).check(spec(url))
    assert caught.value.reason is RejectReason.REFUSED_URL


async def test_a_version_in_front_of_an_appended_head_is_suggested(host: Host) -> None:
    error = await refusal(host.url("/work.git"), "gone/HEAD")
    assert "Did you mean 'gone'?" in error.message
