"""A JupyterHub on the cluster whose users build images in its form and start servers from them on other nodes.

The values are those of the documentation. Hub, proxy, KubeSpawner, form, browser, builds and servers are real.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from deploy.dev.machine import CHECKOUT, RUN
from playwright.async_api import expect

from rabbit2docker.client import PullSecrets
from tests.cluster import hub_images, zero_to_jupyterhub
from tests.cluster.harness import choice, kubectl, own
from tests.cluster.harness.beside import ACCOUNTS
from tests.cluster.harness.layout import HOST, NODES, PRIVATE_REGISTRY
from tests.cluster.installation import RELEASE, Installation, Values, docker_config, merged, prepared
from tests.cluster.site import IMAGES, REGISTRY
from tests.support.browser import PATIENCE_MS, Looking, a_browser, looking
from tests.support.fancy_profiles import open_form, order
from tests.support.github_app import OWNER, Enterprise, enterprise
from tests.support.repositories import Repository
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(900)

PAGE = CHECKOUT / "docs/how-to/jupyterhub.md"
EXAMPLE = CHECKOUT / "deploy/jupyterhub"
TENANT, PULL_SECRET = "alpha", "pull-alpha"
BUILDS, USERS = (node.name for node in NODES)
"""The nodes of the builds and of the users' servers."""
AUTHORITY = "/etc/authority/ca.pem"
BASE = f"{PRIVATE_REGISTRY}/hub/{hub_images.PYTHON}"
"""The base of users' images, in the registry of these: so builds pull with an account, and push their own layers only."""
DOCKERFILE = f"""FROM {BASE}
COPY wheels /wheels
RUN pip install --no-index --find-links=/wheels --break-system-packages --ignore-installed jupyterhub jupyter-server
RUN useradd --create-home --uid 1000 jovyan
ENV HOME=/home/jovyan
WORKDIR /home/jovyan
USER 1000
"""


def documented() -> Values:
    """Return the values of Zero to JupyterHub on the page, with the address of this cluster's registry."""
    section = PAGE.read_text().partition("\n## On Kubernetes\n")[2].partition("\n## ")[0]
    block = re.search(r"(?m)^    hub:\n(?:(?:    .*)?\n)+", section)
    assert block
    return dict(yaml.safe_load(here(re.sub(r"(?m)^    ", "", block[0]))))


def here(text: str) -> str:
    """Return values with this cluster's registry, which wants a login, for the one in the examples."""
    example = "registry.example.org"
    return text.replace(example, PRIVATE_REGISTRY).replace(re.escape(example), re.escape(PRIVATE_REGISTRY))


def test_the_values_on_the_page_are_those_of_the_example() -> None:
    assert documented() == yaml.safe_load(here((EXAMPLE / "values.yaml").read_text()))


def test_all_values_on_the_page_are_tried() -> None:
    assert not list(zero_to_jupyterhub.unknown(documented()))
    assert list(
        zero_to_jupyterhub.unknown({"hub": {"image": {"name": "x", "wrong": "y"}}, "proxies": {}})
    ) == [
        "hub.image.wrong",
        "proxies",
    ]


def consumers(github: Enterprise) -> Values:
    """Return values of the consumers and engines: a private registry, a tenant, a git server with an authority of its own."""
    trusted = {"name": "authority", "configMap": {"name": "authority"}}
    mount = {"name": "authority", "mountPath": "/etc/authority"}
    variables = {"SSL_CERT_FILE": AUTHORITY, "GIT_SSL_CAINFO": AUTHORITY}
    return {
        "hubService": {"enabled": False},
        "consumer": {
            "extraEnv": [{"name": name, "value": value} for name, value in variables.items()],
            "extraVolumes": [trusted],
            "extraVolumeMounts": [mount],
        },
        "config": {
            "images": {
                "prefix": f"{PRIVATE_REGISTRY}/hub/r2d-",
                "registry_url": f"http://{PRIVATE_REGISTRY}",
            },
            "tenants": [TENANT],
            "hub": None,
            "providers": {"github_hostname": github.host},
            "kubernetes": {
                "extra_volumes": [trusted],
                "extra_volume_mounts": [mount],
                "env": variables,
            },
        },
        "dockerApi": {
            "insecureRegistries": [REGISTRY, PRIVATE_REGISTRY],
            "nodeSelector": {"kubernetes.io/hostname": BUILDS},
        },
    }


