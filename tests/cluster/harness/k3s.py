"""A cluster of one node: k3s in a container, with registry, RabbitMQ and images from image registries."""

import os
import shutil
import subprocess
from pathlib import Path

from deploy.dev import engine
from deploy.dev.machine import Ledger, Unable, checkout_id, say, timed
from deploy.dev.services import read_env

from tests.cluster.harness import beside, layout, programs
from tests.cluster.harness.images import REPO2DOCKER
from tests.cluster.harness.layout import (
    AMQP_PORT,
    BASE_IMAGE,
    BIN,
    IMAGES,
    KUBECONFIG,
    MANAGEMENT_PORT,
    REGISTRY_PORT,
    STATE,
)

KIND = "k3s"
IMAGE = os.environ.get("RABBIT2DOCKER_TEST_K3S_IMAGE", "rancher/k3s:latest")
PULL_SECONDS = 300
_LABEL = "rabbit2docker-cluster"
_RABBITMQ_CONFIG = "loopback_users = none\n"
_DOCKERFILES = {
    "busybox:1": "FROM busybox:stable\n",
    # The image's own entrypoint would set up TLS, which a socket does not need.
    "docker-api:1": 'FROM docker:dind\nENTRYPOINT []\nCMD ["dockerd"]\n',
    "repo2docker:1": (
        "FROM python:3.13-slim-trixie\n"
        "RUN apt-get -q update "
        "&& apt-get -q install -y --no-install-recommends ca-certificates git docker-cli docker-buildx "
        "&& rm -rf /var/lib/apt/lists/* "
        f"&& pip install --no-cache-dir jupyter-repo2docker=={REPO2DOCKER}\n"
    ),
}


def prepare() -> None:
    """Compile what the machine lacks of the programs; the images' layers are pulled by the engine. Raises Unable."""
    _provide_programs()


def up() -> dict[str, str]:
    """Start what does not run and return the variables that say where everything is; raises Unable."""
    ledger = layout.ledger()
    _provide_programs()
    gateway = _gateway()
    registry = f"{gateway}:{REGISTRY_PORT}"
    _start_services(gateway, ledger)
    beside.wait_for_http("registry", f"http://{registry}/v2/")
    if not _runs("k3s", ledger):
        with timed(f"Starting {IMAGE}"):
            _start(registry, ledger)
        archive = _make_images()
        with timed("Importing images"):
            load(archive)
        _push_base(registry, ledger)
    amqp, management = f"{gateway}:{AMQP_PORT}", f"{gateway}:{MANAGEMENT_PORT}"
    beside.wait_for_http("rabbitmq", f"http://{management}/api/auth")
    return {
        "KUBECONFIG": str(KUBECONFIG),
        "RABBIT2DOCKER_TEST_CLUSTER": KIND,
        "RABBIT2DOCKER_TEST_CLUSTER_REGISTRY": registry,
        "RABBIT2DOCKER_TEST_CLUSTER_BASE_IMAGE": f"{registry}/{BASE_IMAGE}",
        "RABBIT2DOCKER_TEST_CLUSTER_GIT_ROOT": str(beside.GIT_ROOT),
        "RABBIT2DOCKER_TEST_CLUSTER_GIT_URL": beside.git_url(gateway),
        "RABBIT2DOCKER_TEST_CLUSTER_AMQP_URL": f"amqp://guest:guest@{amqp}/",
        "RABBIT2DOCKER_TEST_CLUSTER_MANAGEMENT_URL": f"http://guest:guest@{management}/",
        "RABBIT2DOCKER_TEST_CLUSTER_IMAGES": IMAGES,
        "RABBIT2DOCKER_TEST_CLUSTER_BIN": str(BIN),
    }


def down(*, wipe: bool = False) -> None:
    """End what `up` started; harmless when there is nothing."""
    ledger = layout.ledger()
    if not ledger.containers and read_env(layout.ENV).get("RABBIT2DOCKER_TEST_CLUSTER") != KIND:
        return
    # By their label, for a start that was interrupted noted no container.
    of_ours = ("--all", "--quiet", "--filter", f"label={_LABEL}={checkout_id()}")
    for container in engine.docker({}, "ps", *of_ours).split():
        say(f"Ending container {container}")
        engine.docker({}, "rm", "--force", "--volumes", container)
    for process in ledger.processes:
        process.end()
    ledger.path.unlink(missing_ok=True)
    layout.ENV.unlink(missing_ok=True)
    if wipe:
        shutil.rmtree(STATE, ignore_errors=True)


