"""`make hub-demo`: a JupyterHub whose people build their own images, with everything it needs, on this machine alone."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.dev.demo import make_example, service
from deploy.dev.machine import (
    CHECKOUT,
    RUN,
    Ledger,
    Started,
    Unable,
    checkout_id,
    run,
    say,
    start,
    wait_until,
)
from deploy.dev.services import BASE_IMAGE, free_port

NAME = "jupyterhub"
USER, ADMIN = "ada", "grace"
PORT = 8000
NODE = RUN / "node" / "node_modules"
PREFIX = f"r2d-hub-demo-{checkout_id()}"
"""Of the names of the containers that are people's servers."""
START_SECONDS = 120
BUILD_SECONDS = 300
STAND_IN = """#!/bin/sh
# Stands in for Jupyter: one page, where the hub expects the server of this person.
page=/tmp/www$JUPYTERHUB_SERVICE_PREFIX
mkdir -p "$page"
cp /greeting.txt "$page/index.html"
httpd -f -p 8888 -h /tmp/www &
trap exit TERM
wait
"""
DOCKERFILE = f"""FROM {BASE_IMAGE}
COPY greeting.txt /greeting.txt
COPY jupyterhub-singleuser /bin/jupyterhub-singleuser
RUN chmod +x /bin/jupyterhub-singleuser && echo "A step that takes a moment" && sleep 1 && echo "and is done"
CMD ["jupyterhub-singleuser"]
"""


@dataclass(frozen=True, slots=True)
class HubDemo:
    """Paths and addresses of the demonstration."""

    address: str
    repository: str
    """URL of a small git repository that can be built without the Internet."""
    token: str
    """Of the service `check`, which may do in the hub what its people may."""

    @property
    def build_path(self) -> str:
        """Return the address of a build of the repository, below the hub's service."""
        return f"services/binder/build/git/{quote(self.repository, safe='')}/main?build_only=true"


@contextmanager
def hub_demo(environment: dict[str, str]) -> Iterator[HubDemo]:
    """Run consumer, JupyterHub, its proxy and the service, and end them and people's servers again. Raises Unable."""
    make_example(RUN / "git", "notebook", files={"Dockerfile": DOCKERFILE, "jupyterhub-singleuser": STAND_IN})
    repository = f"{environment['RABBIT2DOCKER_TEST_GIT_URL']}/notebook"
    token = secrets.token_hex(16)
    say("Starting the consumer, `rabbit2docker run` …")
    with service(environment):
        say("Starting JupyterHub, its proxy and the service, `rabbit2docker hub` …")
        try:
            with _jupyterhub(environment, token) as address:
                yield HubDemo(address, repository, token)
        finally:
            _remove_servers(environment)


@contextmanager
def _jupyterhub(environment: dict[str, str], token: str) -> Iterator[str]:
    directory, ledger = RUN / "hub", Ledger()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    address = f"http://127.0.0.1:{_port()}/"
    os.environ.update(
        environment,
        HUB_DIRECTORY=str(directory),
        HUB_URL=address,
        HUB_API_PORT=str(free_port()),
        HUB_PROXY_API_PORT=str(free_port()),
        HUB_SERVICE_PORT=str(free_port()),
        HUB_PROXY=_proxy(),
        HUB_PREFIX=PREFIX,
        HUB_CHECK_TOKEN=token,
        RABBIT2DOCKER_HUB__STORE_URL=f"sqlite:///{directory / 'builds.sqlite'}",
        PYTHONPATH=str(CHECKOUT),
    )
    config = Path(__file__).with_name("hub_config.py")
    log = directory / "log"
    command = [sys.executable, "-m", "jupyterhub", "--config", str(config)]
    process = start(NAME, command, log=log, ledger=ledger)
    try:
        there = wait_until(lambda: _is_ready(address) or not process.is_alive(), START_SECONDS)
        if not there or not process.is_alive():
            raise Unable(f"JupyterHub did not start:\n{log.read_text()[-3000:]}")
        yield address
    finally:
        _end(process, directory)
        ledger.remove(NAME)


def _end(process: Started, directory: Path) -> None:
    """End the hub, which ends its proxy, the service and people's servers, and what it has left of them."""
    process.end(60)
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = os.fsencode(directory) in entry.read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if is_ours and int(entry.parent.name) != os.getpid():
            Started.of("left behind", int(entry.parent.name)).end()


