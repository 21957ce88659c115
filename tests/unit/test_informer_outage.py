"""After an outage of the API server, however long, watches are back within seconds."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from rabbit2docker.consumer.executors.kubernetes.informer import PODS, Informer
from rabbit2docker.consumer.executors.kubernetes.models import Pod
from rabbit2docker.errors import ExecutorUnavailable

pytestmark = pytest.mark.looptime

AWAY_SECONDS, LONGEST_SECONDS = 60.0, 5.0


def ignore(pod: Pod) -> None:
    """Do nothing with a change."""


class ApiServer:
    """An API server that is away for some seconds; a watch of it is silent."""

    def __init__(self, away_seconds: float) -> None:
        self._away_seconds = away_seconds
        self.watched_at: list[float] = []
        self.refused = 0

    @property
    def content(self) -> "ApiServer":
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        await asyncio.get_running_loop().create_future()
        yield b""

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, read_seconds: float
    ) -> AsyncIterator["ApiServer"]:
        now = asyncio.get_running_loop().time()
        if now < self._away_seconds:
            self.refused += 1
            raise ExecutorUnavailable("away")
        self.watched_at.append(now)
        yield self


async def test_watches_are_back_within_seconds_after_a_minutes_outage() -> None:
    server, watches = ApiServer(AWAY_SECONDS), 10
    running = []
    for number in range(watches):
        informer = Informer(
            cast("Any", server), PODS, "p", "s", on_change=ignore, on_removed=ignore, name=str(number)
        )
        informer._version = "1"  # listed before the outage
        running.append(asyncio.create_task(informer.run()))
    await asyncio.sleep(AWAY_SECONDS + LONGEST_SECONDS)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert len(server.watched_at) == watches
    assert server.refused < watches * AWAY_SECONDS, "a server that is away is not asked all the time"
