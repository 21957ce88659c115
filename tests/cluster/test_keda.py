"""The chart's scaling by a real KEDA: consumers by the requests that wait in RabbitMQ, placeholders by these and by builds."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from rabbit2docker.consumer.removal import BY
from rabbit2docker_schemas.events import Cancelled
from tests.cluster.harness import faults, keda, kubectl
from tests.cluster.installation import KINDS, RELEASE, Installation, Values, prepared
from tests.cluster.rendering import EVERYTHING
from tests.cluster.site import IMAGES
from tests.cluster.test_dry_run import HUB, SWITCHED_ON, rendered, taken
from tests.support.rabbitmq import Management
from tests.support.stories import Asked, asked
from tests.support.waiting import eventually

pytestmark = [pytest.mark.keda, pytest.mark.timeout(900)]

PLACEHOLDER = f"{RELEASE}-placeholder"
SCALED_KINDS = f"{KINDS},scaledobjects.keda.sh,triggerauthentications.keda.sh,horizontalpodautoscalers"
AT_ONCE = {"scaleDown": {"stabilizationWindowSeconds": 0}}


class Monitor:
    """The user of RabbitMQ that KEDA asks as: it sees all queues and may use none."""

    def __init__(self, installation: Installation) -> None:
        management = installation.amqp.management_url
        assert management
        self.virtual_host = installation.amqp.url.get_secret_value().rpartition("/")[2]
        self.name = f"keda-{uuid.uuid4().hex[:8]}"
        self._management = Management(management.get_secret_value())
        self._namespace = installation.namespace
        self.known_to_keda = ""

    def change_password(self) -> str:
        """Give the user a new password, which KEDA does not have yet."""
        password = f"{uuid.uuid4().hex}/%{uuid.uuid4().hex}"
        self._management.api("PUT", f"users/{self.name}", {"password": password, "tags": "monitoring"})
        permissions = dict.fromkeys(("configure", "write", "read"), "^$")
        self._management.api("PUT", f"permissions/{self.virtual_host}/{self.name}", permissions)
        return password

    def provide_secret(self, password: str) -> None:
        parts = urlsplit(self._management.url_of_management)
        login = f"{self.name}:{password.replace('%', '%25').replace('/', '%2F')}"
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keda"},
            "stringData": {"url": f"{parts.scheme}://{login}@{parts.hostname}:{parts.port}"},
        }
        kubectl.apply(secret, namespace=self._namespace)
        self.known_to_keda = password

    def remove(self) -> None:
        self._management.api("DELETE", f"users/{self.name}")


class Scaled:
    """A release of the chart that KEDA scales."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.monitor = Monitor(installation)

    @property
    def values(self) -> Values:
        return {
            "hubService": {"enabled": False},
            "config": {"limits": {"concurrent_builds": 1}, "hub": None},
            "keda": {
                "existingSecret": "keda",
                "managementUrlKey": "url",
                "virtualHost": self.monitor.virtual_host,
                "pollingInterval": 1,
                "cooldownPeriod": 1,
            },
            "consumer": {
                "autoscaling": {
                    "enabled": True,
                    "minReplicas": 1,
                    "maxReplicas": 2,
                    "waitingPerReplica": 1,
                    "behavior": AT_ONCE,
                }
            },
            "placeholders": {
                "enabled": True,
                "image": {"repository": f"{IMAGES}pause", "tag": "1"},
                "autoscaling": {
                    "enabled": True,
                    "minReplicas": 0,
                    "maxReplicas": 2,
                    "buildsPerNode": 2,
                    "behavior": AT_ONCE,
                },
            },
        }

    def replicas(self) -> dict[str, int]:
        """Return how many pods each has, ready or not; none where some are still to come or to go."""
        found = kubectl.get("deployments", namespace=self.installation.namespace)["items"]
        return {
            each["metadata"]["name"]: each["spec"]["replicas"]
            for each in found
            if each["spec"]["replicas"] == each["status"].get("replicas", 0)
        }

    async def until(self, *, consumers: int, placeholders: int) -> None:
        wanted = {RELEASE: consumers, PLACEHOLDER: placeholders}
        await self.eventually(lambda: self.replicas() == wanted)

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """Look now and then: each look starts a kubectl."""

        async def look() -> bool:
            await asyncio.sleep(0.5)
            return await asyncio.to_thread(condition)

        await eventually(look, seconds=400)

    def condition(self, name: str, kind: str = "Ready") -> str:
        """Return the status of a condition of a ScaledObject."""
        scaled = kubectl.get("scaledobject", name, namespace=self.installation.namespace)
        conditions = {each["type"]: each["status"] for each in scaled["status"].get("conditions", [])}
        return str(conditions.get(kind, ""))

    def warnings(self, name: str) -> list[str]:
        """Return what `kubectl describe` shows of the failures of a ScaledObject."""
        events = kubectl.get("events", namespace=self.installation.namespace)["items"]
        return [
            event["message"]
            for event in events
            if event["involvedObject"]["name"] == name and event["type"] == "Warning"
        ]

    @asynccontextmanager
    async def builds(self) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Yield what requests builds that take long, of which one runs and the others wait; cancel them at the end."""
        async with AsyncExitStack() as stack:
            requests: list[Asked] = []

            async def request(number: int) -> None:
                for name in (f"slow-{uuid.uuid4().hex[:8]}" for _ in range(number)):
                    spec = self.installation.site.slow(900, name).spec()
                    requests.append(await stack.enter_async_context(asked(self.installation.amqp, spec)))

            yield request
            for each in requests:
                await each.cancel()
            # Those that wait end once their turn has come.
            for each in requests:
                await each.story()


@pytest.fixture(scope="module")
def scaled(consumer_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    if not faults.are_possible():
        pytest.skip("KEDA is started on the cluster that is made here")
    with keda.running(), prepared(tmp_path_factory.mktemp("keda")) as installation:
        made = Scaled(installation)
        made.monitor.provide_secret(made.monitor.change_password())
        try:
            installation.install(made.values)
            yield made
        finally:
            made.monitor.remove()


def test_the_api_server_takes_all_objects_for_keda(scaled: Scaled) -> None:
    namespace = scaled.installation.namespace
    objects = [
        found
        for found in rendered(namespace, HUB, EVERYTHING, SWITCHED_ON)
        if found["apiVersion"].startswith("keda.sh/")
    ]

    assert [found["kind"] for found in objects].count("ScaledObject") == 2
    assert len(taken(namespace, objects)) == len(objects)


async def test_consumers_and_placeholders_grow_with_what_waits_and_shrink_to_their_minimum(
    scaled: Scaled,
) -> None:
    await scaled.until(consumers=1, placeholders=0)

    async with scaled.builds() as request:
        await request(4)
        await scaled.until(consumers=2, placeholders=2)

    await scaled.until(consumers=1, placeholders=0)
    assert scaled.condition(RELEASE) == scaled.condition(PLACEHOLDER) == "True"


async def test_a_build_brings_a_placeholder_while_rabbitmq_refuses_the_password_of_keda(
    scaled: Scaled,
) -> None:
    await scaled.until(consumers=1, placeholders=0)

    known, password = scaled.monitor.known_to_keda, scaled.monitor.change_password()
    await scaled.eventually(lambda: any("401" in text for text in scaled.warnings(RELEASE)))
    assert not [text for text in scaled.warnings(RELEASE) if any(part in text for part in known.split("/%"))]
    async with scaled.builds() as request:
        await request(1)
        await scaled.until(consumers=1, placeholders=1)
        assert scaled.condition(RELEASE) == "False"
        scaled.monitor.provide_secret(password)
        await scaled.eventually(lambda: scaled.condition(RELEASE) == "True")
        await request(3)
        await scaled.until(consumers=2, placeholders=2)

    await scaled.until(consumers=1, placeholders=0)


async def test_an_uninstall_ends_builds_and_leaves_nothing_that_keda_scales(scaled: Scaled) -> None:
    site = scaled.installation.site
    async with asked(scaled.installation.amqp, site.slow(900, "uninstalled").spec()) as request:
        await request.until_line("second-1")
        await asyncio.to_thread(scaled.installation.helm, "uninstall", RELEASE)
        story = await request.story()

    assert isinstance(story.end, Cancelled)
    assert story.end.by == BY

    def left() -> set[str]:
        names = set(site.kubectl("get", SCALED_KINDS, "--output=name").split())
        return {name for name in names if RELEASE in name}

    await scaled.eventually(lambda: not left())
