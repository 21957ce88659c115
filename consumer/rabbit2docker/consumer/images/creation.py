"""Repositories made in the registry before a push, where the registry makes none by itself, as ECR."""

import asyncio
import os
from contextlib import suppress
from typing import Final

import structlog
from cachetools import LRUCache

from rabbit2docker.consumer.images.registry import parse_image
from rabbit2docker.errors import Dependency, DependencyKind, RegistryUnavailable
from rabbit2docker.settings import ImageSettings
from rabbit2docker.settings.constants import ENV_PREFIX

log = structlog.get_logger()

COMMAND_SECONDS: Final = 60.0
MAX_KNOWN: Final = 10_000
MAX_OUTPUT: Final = 65_536
_EXISTS: Final = ("already exist", "alreadyexist")
"""Words of a command that fails because there is nothing to do, without regard to case."""


class RepositoryCreation:
    """Runs the operator's command once for each repository."""

    def __init__(self, settings: ImageSettings) -> None:
        """Take the command from `images.create_command`; without one, nothing is ever run."""
        self._command = settings.create_command
        self._known: LRUCache[str, bool] = LRUCache(MAX_KNOWN)

    async def ensure(self, image: str) -> None:
        """Create the repository of an image unless this process knows that it exists.

        Raises RegistryUnavailable if the command fails: the request waits until the operator has corrected it.
        """
        reference = parse_image(image)
        name = f"{reference.registry}/{reference.repository}"
        if not self._command or name in self._known:
            return
        words = {"{registry}": reference.registry, "{repository}": reference.repository, "{image}": image}
        problem = await self._run([_filled(argument, words) for argument in self._command])
        if problem is not None:
            raise RegistryUnavailable(
                f"The repository {name} cannot be created in the registry: {problem}. The operator must check "
                "images.create_command; the service's log has what it printed.",
                outage_of=Dependency(DependencyKind.REGISTRY, reference.registry),
            )
        self._known[name] = True

    async def _run(self, command: list[str]) -> str | None:
        """Run the command, without the service's own settings; return what is wrong."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"{command[0]} cannot be started ({error.strerror})"
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                text = await _output(process)
                code = await process.wait()
        except TimeoutError:
            return f"{command[0]} did not end within {COMMAND_SECONDS:.0f} seconds"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()
        if code == 0 or any(words in text.lower() for words in _EXISTS):
            return None
        log.warning("command to create a repository failed", code=code, output=text[-2000:])
        return f"{command[0]} failed with exit code {code}"


async def _output(process: asyncio.subprocess.Process) -> str:
    """Return the end of what a process prints."""
    assert process.stdout is not None
    kept = b""
    while data := await process.stdout.read(MAX_OUTPUT):
        kept = (kept + data)[-MAX_OUTPUT:]
    return kept.decode(errors="replace").strip()


def _filled(argument: str, words: dict[str, str]) -> str:
    for placeholder, word in words.items():
        argument = argument.replace(placeholder, word)
    return argument
