"""The Docker engine: the machine's own, or one run from a Debian root in a mount namespace of its own.

The host's packages are left alone: docker and buildx of Debian 13 need a newer C library than Debian 12 has, and
installing them there would upgrade it. The engine shares the host's network, so that published ports and a
registry on loopback are reachable from both sides.
"""

import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.dev import machine
from deploy.dev.machine import (
    CACHE,
    RUN,
    Ledger,
    Started,
    Unable,
    debian_root,
    locked,
    run,
    say,
    timed,
    wait_until,
)

# Without these, the engine drops what a step prints beyond 2 MiB, or faster than 200 KiB a second. There is still a limit,
# for a step that prints without end; the chart has the same.
STEP_LOGS = "BUILDKIT_STEP_LOG_MAX_SIZE=67108864 BUILDKIT_STEP_LOG_MAX_SPEED=-1"
CONTAINERD = "containerd"
PACKAGES = ("ca-certificates", "docker.io", "docker-cli", "docker-buildx", "iptables", "iproute2")

_START = """
set -e
mount --make-rprivate /
mount --bind {root} {root}
for d in proc sys dev; do mount --rbind /$d {root}/$d; done
mount -t tmpfs tmpfs {root}/run
mount -t tmpfs tmpfs {root}/tmp
mkdir -p {root}/run/engine {root}/var/lib/docker
mount --bind {socket_dir} {root}/run/engine
mount --bind {data} {root}/var/lib/docker
[ ! -e /etc/resolv.conf ] || {{ touch {root}/etc/resolv.conf; mount --bind "$(readlink -f /etc/resolv.conf)" {root}/etc/resolv.conf; }}
cd {root}
pivot_root . mnt
umount -l /mnt
rm -f /run/engine/docker.pid /run/engine/docker.sock
# The network that the bridge had the last time: dockerd would return to it, also where another engine has it by now.
rm -f /var/lib/docker/network/files/local-kv.db
ip link show {bridge} > /dev/null 2>&1 || ip link add {bridge} type bridge
ip addr replace {subnet} dev {bridge}
ip link set {bridge} up
export {step_logs}
exec dockerd --host unix:///run/engine/docker.sock --pidfile /run/engine/docker.pid --exec-root /run/docker \\
  --data-root /var/lib/docker --bridge {bridge} --group root {flags}
"""


@dataclass(frozen=True, slots=True)
class MadeEngine:
    """An engine that runs from a Debian root; `directory` holds its socket, data and log."""

    root: Path
    directory: Path
    name: str
    """Part of the bridge's name: another one for each engine on the machine."""
    store: str = ""
    """`containerd` keeps images in containerd's store instead of the engine's own."""

    @property
    def host(self) -> str:
        """Return its DOCKER_HOST."""
        return f"unix://{self.directory / 'socket' / 'docker.sock'}"

    @property
    def bridge(self) -> str:
        """Return the network device of its containers; at most 15 characters."""
        return f"r2d{self.name}"[:15]

    def start(self, ledger: Ledger) -> Started:
        """Start it and wait until it answers; raises Unable with the end of its log."""
        socket_dir, data = self.directory / "socket", self.directory / "data"
        for directory in (socket_dir, data):
            directory.mkdir(parents=True, exist_ok=True)
        if len(self.host) > 110:
            raise Unable(f"The path of this checkout is too long for a socket: {self.host}")
        # Two engines that start together would each find no other and set up the same firewall chains.
        with locked(CACHE / "engine-start.lock"):
            return self._start(socket_dir, data, ledger)

    def _start(self, socket_dir: Path, data: Path, ledger: Ledger) -> Started:
        # A second engine would flush the first one's firewall rules; loopback ports work without any.
        flags = "--iptables=false --ip6tables=false" if another_engine_runs() else ""
        if self.store == CONTAINERD:
            (socket_dir / "daemon.json").write_text('{"features": {"containerd-snapshotter": true}}')
            flags += " --config-file /run/engine/daemon.json"
        script = _START.format(
            root=self.root,
            socket_dir=socket_dir,
            data=data,
            bridge=self.bridge,
            subnet=_free_subnet(self.bridge),
            flags=flags,
            step_logs=STEP_LOGS,
        )
        log = self.directory / "engine.log"
        process = machine.start(
            f"engine-{self.name}", ["unshare", "-m", "sh", "-c", script], log=log, ledger=ledger
        )
        if not wait_until(lambda: answers(self.host) or not process.is_alive(), 60) or not process.is_alive():
            tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-6:])
            raise Unable(f"The Docker engine did not start:\n    {tail}")
        return process

    def remove_bridge(self) -> None:
        """Remove the network device after the engine has ended."""
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)


def another_engine_runs() -> bool:
    """Return whether an engine runs in the same network; one in a container or pod keeps its own rules."""
    here = os.readlink("/proc/self/ns/net")
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "dockerd" and os.readlink(comm.parent / "ns/net") == here:
                return True
        except OSError:
            continue  # it has ended, or it is another user's
    return False


