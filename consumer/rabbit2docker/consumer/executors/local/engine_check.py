"""A check whether the Docker engine answers, made by the builder's program: it alone calls the engine's command."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from rabbit2docker.consumer.builder import BUILDER_COMMAND

CHECK_SECONDS: Final = 10
"""Time that the engine has to answer. One that is stopped or overloaded accepts connections and says nothing."""
GRACE_SECONDS: Final = 5
"""Further time for the program itself."""


async def check_engine(host: str | None, environment: Mapping[str, str]) -> str | None:
    """Return why the engine at `host`, or at the default address, does not answer; None if it does."""
    command = [*BUILDER_COMMAND, "--check-engine", str(CHECK_SECONDS)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**environment, **({"DOCKER_HOST": host} if host else {})},
            start_new_session=True,
        )
    except OSError as error:
        return f"The Docker engine cannot be asked: {error.strerror}."
    try:
        async with asyncio.timeout(CHECK_SECONDS + GRACE_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"The Docker engine did not answer within {CHECK_SECONDS} seconds."
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.returncode == 0:
        return None
    return output.decode(errors="replace").strip() or "The Docker engine cannot be asked."
