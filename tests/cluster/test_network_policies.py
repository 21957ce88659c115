"""The chart's network policies, enforced by a real policy engine and tried from inside the steps of a build."""

import asyncio
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deploy.helm.schema import CHART

from tests.cluster.harness import faults, policies
from tests.cluster.harness.layout import (
    API_PORT,
    API_SERVICE,
    GIT_PORT,
    HOST,
    NODES,
    REGISTRY_PORT,
)
from tests.cluster.site import IMAGES, REGISTRY, Site, opened, shell
from tests.support.consumer import Consumer
from tests.support.stories import build

pytestmark = pytest.mark.disruptive

RELEASE = "rabbit2docker"
OPEN = {"registry": f"{HOST}:{REGISTRY_PORT}/v2/"}
CLOSED = {
    "metadata": policies.METADATA,
    "api-server": f"{HOST}:{API_PORT}",
    "service-of-the-api-server": f"{API_SERVICE}:443",
    "kubelet-of-another-node": f"{NODES[1].address}:10250",
}
TO_THE_SITE = {
    "to": [{"ipBlock": {"cidr": f"{HOST}/32"}}],
    "ports": [{"port": REGISTRY_PORT}, {"port": GIT_PORT}],
}
TRIES = 60


def script(*, until: str) -> str:
    """Return a step that tries all addresses, those to be closed until they are as expected, and prints the results."""
    # A server of TLS answers plain HTTP, too: with an error, which is an answer.
    probe = (
        f": {uuid.uuid4().hex}; try() {{ if /bin/busybox wget -T 5 -O /dev/null http://$1 2>/error "
        "|| /bin/busybox grep -q 'HTTP/' /error; then echo open; else echo closed; fi; }; "
    )
    tries = "; ".join(
        f"n=0; while r=$(try {address}); [ $r != {until} ] && [ $n -lt {TRIES} ]; do n=$((n+1)); /bin/busybox sleep 1; "
        f"done; echo result-{name}-$r"
        for name, address in CLOSED.items()
    )
    return probe + tries + "".join(f"; echo result-{name}-$(try {address})" for name, address in OPEN.items())


def chart(site: Site, command: str, **policy: Any) -> None:
    """Install or upgrade the engine of the first node and the policies; the consumer of the test runs outside."""
    values = {
        "consumer": {"enabled": False},
        "networkPolicy": policy,
        "dockerApi": {
            "image": {"repository": f"{IMAGES}docker-api", "tag": "1"},
            "insecureRegistries": [REGISTRY],
            "socketDirectory": site.socket_directory,
            "nodeSelector": {"kubernetes.io/hostname": NODES[0].name},
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
            "terminationGracePeriodSeconds": 10,
            "disk": {"maxPercent": None},  # what cleans it has the image of the service
        },
    }
    result = subprocess.run(
        [
            "helm",
            f"--namespace={site.namespace}",
            command,
            RELEASE,
            str(CHART),
            "--values=-",
            "--wait",
            "--timeout=180s",
        ],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not result.returncode, result.stderr


@pytest.fixture
def site(cluster: str, tmp_path: Path) -> Iterator[Site]:
    if not faults.are_possible():
        pytest.skip("the network of this cluster is not ours")
    with opened(tmp_path) as made:
        made.remove_docker_api()
        chart(made, "install", enabled=False)
        yield made
        subprocess.run(["helm", f"--namespace={made.namespace}", "uninstall", RELEASE, "--wait"], check=False)


async def results(site: Site, name: str, *, until: str) -> dict[str, str]:
    """Return what a step of a build reaches, by name."""
    repository = site.repository(name, shell(script(until=until)))
    story = await build(site.amqp, repository.spec())
    assert story.completed.digest, story.log
    words = [line.rpartition(" ")[2] for line in story.log]
    return dict(word.removeprefix("result-").rsplit("-", 1) for word in words if word.startswith("result-"))


async def test_a_step_of_a_build_reaches_the_registry_but_neither_metadata_nor_nodes_nor_the_api_server(
    site: Site,
) -> None:
    consumer: Consumer = site.consumer(RABBIT2DOCKER_INSTANCE=RELEASE)
    consumer.start_and_wait()

    with policies.metadata_service(), policies.enforced(NODES[0]):
        before = await results(site, "before", until="open")
        await asyncio.to_thread(chart, site, "upgrade", builds={"egress": [TO_THE_SITE]})
        after = await results(site, "after", until="closed")

    assert before == dict.fromkeys([*CLOSED, *OPEN], "open"), "without policies"
    assert after == {**dict.fromkeys(CLOSED, "closed"), **dict.fromkeys(OPEN, "open")}