def names_of(*services: str, namespace: str) -> list[dict[str, Any]]:
    """Return the names of Services as a pod's `hostAliases`, for this cluster has no DNS."""
    found = {name: kubectl.get("service", name, namespace=namespace) for name in services}
    return [{"ip": each["spec"]["clusterIP"], "hostnames": [name]} for name, each in found.items()]


def provide_secret(namespace: str, name: str, kind: str = "Opaque", **data: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind}
    named = {key.replace("_", "."): value for key, value in data.items()}
    kubectl.apply({**secret, "stringData": named}, namespace=namespace)


def provide_login(namespace: str, name: str, account: str) -> None:
    """Make a Secret with an account of the private registry."""
    config = docker_config(**{PRIVATE_REGISTRY: f"{account}:{ACCOUNTS[account]}"})
    provide_secret(namespace, name, "kubernetes.io/dockerconfigjson", _dockerconfigjson=config)


@dataclass
class Stage:
    """Consumers in one namespace, and a JupyterHub with the hub's service in another."""

    builds: Installation
    hub: str
    """The namespace of the JupyterHub, its service and its users."""
    github: Enterprise

    @property
    def address(self) -> str:
        proxy = kubectl.get("service", "proxy-public", namespace=self.hub)
        return f"http://{proxy['spec']['clusterIP']}/"

    def repository(self) -> Repository:
        """Make a public repository whose image has what a hub's user needs, and nothing from the network."""
        wheels = {f"wheels/{file.name}": file.read_bytes() for file in hub_images.wheels().iterdir()}
        made = self.github.repository("notebook", {"Dockerfile": DOCKERFILE, **wheels})
        self.github.public.add(f"{OWNER}/{made.name}")
        return made

    def install_hub(self) -> None:
        """Do what the page and the chart's page ask of an operator, in their order."""
        namespace = self.hub
        provide_secret(namespace, "rabbitmq", url=self.builds.amqp.url.get_secret_value())
        provide_login(namespace, PULL_SECRET, "puller")
        kubectl.apply(*zero_to_jupyterhub.services(), namespace=namespace)
        proxied = names_of("hub", "proxy-api", namespace=namespace)
        values = merged(documented(), self._of_this_cluster(proxied))
        assert not list(zero_to_jupyterhub.unknown(values))
        kubectl.apply(zero_to_jupyterhub.secret(values), namespace=namespace)
        ours = merged(
            yaml.safe_load(here((EXAMPLE / "rabbit2docker.yaml").read_text())),
            {
                "image": {"repository": f"{IMAGES}rabbit2docker", "tag": "1"},
                "hubService": {
                    "persistence": {"enabled": False},
                    "extraPodSpec": {"hostAliases": proxied},
                },
            },
        )
        Installation(namespace, self.builds.amqp, self.builds.site).install_alone(ours)
        service = names_of(f"hub-{RELEASE}", namespace=namespace)
        kubectl.apply(*zero_to_jupyterhub.workloads(values, [*proxied, *service]), namespace=namespace)
        for name in ("hub", "proxy"):
            kubectl.kubectl("rollout", "status", f"deployment/{name}", "--timeout=110s", namespace=namespace)

    def _of_this_cluster(self, host_aliases: list[dict[str, Any]]) -> Values:
        """Return values that every hub has of its own: images, a login, storage, nodes."""
        name, _, tag = hub_images.HUB.partition(":")
        return {
            "hub": {
                "image": {"name": f"{IMAGES}{name}", "tag": tag},
                # The default patience with a new server, 30 seconds, is too short for a machine with too much to do.
                "config": {"Authenticator": {"allow_all": True}, "KubeSpawner": {"http_timeout": 240}},
                "db": {"type": "sqlite-memory"},
            },
            "singleuser": {
                "nodeSelector": {"kubernetes.io/hostname": USERS},
                "extraPodConfig": {"hostAliases": host_aliases},
            },
        }


