"""A simulated cluster as a process of its own, whose memory and time are not the consumer's.

`python -m tests.benchmarks.simulated KUBECONFIG` serves until its input ends. Its pods do what the build arguments say, as in
`pod.py`; those with STAY run on after their lines. Each line of input is a command, answered by one line of JSON.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.kube import Cluster, KubeServer
from tests.support.kube.objects import PODS, encode

NODES = 20


class PlayingCluster(Cluster):
    """Runs builders as tasks."""

    def __init__(self) -> None:
        super().__init__(nodes=tuple(f"node-{number}" for number in range(NODES)))
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, name: str) -> None:
        super().run(name)
        task = asyncio.create_task(self._play(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, name: str) -> None:
        pod = self.pod(name)
        environment = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
        options = json.loads(environment["RABBIT2DOCKER_BUILD"])["build_args"]
        lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, float(options.get("AT", "0")) - datetime.now(UTC).timestamp()))
        began = loop.time()
        for number in range(lines):
            if not self.exists(name):
                return
            self.say(name, f"line {number} of the build")
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


class Simulated:
    """The process, as a benchmark has it."""

    def __init__(self, process: asyncio.subprocess.Process, kubeconfig: Path) -> None:
        self.process = process
        self.kubeconfig = kubeconfig

    async def command(self, text: str) -> Any:
        """Have a command carried out: `calls` (and forget them), `say N`, `pods`."""
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
        limit=1 << 20,
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
        case "say":
            for name in cluster.pods():
                for number in range(int(count)):
                    cluster.say(name, f"line {number} said by everybody")
            return None
        case _:
            return [cluster.store.get(PODS, cluster.namespace, name).uid for name in cluster.pods()]


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