def load(archive: Path) -> None:
    """Import the images of an archive into the node; raises Unable."""
    container = layout.ledger().containers.get("k3s")
    if container is None:
        raise Unable("k3s does not run; `make cluster-up` starts it.")
    with archive.open("rb") as content:
        result = subprocess.run(
            [_client(), "exec", "-i", container, "ctr", "-n", "k8s.io", "images", "import", "-"],
            stdin=content,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise Unable(f"{archive} cannot be imported:\n{result.stderr[-1000:]}")


def _client() -> str:
    return shutil.which("docker") or "docker"


def _provide_programs() -> None:
    """Take kubectl and helm from the machine, and compile those that it lacks."""
    BIN.mkdir(parents=True, exist_ok=True)
    for name, program in (("kubectl", "kube"), ("helm", "helm")):
        link = BIN / name
        if link.exists():
            continue
        if found := shutil.which(name):
            link.unlink(missing_ok=True)
            link.symlink_to(found)
        else:
            programs.provide(program)


def _gateway() -> str:
    """Return the address of this machine that containers and this machine reach it by."""
    form = "{{(index .IPAM.Config 0).Gateway}}"
    gateway = engine.docker({}, "network", "inspect", "bridge", "--format", form)
    if not gateway:
        raise Unable(
            "The Docker engine's network `bridge` has no gateway, so pods could not reach this machine."
        )
    return gateway


def _runs(name: str, ledger: Ledger) -> bool:
    container = ledger.containers.get(name)
    return bool(container) and bool(engine.docker({}, "ps", "--quiet", "--filter", f"id={container}"))


def _start_services(gateway: str, ledger: Ledger) -> None:
    config = STATE / "rabbitmq.conf"
    STATE.mkdir(parents=True, exist_ok=True)
    config.write_text(_RABBITMQ_CONFIG)
    mount = f"{config}:/etc/rabbitmq/conf.d/90-cluster.conf:ro"
    services = {
        "registry": ["-p", f"{gateway}:{REGISTRY_PORT}:5000", "registry:2"],
        "rabbitmq": [
            *("-p", f"{gateway}:{AMQP_PORT}:5672"),
            *("-p", f"{gateway}:{MANAGEMENT_PORT}:15672"),
            *("-v", mount, "rabbitmq:4-management"),
        ],
    }
    for name, arguments in services.items():
        if not _runs(name, ledger):
            ledger.containers[name] = engine.docker(
                {}, "run", "-d", "--label", f"{_LABEL}={checkout_id()}", *arguments
            )
            ledger.save()
    beside.start_git(ledger, gateway)


def _start(registry: str, ledger: Ledger) -> None:
    # Imported here: the other kinds of cluster do without it.
    from testcontainers.community.k3s import K3SContainer
    from testcontainers.core.config import testcontainers_config

    # The reaper would end the cluster together with this program.
    testcontainers_config.ryuk_disabled = True
    mirrors = STATE / "registries.yaml"
    mirrors.write_text(f'mirrors:\n  "{registry}":\n    endpoint: ["http://{registry}"]\n')
    container = K3SContainer(IMAGE).with_volume_mapping(mirrors, "/etc/rancher/k3s/registries.yaml", "ro")
    container.with_kwargs(privileged=True, labels={_LABEL: checkout_id()}).start()
    ledger.containers["k3s"] = str(container.get_wrapped_container().id)
    ledger.save()
    KUBECONFIG.touch(mode=0o600)
    KUBECONFIG.write_text(container.config_yaml())


def _push_base(registry: str, ledger: Ledger) -> None:
    ctr = ("exec", ledger.containers["k3s"], "ctr", "-n", "k8s.io", "images")
    engine.docker({}, *ctr, "tag", "--force", f"{IMAGES}busybox:1", f"{registry}/{BASE_IMAGE}")
    engine.docker({}, *ctr, "push", "--plain-http", f"{registry}/{BASE_IMAGE}")


def _make_images() -> Path:
    """Build the images on official ones and pack them."""
    archive = STATE / "images.tar"
    for name, dockerfile in _DOCKERFILES.items():
        with timed(f"Building {IMAGES}{name}"):
            engine.docker({}, "build", "--quiet", "--tag", IMAGES + name, _context(name, dockerfile))
    engine.docker({}, "save", "--output", str(archive), *(IMAGES + name for name in _DOCKERFILES))
    return archive


def _context(name: str, dockerfile: str) -> str:
    directory = STATE / "contexts" / name.replace(":", "-")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "Dockerfile").write_text(dockerfile)
    return str(directory)
