"""A Kubernetes API server for tests, with a cluster behind it and faults in front of it.

    async with KubeServer() as server:
        server.kubeconfig(path)                 # for a client
        server.cluster.write("build-1", "…")    # kubelet, scheduler and users
        server.faults.answer(429, verb="create", retry_after=1)
        server.calls(verb="patch", resource="pods")

It responds like the real one, messages and order included, for pods, their logs, events, configmaps, secrets and leases
in namespaces. Server-side apply, strategic merge patches and deletions of collections are not supported.
"""

from tests.support.kube.cluster import Cluster, Stops
from tests.support.kube.faults import Fault, Faults, Seen
from tests.support.kube.server import KubeServer
from tests.support.kube.stage import KubernetesStage
from tests.support.kube.streams import Stream

__all__ = ["Cluster", "Fault", "Faults", "KubeServer", "KubernetesStage", "Seen", "Stops", "Stream"]
