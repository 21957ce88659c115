"""compose.yaml as people on laptops use it: up, builds over HTTP and AMQP, down."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.dev.machine import CHECKOUT, RUN, checkout_id

from tests.compose import clients, images
from tests.compose.network import own_engine, own_network
from tests.support.ports import free_port
from tests.support.repositories import GitServer, Repository, dockerfile, skip_without_services, tools_path
from tests.support.waiting import eventually_blocking

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

PROJECT = f"rabbit2docker-test-{checkout_id()}"
ENGINE_SOCKET = "/run/engine/docker.sock"
"""The socket of an engine that was made here, where that engine sees it."""
ENDS = ("completed", "failed", "cancelled", "rejected")
LABEL = f"label=com.docker.compose.project={PROJECT}"


@contextmanager
def docker_environment(directory: Path) -> Iterator[tuple[dict[str, str], Path | None]]:
    """Give the variables of an engine that has or pulls all images, and Python packages for it if it cannot get any."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RABBIT2DOCKER_")}
    environment = clients.provide({**own, "PATH": tools_path()}, directory / "docker")
    if not os.environ.get("RABBIT2DOCKER_DOCKER__HOST", "").startswith(f"unix://{RUN}/"):
        yield environment, None
        return
    wheels = images.download()
    with own_network(), own_engine(RUN / "compose") as ledger:
        environment |= {"DOCKER_HOST": ledger.docker_host, "DOCKER_SOCKET": ENGINE_SOCKET}
        images.provide(ledger, environment, named_images())
        yield environment, wheels


def named_images() -> dict[str, str]:
    """Return the names in compose.yaml and Dockerfile of the images that are not ours."""
    services = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())["services"]
    lines = (CHECKOUT / "Dockerfile").read_text().splitlines()
    arguments = dict(line[4:].partition("=")[::2] for line in lines if line.startswith("ARG "))
    return {
        "python": arguments["BASE_IMAGE"],
        "docker": arguments["DOCKER_CLI_IMAGE"],
        **{name: services[name]["image"] for name in ("rabbitmq", "registry")},
    }


class Laptop:
    """The project, under a name and on ports of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], wheels: Path | None) -> None:
        self.hub_port = free_port()
        ports = {"REGISTRY_PORT": str(free_port()), "HUB_PORT": str(self.hub_port)}
        self.environment = {**environment, **ports}
        # Repositories of the test are on this machine.
        changes: dict[str, Any] = {
            "environment": {"RABBIT2DOCKER_PROVIDERS__ALLOW_PRIVATE_ADDRESSES": "true"}
        }
        if wheels:
            changes["build"] = {"additional_contexts": {"wheels": str(wheels)}}
        override = {"services": dict.fromkeys(("consumer", "hub"), changes)}
        (directory / "override.yaml").write_text(yaml.safe_dump(override))
        files = ["--file", str(CHECKOUT / "compose.yaml"), "--file", str(directory / "override.yaml")]
        self._command = ["docker", "compose", "--project-name", PROJECT, *files]

    def compose(self, *arguments: str) -> str:
        """Run `docker compose`, and return what it printed."""
        return self._run(*self._command, *arguments)

    def docker(self, *arguments: str) -> list[str]:
        """Run the client, and return its lines."""
        return self._run("docker", *arguments).split()

    def _run(self, *command: str) -> str:
        ended = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout

    def get(self, path: str, form: dict[str, str] | None = None) -> bytes:
        """Call the hub's service."""
        body = None if form is None else json.dumps(form).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.hub_port}/{path}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def build(self, id_: str) -> dict[str, Any]:
        return dict(json.loads(self.get(f"api/builds/{id_}")))

    def left(self) -> list[str]:
        """Return what the engine has of the project."""
        everywhere = ["ps", "--all"], ["volume", "ls"], ["network", "ls"]
        return [line for what in everywhere for line in self.docker(*what, "--quiet", "--filter", LABEL)]


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    skip_without_services()
    with docker_environment(tmp_path) as (environment, wheels):
        laptop = Laptop(tmp_path, environment, wheels)
        try:
            yield laptop
        finally:
            laptop.compose("down", "--volumes", "--timeout", "5")


@pytest.fixture
def git(laptop: Laptop, tmp_path: Path) -> Iterator[GitServer]:
    """A git server at the address by which containers reach this machine, once the network exists."""
    laptop.compose("up", "--build", "--wait", "--wait-timeout", "600")
    found = json.loads("".join(laptop.docker("network", "inspect", f"{PROJECT}_default")))
    gateway, port = found[0]["IPAM"]["Config"][0]["Gateway"], free_port()
    root = tmp_path / "git"
    root.mkdir()
    command = ["git", "daemon", "--export-all", f"--listen={gateway}", f"--port={port}"]
    process = subprocess.Popen([*command, f"--base-path={root}", str(root)])

    def answers() -> bool:
        with closing(socket.socket()) as found:
            return found.connect_ex((gateway, port)) == 0

    try:
        eventually_blocking(answers)
        yield GitServer(root, f"git://{gateway}:{port}")
    finally:
        process.terminate()
        process.wait()


def test_builds_over_http_and_amqp_and_everything_is_kept_until_it_is_removed(
    laptop: Laptop, git: GitServer
) -> None:
    by_http = Repository("http", dockerfile('CMD ["echo", "made over HTTP"]'), git)
    created = json.loads(laptop.get("api/builds", {"url": by_http.url}))
    while (build := laptop.build(created["id"]))["state"] not in ENDS:
        time.sleep(1)
    assert build["state"] == "completed", build
    laptop.docker("pull", build["image"])
    assert " ".join(laptop.docker("run", "--rm", build["image"])) == "made over HTTP"
    assert build["digest"].encode() in laptop.get(f"api/builds/{build['id']}/log")

    by_amqp = Repository("amqp", dockerfile("RUN echo made over AMQP"), git)
    said = laptop.compose("exec", "--no-TTY", "consumer", "rabbit2docker", "build", by_amqp.url)
    assert "Completed: localhost:" in said
    eventually_blocking(lambda: by_amqp.url.encode() in laptop.get("api/builds"))

    laptop.compose("down")
    assert not laptop.docker("ps", "--all", "--quiet", "--filter", LABEL)
    laptop.compose("up", "--wait", "--wait-timeout", "600")
    assert laptop.build(created["id"])["digest"] == build["digest"]
    laptop.docker("image", "rm", build["image"])
    laptop.docker("pull", build["image"])

    laptop.compose("down", "--volumes")
    assert not laptop.left()
