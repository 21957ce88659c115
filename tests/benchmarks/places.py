"""Clusters to measure the kubernetes executor on: a real cluster, and a simulated one for more pods than two cores carry."""

import hashlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.executors.kubernetes.manifest import builder_config_map
from rabbit2docker.settings import AmqpSettings, Settings
from tests.benchmarks import pod
from tests.benchmarks.measuring import own_vhost
from tests.benchmarks.simulated import Simulated, simulated
from tests.cluster.harness import kubectl
from tests.cluster.site import Site, opened
from tests.support.consumer import Consumer

VARIABLES = {
    "RABBIT2DOCKER_EXECUTOR": "kubernetes",
    "RABBIT2DOCKER_IMAGES__CHECK_REGISTRY": "false",
    "RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS": "2000",
    "RABBIT2DOCKER_LOG__LEVEL": "warning",
    # Where the builder does nothing, what the scheduler sets aside for it would only keep pods waiting.
    "RABBIT2DOCKER_KUBERNETES__MEMORY_REQUEST": "16Mi",
    "RABBIT2DOCKER_KUBERNETES__CPU_REQUEST": "5m",
}
_CALLS = re.compile(
    r'^rabbit2docker_kubernetes_calls_total\{result="(\w+)",verb="(\w+)"\} (\S+)$', re.MULTILINE
)


@dataclass(slots=True)
class Place:
    """A running consumer, what it takes to ask it, and where its pods are."""

    consumer: Consumer
    amqp: AmqpSettings
    requester: RequestPublisher
    site: Site | None = None
    simulated: Simulated | None = None

    @property
    def process(self) -> psutil.Process:
        """The consumer's present process."""
        assert self.consumer.process is not None
        return psutil.Process(self.consumer.process.pid)

    def metric(self, name: str) -> float:
        """Return a metric without labels; 0 when there is none."""
        found = re.search(rf"^{name} (\S+)$", self.consumer.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def calls(self) -> float:
        """Return how many requests the consumer has made of the API server."""
        return sum(float(found[3]) for found in _CALLS.finditer(self.consumer.get("/metrics")[1]))


@asynccontextmanager
async def on_cluster(**variables: str) -> AsyncIterator[Place]:
    """Have pods on the real cluster, with docker-api on its nodes and a builder that does what `pod.py` says."""
    with _directory() as directory, own_vhost() as amqp, opened(directory) as site:
        # Not the one beside the cluster: others may be testing what becomes of builds without it.
        site.amqp = amqp
        _provide_program(site.namespace)
        consumer = site.consumer(**VARIABLES, **variables)
        async with _running(consumer, site.amqp) as requester:
            yield Place(consumer, site.amqp, requester, site=site)


@asynccontextmanager
async def on_simulation(**variables: str) -> AsyncIterator[Place]:
    """Have pods that only an API server of the tests knows, with the real RabbitMQ and the real consumer."""
    with _directory() as directory, own_vhost() as amqp:
        async with simulated(directory) as cluster:
            where = {
                "RABBIT2DOCKER_KUBERNETES__KUBECONFIG": str(cluster.kubeconfig),
                "RABBIT2DOCKER_KUBERNETES__NAMESPACE": "builds",
            }
            consumer = Consumer(directory, amqp, real=True, **{**VARIABLES, **where, **variables})
            try:
                async with _running(consumer, amqp) as requester:
                    yield Place(consumer, amqp, requester, simulated=cluster)
            finally:
                consumer.end_everything()


@asynccontextmanager
async def _running(consumer: Consumer, amqp: AmqpSettings) -> AsyncIterator[RequestPublisher]:
    settings = Settings(amqp=amqp)
    await declare.declare(settings)
    consumer.start_and_wait()
    async with publishing(settings, wait_seconds=20) as publisher:
        yield RequestPublisher(publisher, "default")


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def _provide_program(namespace: str) -> None:
    """Put the benchmark's program where the consumer will find a builder already."""
    text = BUILDER_PATH.read_text("utf-8")
    name = f"rabbit2docker-builder-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    own = Path(pod.__file__).read_text("utf-8").replace(pod.IMPORTED, "")
    program = f"{text.partition(chr(10) + 'if __name__ ==')[0]}\n\n{own}"
    kubectl.kubectl(
        *("create", "--filename=-"),
        stdin=json.dumps(builder_config_map(Settings(), name, program)),
        namespace=namespace,
    )
