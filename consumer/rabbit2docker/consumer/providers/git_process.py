"""Calls of git with limits on time and output, and without anything of ours that could give the requester access."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from typing import Final, NamedTuple

from rabbit2docker.consumer.providers.git_urls import DEFAULT_PORTS, shown
from rabbit2docker.errors import Dependency, ProviderUnavailable

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024

_PASSED_ON = re.compile(
    r"PATH|SSL_CERT_(FILE|DIR)|GIT_SSL_CAINFO|GIT_SSL_CAPATH|(HTTPS?|ALL|NO)_PROXY", re.IGNORECASE
)


class Ended(NamedTuple):
    """The end of a call."""

    code: int
    stdout: str
    stderr: str


class _TooMuch(Exception):
    pass


async def run_git(
    command: list[str],
    url: str,
    *,
    seconds: float,
    dependency: Dependency,
    ssh_command: str | None = None,
) -> Ended:
    """Run git with a time limit, and end its helper processes with it. SSH is allowed with a command for it alone."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(ssh_command),
            start_new_session=True,
        )
    except OSError as error:
        raise ProviderUnavailable(
            f"git cannot be started: {error.strerror}. The operator must install it."
        ) from error
    assert process.stdout
    assert process.stderr
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            code = await process.wait()
    except TimeoutError as error:
        raise ProviderUnavailable(
            f"{shown(url)} did not answer within {seconds:g} seconds: waiting for its host.",
            outage_of=dependency,
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
    return Ended(code, stdout, stderr)


async def _read(stream: asyncio.StreamReader) -> str:
    content = bytearray()
    while chunk := await stream.read(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise _TooMuch
    return content.decode(errors="replace")


def _environment(ssh_command: str | None) -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return passed_on | {
        # With our home directory git would send hosts the passwords in our ~/.netrc and read our ~/.gitconfig.
        "HOME": "/nonexistent",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_ALLOW_PROTOCOL": ":".join([*DEFAULT_PORTS, *(["ssh"] if ssh_command else [])]),
        **({"GIT_SSH_COMMAND": ssh_command} if ssh_command else {}),
        # Not a repository: the configuration of one would be applied.
        "GIT_DIR": os.devnull,
        "LC_ALL": "C",
    }
