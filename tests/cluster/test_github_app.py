"""Builds of private repositories in pods, with the tokens of a GitHub App: submodules of other accounts included."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import kubectl
from tests.cluster.harness.layout import HOST
from tests.cluster.harness.own import KIND
from tests.cluster.site import DOCKER_API_SELECTOR, Site, opened
from tests.support.consumer import Consumer
from tests.support.github_app import OWNER, Enterprise, enterprise
from tests.support.stories import build
from tests.support.waiting import eventually

OTHER = "acme-data"
"""An account with an installation of its own."""
AUTHORITY = "/etc/authority/ca.pem"
BASE_IMAGE = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_BASE_IMAGE", "")
DOCKERFILE = f"""FROM {BASE_IMAGE}
COPY . /everything
RUN cat /everything/sub/inner.txt /everything/other/data.txt; env; cat /proc/*/environ; true
"""


@pytest.fixture
def github(cluster: str, tmp_path: Path) -> Iterator[Enterprise]:
    if cluster != KIND:
        pytest.skip("serves repositories on an address of the cluster that is made here")
    with enterprise(tmp_path / "github", HOST) as github:
        yield github


@pytest.fixture
def site(github: Enterprise, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with opened(tmp_path / "site") as made:
        authority = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority"}}
        kubectl.apply(
            {**authority, "data": {"ca.pem": github.authority.read_text()}}, namespace=made.namespace
        )
        yield made


@pytest.fixture
def consumer(site: Site, github: Enterprise) -> Consumer:
    """A consumer with the App, whose pods trust the server as docs/how-to/kubernetes.md has it for a private authority."""
    volume = {"name": "authority", "configMap": {"name": "authority"}}
    mount = {"name": "authority", "mountPath": "/etc/authority"}
    made = site.consumer(
        GIT_SSL_CAINFO=str(github.authority),
        SSL_CERT_FILE=str(github.authority),
        RABBIT2DOCKER_PROVIDERS__GITHUB_HOSTNAME=github.host,
        RABBIT2DOCKER_TENANTS=json.dumps({"default": github.tenant(submodule_accounts=[OTHER])}),
        RABBIT2DOCKER_KUBERNETES__EXTRA_VOLUMES=json.dumps([volume]),
        RABBIT2DOCKER_KUBERNETES__EXTRA_VOLUME_MOUNTS=json.dumps([mount]),
        RABBIT2DOCKER_KUBERNETES__ENV=json.dumps({"GIT_SSL_CAINFO": AUTHORITY}),
        RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS="20",
    )
    made.start_and_wait()
    return made


def image_of(site: Site, pod: str, image: str) -> bytes:
    """Return an image as its engine has it, with its layers and history."""
    node = kubectl.get("pod", pod, namespace=site.namespace)["spec"]["nodeName"]
    [engine] = [
        each["metadata"]["name"]
        for each in site.pods(DOCKER_API_SELECTOR)
        if each["spec"]["nodeName"] == node
    ]
    socket = f"unix://{site.socket_directory}/docker.sock"
    command = ["kubectl", "--namespace", site.namespace, "exec", engine, "--", "docker", "--host", socket]
    return subprocess.run([*command, "save", image], check=True, capture_output=True, timeout=120).stdout


async def test_private_submodules_of_other_accounts_are_fetched_in_the_pod_with_tokens_that_nothing_keeps(
    github: Enterprise, site: Site, consumer: Consumer
) -> None:
    inner = github.repository("inner", {"inner.txt": "From the submodule.\n"})
    outer = github.repository("outer", {"Dockerfile": DOCKERFILE})
    outer.add_submodule("sub", f"../{inner.name}", inner.head())
    data = github.repository("data", {"data.txt": "From another account.\n"}, account=OTHER)
    outer.add_submodule("other", github.url(data, OTHER), data.head())

    story = await build(site.amqp, f"{OWNER}/{outer.name}/{outer.head()[:10]}", provider="gh")

    image = story.completed.image
    log = "\n".join(story.log)
    assert "From the submodule." in log, log
    assert "From another account." in log, log
    assert github.accounts_of_tokens_for(data) == {OTHER}
    assert github.accounts_of_tokens_for(inner) == {OWNER}
    scopes = [token.repositories for token in github.tokens]
    assert {f"{OWNER}/{made.name}" for made in (inner, outer)} in scopes
    assert {f"{OTHER}/{data.name}"} in scopes
    pod = kubectl.get("pod", story.accepted.build_name, namespace=site.namespace)
    shown = json.dumps(pod) + repr(story.events) + consumer.log.read_text()
    saved = image_of(site, story.accepted.build_name, image)
    assert b"From another account." in saved
    assert not [secret for secret in github.secrets if secret in shown or secret.encode() in saved]
    await eventually(
        lambda: not [name for name in site.leftovers() if name.startswith("secret/")], seconds=90
    )