def _remove_servers(environment: dict[str, str]) -> None:
    docker = shutil.which("docker", path=environment["PATH"]) or "docker"
    listed = [docker, "ps", "--all", "--quiet", "--filter", f"name=^/?{PREFIX}"]
    for container in run(listed, env=environment).stdout.split():
        subprocess.run(
            [docker, "rm", "--force", "--volumes", container],
            env=environment,
            capture_output=True,
            check=False,
        )


def _port() -> int:
    """Return a port that people can remember, or a free one where it is taken."""
    with suppress(OSError), socket.create_server(("127.0.0.1", PORT)):
        return PORT
    return free_port()


def _proxy() -> str:
    found = shutil.which("configurable-http-proxy", path=f"{NODE / '.bin'}:{os.environ['PATH']}")
    if found is None:
        raise Unable("configurable-http-proxy is missing; `make hub-demo` gets it from npm.")
    return found


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}services/binder/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def demonstrate(environment: dict[str, str], *, check: bool) -> int:
    """Run it until Ctrl-C or SIGTERM; with `check`, look whether all works instead. Return the exit code."""
    with hub_demo(environment) as demo:
        if check:
            _check(demo)
            return 0
        _explain(demo)
        signal.pause()
    return 0


def _explain(demo: HubDemo) -> None:
    say("")
    say(f"The hub:       {demo.address}   (log: {RUN / 'hub' / 'log'})")
    say(f"Log in as:     {USER}, with any password; {ADMIN} is an administrator and sees everybody's builds")
    say("")
    say(
        f"1. {demo.address}services/binder/ has all builds. Press “New build” and give it this repository, made just now:"
    )
    say(f"       {demo.repository}")
    say(
        "   It needs no Internet. Its page shows the log while it is built, and the name of the image at its end."
    )
    say(
        f"2. {demo.address}hub/spawn has the form of jupyterhub-fancy-profiles. Choose “An image that was built before”,"
    )
    say("   enter that name and press Start: the hub starts a server from your image.")
    say("3. With Internet, choose “Build your own image” there, enter binder-examples/requirements and press")
    say("   “Build Image and Start”: the log runs in the form, and Jupyter starts from the image.")
    say("")
    say("Ctrl-C ends everything.")


def _check(demo: HubDemo) -> None:
    """Build an image and start it, as a person does. Raises Unable with what does not work."""
    hub = _Caller(demo.address, demo.token)
    hub.call("POST", f"hub/api/users/{USER}", {})
    person = _Caller(
        demo.address, hub.call("POST", f"hub/api/users/{USER}/tokens", {"expires_in": 3600})["token"]
    )
    say(f"The hub knows {USER} and gives them a token")
    health = hub.call("GET", "services/binder/health")
    say(f"The service is healthy: {', '.join(each['service'] for each in health['checks'])}")
    person.get("services/binder/")
    say("The service's pages are there")
    image = person.build(demo.build_path)
    say(f"{demo.repository} was built: {image}")
    person.call("POST", f"hub/api/users/{USER}/server", {"profile": "environment", "built": image})
    if not wait_until(
        lambda: bool(person.call("GET", f"hub/api/users/{USER}")["servers"][""]["ready"]), START_SECONDS
    ):
        raise Unable(f"A server with {image} did not start; see {RUN / 'hub' / 'log'}.")
    say(f"A server runs with it and says: {person.get(f'user/{USER}/').strip()}")
    person.call("DELETE", f"hub/api/users/{USER}/server")


class _Caller:
    """A user with a token."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"token {token}"}

    def get(self, path: str) -> str:
        """Return what is there. Raises Unable."""
        return self._read("GET", path, None, {"Accept": "text/html"})

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return an answer in JSON, None for an empty one. Raises Unable."""
        data = None if body is None else json.dumps(body).encode()
        text = self._read(method, path, data, {"Content-Type": "application/json"} if data else {})
        return json.loads(text) if text else None

    def build(self, path: str) -> str:
        """Say what a build says, and return its image. Raises Unable."""
        update: dict[str, str] = {}
        for line in self._read("GET", path, None, {"Accept": "text/event-stream"}).splitlines():
            if line.startswith("data: "):
                update = json.loads(line.removeprefix("data: "))
                say(f"  | {update.get('message', '').strip()}")
        if update.get("phase") != "ready":
            raise Unable(f"The build has failed; the consumer's log is {RUN / 'service.log'}.")
        return update["imageName"]

    def _read(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> str:
        url = self._address + path
        request = urllib.request.Request(url, data, {**self._headers, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=BUILD_SECONDS) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                raise Unable(
                    f"{method} {path} answers {error.code}: {error.read().decode()[:500]}"
                ) from error
        except OSError as error:
            raise Unable(f"{method} {path} is not answered: {error}") from error
