"""Shared parts of the hub's benchmarks: the service as a process, played builds, and viewers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rabbit2docker.settings import Settings
from tests.benchmarks.measuring import own_vhost
from tests.support.crowd import Crowd, need_open_files
from tests.support.fake_consumer import FakeConsumer, fake_consumer
from tests.support.hub_service import HubService, build_path


@dataclass(slots=True)
class Serving:
    """The running parts."""

    hub: HubService
    played: FakeConsumer
    process: psutil.Process

    @property
    def memory(self) -> float:
        """Return resident memory in bytes."""
        return float(self.process.memory_info().rss)

    @property
    def cpu_seconds(self) -> float:
        """Return what the service has computed so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def running_build(self, name: str, viewers: int) -> tuple[str, Crowd]:
        """Start a build with that many viewers, wait until each has its first event, and return its id and them."""
        known, crowd = len(self.played.builds), Crowd(self.hub.address)
        await crowd.join(viewers, build_path(name))
        *_, build_id = await self.played.accepted(known + 1)
        await crowd.until(lambda viewer: viewer.events > 0)
        return build_id, crowd

    async def end(self, build_id: str, crowd: Crowd, *, lines: int) -> None:
        """End the build and wait until everybody has gone."""
        await self.played.complete(build_id, lines=lines)
        await crowd.until(lambda viewer: viewer.is_gone.done())
        crowd.leave()


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    """Run the service, and let it serve one small build so that all of it is loaded."""
    need_open_files(4096)
    with own_vhost() as amqp, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        limits = {
            "RABBIT2DOCKER_HUB__REQUESTS_PER_ADDRESS": "0",
            "RABBIT2DOCKER_HUB__VIEWERS_PER_USER": "0",
            "RABBIT2DOCKER_HUB__SHARE_SECONDS": "600",
            "RABBIT2DOCKER_LOG__LEVEL": "warning",
        }
        async with fake_consumer(Settings(amqp=amqp)) as played:
            hub = HubService(Path(directory), amqp, **limits)
            await asyncio.to_thread(hub.start_and_wait)
            try:
                assert hub.process is not None
                serving = Serving(hub, played, psutil.Process(hub.process.pid))
                build_id, crowd = await serving.running_build("warm", 1)
                await played.write_event(build_id, ["line 0"], first=0)
                await serving.end(build_id, crowd, lines=1)
                yield serving
            finally:
                hub.end()
