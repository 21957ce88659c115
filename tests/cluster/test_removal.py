"""A namespace that is deleted in mid-build, and the way to free it on which requesters learn the ends of their builds."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path

from rabbit2docker.consumer.removal import BY
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Cancelled
from tests.cluster.harness import kubectl
from tests.cluster.site import DOCKER_API, IMAGES, Site
from tests.support.consumer import a_request
from tests.support.rabbitmq import Management
from tests.support.stories import asked
from tests.support.waiting import eventually

ENGINE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "no-engine", "labels": DOCKER_API},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "idle", "image": f"{IMAGES}busybox:1", "command": ["sleep", "600"]}],
    },
}
"""A pod that builds may wait beside; the one of this test never gets a node."""


async def test_a_namespace_that_is_being_deleted_is_freed_once_the_ends_of_its_builds_are_reported(
    namespace: str, tmp_path: Path
) -> None:
    management = Management(os.environ["RABBIT2DOCKER_TEST_CLUSTER_MANAGEMENT_URL"])
    with ExitStack() as stack:
        vhost = management.new_vhost()
        stack.callback(management.delete_vhost, vhost)
        url = os.environ["RABBIT2DOCKER_TEST_CLUSTER_AMQP_URL"] + vhost
        site = Site(namespace, AmqpSettings.model_validate({"url": url}), tmp_path, stack)
        kubectl.apply(ENGINE, namespace=namespace)
        consumer = site.consumer(RABBIT2DOCKER_KUBERNETES__NODE_SELECTOR='{"no": "node"}')
        await asyncio.to_thread(consumer.start_and_wait)
        async with asked(site.amqp, a_request("any").spec) as request:
            await request.until(lambda event: "Waiting for a node" in str(getattr(event.data, "message", "")))
            assert await asyncio.to_thread(consumer.stop) == 0
            site.kubectl("delete", "namespace", namespace, "--wait=false")
            await eventually(lambda: all("deletionTimestamp" in pod["metadata"] for pod in site.pods()))
            result = await asyncio.to_thread(consumer.run_command, "end-builds")
            story = await request.story()

    assert result.returncode == 0, result.stderr
    assert isinstance(story.end, Cancelled)
    assert story.end.by == BY
    assert site.pods() == []
