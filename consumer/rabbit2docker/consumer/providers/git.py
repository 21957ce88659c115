"""Any git repository that is readable without a password. Spec: `<url-escaped URL>/<url-escaped ref>`."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.providers.address_policy import AddressPolicy, literal_address
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, shown
from rabbit2docker.consumer.providers.refs import (
    HEAD,
    PEELED,
    check_ref,
    full_names,
    is_full_commit,
    is_object_id,
)
from rabbit2docker.consumer.providers.specs import GitSpec, pin_git, ref_hint
from rabbit2docker.errors import Dependency, DependencyKind, ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_REDIRECTS: Final = 3

_UNREACHABLE = re.compile(
    r"Failed to connect|Connection (?:refused|timed out|reset)|Could not resolve|unable to (?:connect|look ?up)|"
    r"No route to host|Network is unreachable|Empty reply from server|returned error: 50[234]\b",
    re.IGNORECASE,
)
_SERVICE = "/info/refs?service=git-upload-pack"
_REDIRECTED = re.compile(r"returned error: 30[12378]\b")
_PASSED_ON = re.compile(
    r"PATH|SSL_CERT_(FILE|DIR)|GIT_SSL_CAINFO|GIT_SSL_CAPATH|(HTTPS?|ALL|NO)_PROXY", re.IGNORECASE
)

# Error messages of git, in the order in which they must be matched: later patterns are wider.
_ERROR_PATTERNS: Final[tuple[tuple[re.Pattern[str], RejectReason], ...]] = (
    (re.compile(r"transport '.*' not allowed"), RejectReason.REFUSED_URL),
    (
        re.compile(
            r"could not read (Username|Password)|Authentication failed|returned error: 40[137]\b|"
            r"terminal prompts disabled|Permission denied",
            re.IGNORECASE,
        ),
        RejectReason.REPOSITORY_PRIVATE,
    ),
    (
        re.compile(
            r"repository '.*' not found|does not appear to be a git repository|is this a git repository|"
            r"access denied or repository not exported|no such repository|Repository not found|"
            r"returned error: (404|410|451)\b|Could not parse|URL (using bad|rejected)",
            re.IGNORECASE,
        ),
        RejectReason.REPOSITORY_NOT_FOUND,
    ),
)


class GitProvider:
    """Resolves specs with `git ls-remote`."""

    prefix = PROVIDERS["git"].prefix

    def __init__(
        self,
        settings: ProviderSettings,
        session: aiohttp.ClientSession | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Take limits from the settings. `session` is needed only to follow redirects."""
        self._breakers = breakers or Breakers()
        self._policy = AddressPolicy(settings)
        self._timeout = settings.timeout
        self._session = session

    def check(self, spec: str) -> None:
        """Raise RequestRejected when the spec cannot be read or names a refused address."""
        parsed = GitSpec.parse(spec)
        self._policy.check(parsed.url)
        check_ref(parsed.ref)

    async def resolve(self, spec: str) -> Repository:
        """Return the repository at the commit. A full commit id is not verified: only a fetch shows whether it exists."""
        self.check(spec)
        parsed = GitSpec.parse(spec)
        addresses = await self._policy.resolve(parsed.url)
        if is_full_commit(parsed.ref):
            return self.pin(spec, parsed.ref.lower())
        commit, name = await self._look_up(parsed, addresses)
        return replace(self.pin(spec, commit), source_ref=name)

    def pin(self, spec: str, ref: str) -> Repository:
        """Return the repository at `ref`; the build slug is the whole URL, as in BinderHub."""
        return pin_git(spec, ref)

    async def _look_up(self, parsed: GitSpec, addresses: list[str]) -> tuple[str, str]:
        """Return the commit that the ref points to, and the full name of the ref."""
        names = full_names(parsed.ref)
        refs = await self._list_refs(parsed.url, [*names, *(name + PEELED for name in names)], addresses)
        for name in names:
            # The peeled line of an annotated tag has the commit, its own line only the tag object.
            found = refs.get(name + PEELED) or refs.get(name)
            if found:
                return found, name
        raise RequestRejected(RejectReason.REF_NOT_FOUND, _no_such_ref(parsed))

    async def _list_refs(self, url: str, patterns: list[str], addresses: list[str]) -> dict[str, str]:
        """Return the refs that match the patterns, following redirects to allowed addresses only."""
        for _ in range(MAX_REDIRECTS + 1):
            with self._breakers.guard(self._host_of(url)):
                code, stdout, stderr = await self._run(self._command(url, addresses, patterns), url)
                if code and not _REDIRECTED.search(stderr):
                    raise self._translated(url, stderr)
            if code == 0:
                return _read_refs(stdout)
            url = await self._redirected(url)
            addresses = await self._policy.resolve(url)
        raise RequestRejected(
            RejectReason.REPOSITORY_NOT_FOUND,
            f"{shown(url)} redirects too many times. Use its final address.",
        )

    def _command(self, url: str, addresses: list[str], patterns: list[str]) -> list[str]:
        options = ["-c", "credential.helper=", "-c", "http.lowSpeedLimit=0"]
        # A redirect could lead to an address that the policy refuses, so each is checked before git follows it.
        options += ["-c", f"http.followRedirects={'initial' if self._policy.allows_private else 'false'}"]
        target = self._policy.check(url)
        if addresses and not literal_address(target.host):
            # git (from 2.37) must connect to the addresses that were checked, not to those that DNS returns a moment
            # later; to curl, a name with a final dot is another name.
            for host in (target.host, f"{target.host}."):
                options += ["-c", f"http.curloptResolve={host}:{target.port}:{','.join(addresses)}"]
        return ["git", *options, "ls-remote", "--symref", "--", url, *patterns]

    async def _run(self, command: list[str], url: str) -> tuple[int, str, str]:
        """Run git with a time limit, and end its helper processes with it."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise ProviderUnavailable(
                f"git cannot be started: {error.strerror}. The operator must install it."
            ) from error
        assert process.stdout
        assert process.stderr
        try:
            async with asyncio.timeout(self._timeout):
                stdout, stderr = await asyncio.gather(_read(process.stdout), _read(process.stderr))
                code = await process.wait()
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"{shown(url)} did not answer within {self._timeout:g} seconds: waiting for its host.",
                outage_of=self._host_of(url),
            ) from error
        except _TooMuch as error:
            raise ProviderUnavailable(
                f"{shown(url)} sent a list of refs larger than {MAX_ANSWER_BYTES} bytes."
            ) from error
        finally:
            # git-remote-https outlives a killed git; after a regular end the process group is gone already.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return code, stdout, stderr

    async def _redirected(self, url: str) -> str:
        if self._session is None:
            raise RequestRejected(
                RejectReason.REPOSITORY_NOT_FOUND, f"{shown(url)} has moved. Use its new address."
            )
        refs_url = url.rstrip("/") + _SERVICE
        try:
            async with self._session.get(
                URL(refs_url), allow_redirects=False, timeout=aiohttp.ClientTimeout(total=self._timeout)
            ) as response:
                location = urljoin(refs_url, response.headers.get("Location", ""))
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
        return location.removesuffix(_SERVICE)

    def _translated(self, url: str, stderr: str) -> RequestRejected | ProviderUnavailable:
        detail = _last_line(stderr)
        for pattern, reason in _ERROR_PATTERNS:
            if not pattern.search(stderr):
                continue
            if reason is RejectReason.REPOSITORY_PRIVATE:
                return RequestRejected(
                    reason,
                    f"{shown(url)} requires a password: it is private, or does not exist. Check the address, make "
                    "the repository public, or ask the operator to configure credentials for it.",
                )
            if reason is RejectReason.REPOSITORY_NOT_FOUND:
                return RequestRejected(
                    reason, f"There is no git repository at {shown(url)}. Check the address."
                )
            return RequestRejected(reason, f"git refuses {shown(url)}: {detail}")
        # A host that answers may have a problem with this repository alone.
        is_unreachable = _UNREACHABLE.search(stderr) is not None
        repository = Dependency(DependencyKind.REPOSITORY, shown(url))
        return ProviderUnavailable(
            f"{shown(url)} cannot be read at the moment: {detail}",
            outage_of=self._host_of(url) if is_unreachable else repository,
        )

    def _host_of(self, url: str) -> Dependency:
        target = self._policy.check(url)
        return Dependency(DependencyKind.HOST, f"{target.host}:{target.port}")


class _TooMuch(Exception):
    pass


async def _read(stream: asyncio.StreamReader) -> str:
    content = bytearray()
    while chunk := await stream.read(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise _TooMuch
    return content.decode(errors="replace")


def _environment() -> dict[str, str]:
    """Return git's environment, without anything of ours that could give the requester access."""
    passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return passed_on | {
        # With our home directory git would send hosts the passwords in our ~/.netrc and read our ~/.gitconfig.
        "HOME": "/nonexistent",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_ALLOW_PROTOCOL": ":".join(DEFAULT_PORTS),
        # Not a repository: the configuration of one would be applied.
        "GIT_DIR": os.devnull,
        "LC_ALL": "C",
    }


def _read_refs(output: str) -> dict[str, str]:
    refs = {}
    for line in output.split("\n"):  # names may hold other characters at which splitlines would split
        value, _, name = line.partition("\t")
        if is_object_id(value):
            refs[name] = value
    return refs


def _no_such_ref(parsed: GitSpec) -> str:
    if parsed.ref == HEAD:
        return f"{shown(parsed.url)} has no default branch: it may be empty. Use a branch, tag or commit."
    hint = (
        "Use the full id of 40 characters for a commit"
        if re.fullmatch(r"[0-9a-fA-F]+", parsed.ref)
        else "Use a branch, a tag, the full id of a commit, or HEAD for the default branch"
    )
    hint = ref_hint(parsed.ref) or f"{hint}."
    return f"{shown(parsed.url)} has no branch or tag {parsed.ref!r}. {hint}"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    readable = "".join(sign if sign.isprintable() else " " for sign in lines[-1].strip()) if lines else ""
    return shown(readable) or "git gave no reason."
