"""Builders in pods, for the test suite of all executors."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import cast

from rabbit2docker.consumer.executors.base import Executor
from rabbit2docker.settings import KubernetesSettings, Settings
from tests.support.kube.cluster import Cluster
from tests.support.kube.server import KubeServer


class Served:
    """Opens an executor after its server, and closes both."""

    def __init__(self, server: KubeServer, executor: Executor) -> None:
        self._server = server
        self._executor = executor

    async def __aenter__(self) -> Executor:
        await self._server.start()
        try:
            return await self._executor.__aenter__()
        except BaseException:
            await self._server.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._executor.__aexit__(kind, error, trace)
        finally:
            # The loop may end now; the cluster keeps its state.
            await self._server.stop()


class KubernetesStage:
    """Implements `Stage`: pods run at once, and their builders write and end on the test's command."""

    def __init__(
        self, directory: Path, executor: Callable[[Settings], Executor], cluster: Cluster | None = None
    ) -> None:
        """Store the directory for the kubeconfig and the factory of executors."""
        self.server = KubeServer(cluster)
        self.cluster = self.server.cluster
        kubernetes = KubernetesSettings(
            kubeconfig=self.server.kubeconfig(directory / "kubeconfig"), namespace=self.cluster.namespace
        )
        self.settings = Settings(kubernetes=kubernetes)
        self._executor = executor
        self._written: dict[str, int] = {}

    def service(self) -> Executor:
        # Only used to enter: the result of that is the executor itself.
        return cast("Executor", Served(self.server, self._executor(self.settings)))

    def prepare(self, *names: str) -> None:
        pass

    def write(self, name: str, *texts: str) -> None:
        uid = self._uid(name)
        for text in texts:
            number = self._written.get(uid, 0)
            line = {"n": number, "ts": datetime.now(UTC).isoformat(), "phase": "building", "text": text}
            self.cluster.write(name, json.dumps(line))
            self._written[uid] = number + 1

    def end(self, name: str, reason: str = "ok", **more: object) -> None:
        result = {
            "reason": reason,
            "exit_code": 0 if reason == "ok" else 1,
            "lines": self._written.get(self._uid(name), 0),
            **more,
        }
        self.cluster.terminate(name, int(str(result["exit_code"])), message=json.dumps(result))

    def kill(self, name: str) -> None:
        self.cluster.kill(name)

    def remove(self, name: str) -> None:
        self.cluster.vanish(name)

    def starts(self, name: str) -> int:
        return self.cluster.starts[name]

    def close(self) -> None:
        """Release the port."""
        self.server.close()

    def _uid(self, name: str) -> str:
        uid: str = self.cluster.pod(name)["metadata"]["uid"]
        return uid
