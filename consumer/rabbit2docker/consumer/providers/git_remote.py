"""Look-ups in a git repository elsewhere: its refs, and commits by the beginning of their ids.

What can be read without credentials is. They are offered to a host only if it asks, and to no other host.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.credentials import TenantAccess, endpoint
from rabbit2docker.consumer.git_files import GitFiles, written
from rabbit2docker.consumer.providers.address_policy import AddressPolicy, literal_address
from rabbit2docker.consumer.providers.git_errors import is_redirect, may_need_login, translated
from rabbit2docker.consumer.providers.git_process import Ended, run_git
from rabbit2docker.consumer.providers.git_urls import shown
from rabbit2docker.consumer.providers.http import judged
from rabbit2docker.consumer.providers.pinned_connection import connector, ssh_options
from rabbit2docker.consumer.providers.refs import is_object_id
from rabbit2docker.errors import Dependency, DependencyKind, ProviderUnavailable, RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

MAX_REDIRECTS: Final = 3
HISTORY_BLOCKS: Final = 262_144
"""Largest file, in blocks of 1,024 bytes, of a history that is fetched to find a commit."""

_SERVICE = "/info/refs?service=git-upload-pack"


@dataclass(frozen=True, slots=True)
class Listing:
    """The refs of a repository."""

    url: str
    """The address that has them, after redirects."""
    refs: dict[str, str]
    moved_to: str | None
    """The address to which the repository has moved for good."""
    is_private: bool
    """True if it could be read with credentials only."""


class GitRemote:
    """Asks git servers."""

    def __init__(
        self,
        policy: AddressPolicy,
        session: aiohttp.ClientSession | None,
        breakers: Breakers,
        seconds: float,
    ) -> None:
        """Take the policy for addresses, and the seconds that an answer may take."""
        self._policy = policy
        self._session = session
        self._breakers = breakers
        self._seconds = seconds

    async def list_refs(
        self, url: str, patterns: list[str], addresses: list[str], access: TenantAccess
    ) -> Listing:
        """Return the refs that match the patterns. Redirects are followed to allowed addresses only."""
        is_permanent, is_first, is_private = True, True, False
        for _ in range(MAX_REDIRECTS + 1):
            with self._breakers.guard(self._host_of(url)):
                ended, had_credentials = await self._list(url, patterns, addresses, access)
            is_private = is_private or had_credentials
            if ended.code == 0:
                moved_to = None if is_first or not is_permanent else url
                return Listing(url, _read_refs(ended.stdout), moved_to, is_private)
            target, is_for_good = await self._redirected(url, addresses, access if had_credentials else None)
            is_permanent, is_first = is_permanent and is_for_good, False
            addresses = await self._resolve_redirect(url, target)
            url = target
        raise RequestRejected(
            RejectReason.REPOSITORY_NOT_FOUND,
            f"{shown(url)} redirects too many times. Use its final address.",
        )

    async def _resolve_redirect(self, url: str, target: str) -> list[str]:
        """Return the addresses of a redirect's target, or say whose target it is that cannot be used."""
        try:
            return await self._policy.resolve(target)
        except RequestRejected as error:
            raise RequestRejected(
                error.reason, f"{shown(url)} redirects to {shown(target)}. {error.message}"
            ) from error

    async def _list(
        self, url: str, patterns: list[str], addresses: list[str], access: TenantAccess
    ) -> tuple[Ended, bool]:
        """Return a listing or a redirect, and whether credentials were used."""
        arguments = ["ls-remote", "--symref", "--", url, *patterns]
        needs_key = endpoint(url)[0] == "ssh"
        if not needs_key:
            ended = await self._run(arguments, url, addresses, None)
            if ended.code == 0 or is_redirect(ended.stderr):
                return ended, False
            if not (access.has_login(url) and may_need_login(ended.stderr)):
                raise translated(url, ended.stderr, self._host_of(url), with_credentials=False)
        ended = await self._list_privately(arguments, url, addresses, access)
        if may_need_login(ended.stderr) and await access.withdraw(url):
            ended = await self._list_privately(arguments, url, addresses, access)
        if ended.code == 0 or is_redirect(ended.stderr):
            return ended, True
        raise translated(url, ended.stderr, self._host_of(url), with_credentials=True)

    async def _list_privately(
        self, arguments: list[str], url: str, addresses: list[str], access: TenantAccess
    ) -> Ended:
        async with written(await access.for_url(url)) as files:
            return await self._run(arguments, url, addresses, files)

    async def find_commit(self, url: str, start: str, access: TenantAccess) -> str | None:
        """Return the only commit in the history of all branches and tags whose id starts so; None if there is none.

        The history is fetched without files. One that is too large for that counts as having no such commit.
        """
        addresses = await self._policy.resolve(url)
        directory = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="r2d-history-")
        try:
            async with written(await access.for_url(url)) as files:
                return await self._find_commit(url, start, addresses, files, directory.name)
        except ProviderUnavailable as error:
            raise RequestRejected(
                RejectReason.REF_NOT_FOUND,
                f"{shown(url)} has no branch or tag {start!r}, and its history is too large to look for a commit that "
                "begins with it. Use the full id of 40 characters.",
            ) from error
        finally:
            await asyncio.shield(asyncio.to_thread(directory.cleanup))

    async def _find_commit(
        self, url: str, start: str, addresses: list[str], files: GitFiles | None, directory: str
    ) -> str | None:
        at = [f"--git-dir={directory}"]
        await self._run([*at, "init", "--quiet", "--bare", "--template="], url, [], None)
        refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        options = ["--quiet", "--no-write-fetch-head", "--no-tags", "--filter=tree:0"]
        fetched = await self._run([*at, "fetch", *options, "--", url, *refs], url, addresses, files)
        if fetched.code:
            raise translated(url, fetched.stderr, self._host_of(url), with_credentials=files is not None)
        found = await self._run(
            [*at, "rev-parse", "--quiet", "--verify", f"{start}^{{commit}}"], url, [], None
        )
        commit = found.stdout.strip()
        return commit if is_object_id(commit) and commit.startswith(start) else None

    async def _run(
        self, arguments: list[str], url: str, addresses: list[str], files: GitFiles | None
    ) -> Ended:
        # A redirect could lead to an address that the policy refuses, to a host that does not exist, or in a circle, which
        # git would report as an error of the first address: each is checked before git follows it.
        options = ["credential.helper=", "http.lowSpeedLimit=0", "http.followRedirects=false"]
        if files:
            options += [f"{name}={value}" for name, value in files.config]
        limited = ["sh", "-c", f'ulimit -f {HISTORY_BLOCKS}; exec "$@"', "sh"]
        async with self._pinned(url, addresses, files) as (pins, ssh_command):
            settings = [part for option in (*options, *pins) for part in ("-c", option)]
            return await run_git(
                [*limited, "git", *settings, *arguments],
                url,
                seconds=self._seconds,
                dependency=self._host_of(url),
                ssh_command=ssh_command,
            )

    @asynccontextmanager
    async def _pinned(
        self, url: str, addresses: list[str], files: GitFiles | None
    ) -> AsyncIterator[tuple[list[str], str | None]]:
        """Have the options and the command for SSH with which git connects to the addresses that were checked."""
        target, ssh_command = self._policy.check(url), files.ssh_command if files else None
        if not addresses or literal_address(target.host):
            yield [], ssh_command
        elif target.scheme in ("http", "https"):
            hosts = (target.host, f"{target.host}.")  # to curl, a name with a final dot is another name
            resolved = f"{target.port}:{','.join(addresses)}"
            yield [f"http.curloptResolve={host}:{resolved}" for host in hosts], ssh_command  # from git 2.37
        else:
            async with connector(addresses, target.port) as program:
                options = [f"core.gitProxy={program}"] if target.scheme == "git" else []
                yield options, ssh_command and f"{ssh_command} {ssh_options(program, target)}"

    async def _redirected(
        self, url: str, addresses: list[str], access: TenantAccess | None
    ) -> tuple[str, bool]:
        """Return the address to which a repository redirects, and whether it has moved there for good."""
        if self._session is None:
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND, f"{shown(url)} has moved. Use its new address."
            )
        refs_url = url.rstrip("/") + _SERVICE
        login = await access.login(url) if access else None
        headers = {"Authorization": login.authorization} if login else {}
        try:
            with judged(addresses):
                async with self._session.get(
                    URL(refs_url),
                    allow_redirects=False,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=self._seconds),
                ) as response:
                    location = urljoin(refs_url, response.headers.get("Location", ""))
                    is_for_good = response.status in (301, 308)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ProviderUnavailable(
                f"{shown(url)} redirects, but the new address cannot be read."
            ) from error
        if not location.endswith(_SERVICE):
            raise RequestRejected(
                RejectReason.REPOSITORY_PRIVATE,
                f"{shown(url)} redirects to {shown(location)}, which is not a git repository: it does not exist there or "
                "requires a login. Check the address; private repositories need credentials from the operator.",
            )
        return location.removesuffix(_SERVICE), is_for_good

    def _host_of(self, url: str) -> Dependency:
        target = self._policy.check(url)
        return Dependency(DependencyKind.HOST, f"{target.host}:{target.port}")


def _read_refs(output: str) -> dict[str, str]:
    refs = {}
    for line in output.split("\n"):  # names may hold other characters at which splitlines would split
        value, _, name = line.partition("\t")
        if is_object_id(value):
            refs[name] = value
    return refs