def _free_subnet(bridge: str) -> str:
    """Return an address for the bridge in a network that no device here is in."""
    shown = Path("/proc/net/fib_trie").read_text()
    taken = {ipaddress.ip_address(text) for text in re.findall(r"\|-- (\d+\.\d+\.\d+\.\d+)", shown)}
    for third in range(16, 250):
        network = ipaddress.ip_network(f"172.30.{third}.0/24")
        if not any(address in network for address in taken):
            return f"172.30.{third}.1/24"
    raise Unable(f"No free network for {bridge}.")


def answers(host: str | None) -> bool:
    """Return whether an engine answers there."""
    client = shutil.which("docker") or _made_client()
    if client is None:
        return False
    environment = dict(os.environ)
    if host:
        environment["DOCKER_HOST"] = host
    result = subprocess.run(
        [client, "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        env=environment,
        check=False,
        timeout=30,
    )
    return result.returncode == 0


def _made_client() -> str | None:
    client = RUN / "bin" / "docker"
    return str(client) if client.exists() else None


def machines_own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what `.run/env` adds for the client, which a shell may have sourced."""
    own = dict(environment)
    if own.get("DOCKER_CONFIG") == str(RUN / "docker"):
        del own["DOCKER_CONFIG"]
    places = own.get("PATH", "").split(os.pathsep)
    return {**own, "PATH": os.pathsep.join(place for place in places if place != str(RUN / "bin"))}


def has_buildx() -> bool:
    """Return whether the machine's docker client has the buildx plugin, which repo2docker needs."""
    environment = machines_own(os.environ)
    # A client that was made here still needs its configuration in `.run/env`, also when `up` runs again.
    client = shutil.which("docker", path=environment["PATH"])
    version = [client or "docker", "buildx", "version"]
    return client is not None and not subprocess.run(version, capture_output=True, env=environment).returncode


def make_client(root: Path) -> dict[str, str]:
    """Make docker and buildx of a Debian root usable from the host, with its own loader and C library."""
    triplet = next((root / "usr/lib").glob("*-linux-gnu")).name
    loader = next(
        path for path in (*root.glob("lib64/ld-linux*"), *root.glob(f"usr/lib/{triplet}/ld-linux*"))
    )
    wrappers = {
        RUN / "bin" / "docker": root / "usr/bin/docker",
        RUN / "plugins" / "docker-buildx": root / "usr/libexec/docker/cli-plugins/docker-buildx",
    }
    for wrapper, program in wrappers.items():
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(
            f'#!/bin/sh\nexec {loader} --library-path {root}/usr/lib/{triplet} --argv0 "$0" {program} "$@"\n'
        )
        wrapper.chmod(0o755)
    config = RUN / "docker" / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"cliPluginsExtraDirs": [str(RUN / "plugins")]}))
    return {"DOCKER_CONFIG": str(config.parent), "RABBIT2DOCKER_DOCKER__CONFIG": str(config.parent)}


def engine_root() -> Path:
    """Return the Debian root with engine and client."""
    return debian_root("docker-engine", PACKAGES)


def provide(ledger: Ledger) -> dict[str, str]:
    """Return the environment for a Docker engine that works, making one if there is none."""
    environment: dict[str, str] = {}
    given = os.environ.get("DOCKER_HOST")
    if not ledger.docker_host and answers(given):
        say(f"Docker engine: using the one at {given or 'the default socket'}")
        environment |= {"DOCKER_HOST": given} if given else {}
    else:
        environment |= _provide_made(ledger)
    if not has_buildx():
        if not machine.is_debian_root():
            raise Unable(
                "The docker client lacks its buildx plugin, which repo2docker needs. Install docker-buildx."
            )
        environment |= make_client(engine_root())
    return environment


def _provide_made(ledger: Ledger) -> dict[str, str]:
    if not machine.is_debian_root():
        raise Unable(
            "No Docker engine answers. Start Docker, or run this as root on Debian, where one can be made."
        )
    engine = MadeEngine(root=engine_root(), directory=RUN / "engine", name=machine.checkout_id())
    if not _made_client() and not shutil.which("docker"):
        make_client(engine.root)
    if not ledger.alive(f"engine-{engine.name}"):
        say("Docker engine: none answers, so one is run from Debian packages")
        with timed("Starting the Docker engine"):
            ledger.docker_host = engine.host
            engine.start(ledger)
    return {"DOCKER_HOST": engine.host}


def docker(environment: dict[str, str], *arguments: str, **options: object) -> str:
    """Run the docker client; raises Unable."""
    client = _made_client() or shutil.which("docker") or "docker"
    env = {**os.environ, **environment}
    return run([client, *arguments], env=env, **options).stdout.strip()