@pytest.fixture(scope="module")
def stage(consumer_image: None, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if cluster != own.KIND:
        pytest.skip("needs two nodes and a registry with accounts, which the cluster that is made here has")
    archive = RUN / "jupyterhub.tar"
    hub_images.make(archive)
    choice.load(archive)
    own.push(hub_images.PYTHON, BASE, login=f"pusher:{ACCOUNTS['pusher']}")
    directory = tmp_path_factory.mktemp("jupyterhub")
    with ExitStack() as stack:
        github = stack.enter_context(enterprise(directory / "github", HOST))
        builds = stack.enter_context(prepared(directory))
        hub = stack.enter_context(kubectl.new_namespace("hub"))
        authority = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority"}}
        kubectl.apply(
            {**authority, "data": {"ca.pem": github.authority.read_text()}}, namespace=builds.namespace
        )
        provide_login(builds.namespace, "push", "pusher")
        builds.install(consumers(github))
        made = Stage(builds, hub, github)
        made.install_hub()
        yield made


@pytest.fixture
async def window(stage: Stage) -> AsyncIterator[Looking]:
    async with a_browser() as browser, looking(browser) as window:
        yield window


def servers(stage: Stage) -> list[Any]:
    selector = "component=singleuser-server"
    return list(kubectl.get("pods", namespace=stage.hub, selector=selector)["items"])


async def test_a_user_builds_an_image_in_the_form_and_gets_a_server_from_it_on_another_node(
    stage: Stage, window: Looking
) -> None:
    repository = stage.repository()
    page = window.page
    # Without HTTPS, a browser lacks what the form notes earlier repositories with.
    window.expected = ("crypto.randomUUID",)
    await open_form(page, stage.address)
    await order(page, f"{OWNER}/{repository.name}", "main")
    await expect(page.get_by_text("A Jupyter Server is running.")).to_be_visible(timeout=4 * PATIENCE_MS)

    [server] = servers(stage)
    [container] = server["spec"]["containers"]
    image = container["image"]
    assert image.startswith(f"{PRIVATE_REGISTRY}/hub/r2d-{TENANT}.")
    assert server["spec"]["imagePullSecrets"] == [{"name": PULL_SECRET}]
    assert server["spec"]["nodeName"] == USERS
    [built] = stage.builds.site.pods()
    assert built["spec"]["nodeName"] == BUILDS
    answer = await page.request.get(f"{stage.address}user/ada/api")
    assert "version" in await answer.json()
    # The service knows the browser once its page has logged it in.
    await page.goto(f"{stage.address}services/binder/")
    await expect(page.get_by_text(repository.name).first).to_be_visible(timeout=PATIENCE_MS)
    answer = await page.request.get(f"{stage.address}services/binder/api/builds?q={repository.name}")
    [build] = (await answer.json())["builds"]
    assert (build["state"], build["image"], build["requester"]) == ("completed", image, "ada")

    await without_the_secret_nothing_is_pulled(stage, image)


async def without_the_secret_nothing_is_pulled(stage: Stage, image: str) -> None:
    """Try the image on a node that does not have it."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger"},
        "spec": {
            "nodeName": BUILDS,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "stranger", "image": image}],
        },
    }
    kubectl.apply(pod, namespace=stage.hub)

    def refusal() -> str:
        return json.dumps(kubectl.get("pod", "stranger", namespace=stage.hub)["status"])

    await eventually(lambda: "authorization failed" in refusal() or "401" in refusal(), seconds=60)


def test_the_hook_of_the_page_gives_other_images_no_secret() -> None:
    made: dict[str, Any] = {}

    class Settings:
        def __getattr__(self, name: str) -> "Settings":
            return self

        def __setattr__(self, name: str, value: Any) -> None:
            made[name] = value

    exec(documented()["hub"]["extraConfig"]["pull-secrets"], {"c": Settings()})
    hook = made["modify_pod_hook"]
    assert isinstance(hook, PullSecrets)
    assert hook.of_image(f"{PRIVATE_REGISTRY}/hub/r2d-alpha.x:1") == [PULL_SECRET]
    assert hook.of_image(f"{PRIVATE_REGISTRY}/hub/r2d-x:1") == []
    assert hook.of_image("quay.io/jupyter/minimal-notebook:latest") == []
