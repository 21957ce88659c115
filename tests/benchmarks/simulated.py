"""A simulated cluster as a process of its own, whose memory and time are not the consumer's.

`python -m tests.benchmarks.simulated KUBECONFIG` serves until its input ends. Its pods do what the build arguments say, as in
`pod.py`, or what the name of their repository says, for requests that cannot have build arguments; those with STAY run
on after their lines. Each line of input is a command, answered by one line of JSON.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.kube import Cluster, KubeServer
from tests.support.kube.objects import PODS, Json, Resource, encode

NODES = 20
PLAY = re.compile(r"/play-(\d+)-(\d+)-[\w-]+")
"""A repository whose name says how many lines its builder writes, and how many milliseconds apart."""


def play(lines: int, every: float, name: str) -> str:
    """Return the name of such a repository."""
    return f"play-{lines}-{every * 1000:.0f}-{name}"


class PlayingCluster(Cluster):
    """Runs builders as tasks."""

    def __init__(self) -> None:
        super().__init__(nodes=tuple(f"node-{number}" for number in range(NODES)))
        self._tasks: set[asyncio.Task[None]] = set()
        self.created: dict[str, float] = {}
        """Unix time of each pod's creation, by the last part of its repository's address."""
        self.store.admission.append(self._note_creation)

    def _note_creation(self, resource: Resource, data: Json) -> None:
        if resource is PODS and (options := _options(data)):
            self.created.setdefault(str(options.get("repo_url", "")).rpartition("/")[2], time.time())

    def run(self, name: str) -> None:
        super().run(name)
        task = asyncio.create_task(self._play(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, name: str) -> None:
        pod = self.pod(name)
        build = _options(pod)
        options = build["build_args"]
        lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
        if played := PLAY.search(build["repo_url"]):
            lines, every = int(played[1]), int(played[2]) / 1000
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, float(options.get("AT", "0")) - datetime.now(UTC).timestamp()))
        began = loop.time()
        for number in range(lines):
            if not self.exists(name):
                return
            # The time is for readers who get nothing but the text.
            self.say(name, f"line {number} of the build {time.time():.6f}")
            if every:
                await asyncio.sleep(max(0.0, began + (number + 1) * every - loop.time()))
        if "STAY" not in options and self._current(pod["metadata"]["uid"], name) is not None:
            result = {
                "reason": "ok",
                "exit_code": 0,
                "lines": self.log(name).count,
                "digest": "sha256:" + "5e" * 32,
            }
            self.terminate(name, 0, message=json.dumps(result))

    def say(self, name: str, text: str) -> None:
        """Have the builder write one line."""
        line = {
            "n": self.log(name).count,
            "ts": datetime.now(UTC).isoformat(),
            "phase": "building",
            "text": text,
        }
        self.write(name, json.dumps(line))


def _options(pod: Json) -> dict[str, Any]:
    """Return what the builder is given; empty for other pods."""
    environment = {
        item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0].get("env", ())
    }
    found: dict[str, Any] = json.loads(environment.get("RABBIT2DOCKER_BUILD") or "{}")
    return found


class Simulated:
    """The process, as a benchmark has it."""

    def __init__(self, process: asyncio.subprocess.Process, kubeconfig: Path) -> None:
        self.process = process
        self.kubeconfig = kubeconfig

    async def command(self, text: str) -> Any:
        """Have a command carried out: `calls` (and forget them), `say N`, `created`, `pods`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{text}\n".encode())
        return json.loads(await self.process.stdout.readline())


@asynccontextmanager
async def simulated(directory: Path) -> AsyncIterator[Simulated]:
    """Run the process."""
    kubeconfig = directory / "kubeconfig"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", __spec__.name, str(kubeconfig)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        found = Simulated(process, kubeconfig)
        await found.command("pods")
        yield found
    finally:
        process.terminate()
        await process.wait()


async def _serve(kubeconfig: Path) -> None:
    cluster = PlayingCluster()
    async with KubeServer(cluster) as server:
        server.kubeconfig(kubeconfig)
        while line := await asyncio.to_thread(sys.stdin.readline):
            sys.stdout.buffer.write(encode({"answer": _obey(server, cluster, *line.split())}) + b"\n")
            sys.stdout.flush()


def _obey(server: KubeServer, cluster: PlayingCluster, command: str, count: str = "0") -> Any:
    match command:
        case "calls":
            calls = dict(server.counted())
            server.requests.clear()
            return calls
        case "created":
            return cluster.created
        case "say":
            for name in cluster.pods():
                for number in range(int(count)):
                    cluster.say(name, f"line {number} said by everybody")
            return None
        case _:
            return [cluster.store.get(PODS, cluster.namespace, name).uid for name in cluster.pods()]


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
