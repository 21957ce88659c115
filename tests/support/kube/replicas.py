"""Any number of executors on one API server, each optionally behind a proxy of its own."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor
from tests.support.kube.cluster import Cluster
from tests.support.kube.stage import KubernetesStage
from tests.support.proxy import Proxy


class Replicas(KubernetesStage):
    """A stage whose server runs for the whole test, whichever of its executors are open."""

    def __init__(self, directory: Path, cluster: Cluster | None = None) -> None:
        super().__init__(directory, KubernetesExecutor, cluster)
        self._directory = directory

    async def __aenter__(self) -> Self:
        await self.server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.faults.clear()
        await self.server.stop()
        self.close()

    def executor(
        self, proxy: Proxy | None = None, *, keep_ended_seconds: float = 600.0, **kubernetes: object
    ) -> KubernetesExecutor:
        """Return an executor that is not open yet, with settings that differ from the usual ones.

        They are not checked, so that a test may have times that are too short for a cluster.
        """
        # A test makes as many calls in a second as a service does in minutes.
        changes = {"requests_per_second": 2000.0, "burst": 2000, **kubernetes}
        if proxy is not None:
            changes["kubeconfig"] = self._through(proxy)
        settings = self.settings.model_copy(
            update={
                "kubernetes": self.settings.kubernetes.model_copy(update=changes),
                "limits": self.settings.limits.model_copy(update={"keep_ended_seconds": keep_ended_seconds}),
            }
        )
        return KubernetesExecutor(settings)

    def _through(self, proxy: Proxy) -> Path:
        path = self.server.kubeconfig(self._directory / f"kubeconfig-{proxy.port}")
        path.write_text(path.read_text().replace(f":{self.server.port}", f":{proxy.port}"))
        return path
