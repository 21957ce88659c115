"""Names that lead elsewhere once they were looked up, in a network of its own: public addresses can be had there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.repositories import GitServer
from tests.support.ssh_server import SshServer, ssh_server
from tests.support.waiting import eventually_blocking

PUBLIC: Final = "9.9.9.9"
"""Nothing leaves the network: on it, this is an address of the tests."""
INSIDE: Final = "127.0.0.1"
ORIGIN: Final = "origin.example"
NAMES: Final = ("rebinds-git.example", "rebinds-ssh.example", "rebinds-http.example")
_NETWORK: Final = """
set -e
ip link set lo up
ip address add "$1/32" dev lo
mount --bind "$2" /etc/hosts
echo ready
exec sleep infinity
"""
# In the place of git: by the time of a connection, the name leads inside.
_GIT: Final = """#!/bin/sh
for name in {names}; do
    case "$*" in *"$name"*)
        sed "s/^{public} $name/{inside} $name/" {hosts} > {hosts}.new
        cat {hosts}.new > {hosts};;
    esac
done
exec {git} "$@"
"""


@dataclass
class Rebinding:
    """The network, with servers of git at the public address and listeners at the one inside."""

    directory: Path
    enter: list[str]
    """A command that runs another in the network."""
    ssh: SshServer
    listeners: list[Path] = field(default_factory=list)
    """What those inside have written."""

    @property
    def server(self) -> GitServer:
        """The server of repositories by `git://`."""
        return GitServer(self.directory / "served", f"git://{ORIGIN}")

    @property
    def hosts(self) -> Path:
        return self.directory / "hosts"

    def git_script(self, git: str) -> str:
        """Return what rebinds a name, and then is git."""
        return _GIT.format(names=" ".join(NAMES), public=PUBLIC, inside=INSIDE, hosts=self.hosts, git=git)

    def connections(self) -> list[str]:
        """Return the connections to listeners inside."""
        lines = "\n".join(path.read_text() for path in self.listeners).splitlines()
        return [line for line in lines if "Connection from" in line]

    def leads_inside(self, name: str) -> bool:
        """Return whether a name leads inside by now."""
        return f"{INSIDE} {name}\n" in self.hosts.read_text()


@contextmanager
def rebinding(directory: Path) -> Iterator[Rebinding]:
    """Make the network with its servers; skips the test where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    (directory / "served").mkdir(parents=True)
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{PUBLIC} {name}\n" for name in (ORIGIN, *NAMES)))
    with ExitStack() as stack:
        command = ["unshare", "--net", "--mount", "sh", "-c", _NETWORK, "sh", PUBLIC, str(hosts)]
        network = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        stack.callback(_end, network)
        assert network.stdout
        if network.stdout.readline() != b"ready\n":
            pytest.skip("this machine gives no network of its own")
        enter = ["nsenter", f"--target={network.pid}", "--net", "--mount", "--"]
        ssh = stack.enter_context(ssh_server(directory / "ssh", host=NAMES[1], address=PUBLIC, before=enter))
        made = Rebinding(directory, enter, ssh)
        web = [sys.executable, "-m", "http.server", "--directory", str(directory / "served")]
        _start(stack, made, [*web, "--bind", PUBLIC, "80"], "web", "Serving HTTP")
        _daemon(stack, made, PUBLIC, 9418)
        for port in (9418, 80, ssh.port):
            made.listeners.append(_daemon(stack, made, INSIDE, port))
        yield made


def _daemon(stack: ExitStack, network: Rebinding, address: str, port: int) -> Path:
    """Run a git server that writes down its connections."""
    served = str(network.directory / "served")
    command = ["git", "daemon", "--verbose", "--export-all", f"--base-path={served}"]
    options = [f"--listen={address}", f"--port={port}", "--reuseaddr"]
    return _start(stack, network, [*command, *options], f"{address}-{port}", "Ready to rumble")


def _start(stack: ExitStack, network: Rebinding, command: list[str], name: str, ready: str) -> Path:
    log = network.directory / f"{name}.log"
    with log.open("wb") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*network.enter, *command], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    stack.callback(_end, process)
    eventually_blocking(lambda: ready in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return log


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)  # `git daemon` is a process of its own, below git
    process.communicate()
