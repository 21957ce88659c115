"""The services that pods and tests both reach, on the host's address of the bridge: registries, a git server, RabbitMQ."""

import urllib.error
import urllib.request
from pathlib import Path

from deploy.dev import machine
from deploy.dev.machine import (
    SYSTEM_PATH,
    Ledger,
    Unable,
    debian_root,
    debian_root_path,
    say,
    timed,
    wait_until,
)
from deploy.dev.services import PACKAGES

from tests.cluster.harness import processes
from tests.cluster.harness.control import write_if_different
from tests.cluster.harness.layout import (
    AMQP_PORT,
    GIT_PORT,
    HOST,
    LOGS,
    MANAGEMENT_PORT,
    PRIVATE_REGISTRY,
    REGISTRY,
    STATE,
)

# In the order in which they are to end.
NAMES = ("rabbitmq", "epmd", "private-registry", "registry", "git")
ACCOUNTS = {"pusher": "pushes", "puller": "pulls"}
"""The accounts of the private registry, with their passwords."""
GIT_ROOT = STATE / "git"
AMQP_URL = f"amqp://guest:guest@{HOST}:{AMQP_PORT}/"
MANAGEMENT_URL = f"http://guest:guest@{HOST}:{MANAGEMENT_PORT}/"
# Not those of an Erlang that the owner of the machine may run, nor any that an outgoing connection may have taken.
_EPMD_PORT = "24369"
_DISTRIBUTION_PORT = "25682"
_READY = 120.0

# The root is the one that `make up` makes its images from; what the service writes lies in the state directory.
_IN_ROOT = """
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
mkdir -p srv
mount --bind "$2" srv
shift 2
exec chroot . "$@"
"""
_REGISTRY = """version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: /srv/images}}, delete: {{enabled: true}}}}
http: {{addr: "{}"}}
"""
_LOGIN = "auth: {htpasswd: {realm: accounts, path: /srv/accounts}}\n"
# The passwords of ACCOUNTS as bcrypt keeps them, which Python cannot compute everywhere.
_HASHES = """pusher:$2b$05$abcdefghijklmnopqrstuuXB4aLF2pf6EXP82ZCs5pyCpj.xiAasi
puller:$2b$05$abcdefghijklmnopqrstuuJK7q2d0lbOHJuSUK0aMBDAwPlpsjPYm
"""
_RABBITMQ = f"""listeners.tcp.1 = {HOST}:{AMQP_PORT}
management.tcp.ip = {HOST}
management.tcp.port = {MANAGEMENT_PORT}
loopback_users = none
"""


def start(ledger: Ledger) -> None:
    """Start what does not run, and wait until all of it answers; raises Unable."""
    root = debian_root("services", PACKAGES)
    if not ledger.alive("rabbitmq"):
        # The script that starts it is what is noted. Was that killed, the broker itself still has the ports.
        processes.kill_all(lambda: _erlang(root))
        ledger.remove("epmd")
    for name in ("registry", "private-registry", "rabbitmq"):
        (STATE / name).mkdir(parents=True, exist_ok=True)
    _start_registries(root, ledger)
    _start_rabbitmq(root, ledger)
    start_git(ledger)
    with timed("Waiting for the registries and RabbitMQ"):
        wait_for_http("registry", f"http://{REGISTRY}/v2/")
        wait_for_http("private-registry", f"http://{PRIVATE_REGISTRY}/v2/")
        wait_for_http("rabbitmq", f"http://{HOST}:{MANAGEMENT_PORT}/api/auth")


def stop(ledger: Ledger) -> None:
    """End all of it; harmless when there is nothing."""
    for name in NAMES:
        for item in ledger.processes:
            if item.name == name:
                if item.is_alive():
                    say(f"Ending {name}")
                item.end()
    root = debian_root_path("services", PACKAGES)
    if root.exists():
        processes.kill_all(lambda: processes.in_root(root))


def _erlang(root: Path) -> list[int]:
    names = ("beam.smp", "erl_child_setup", "epmd", "inet_gethost")
    return [pid for pid in processes.in_root(root) if processes.name_of(pid) in names]


def start_git(ledger: Ledger, host: str = HOST) -> None:
    """Serve the repositories below GIT_ROOT on an address of this machine."""
    GIT_ROOT.mkdir(parents=True, exist_ok=True)
    if not ledger.alive("git"):
        command = ["git", "daemon", "--reuseaddr", "--export-all", f"--listen={host}", f"--port={GIT_PORT}"]
        command += [f"--base-path={GIT_ROOT}", str(GIT_ROOT)]
        machine.start("git", command, log=LOGS / "git.log", ledger=ledger)


def git_url(host: str = HOST) -> str:
    """Return what the URLs of those repositories begin with."""
    return f"git://{host}:{GIT_PORT}"


def wait_for_http(name: str, url: str) -> None:
    """Wait until a server answers anything; raises Unable with the end of its log."""

    def answers() -> bool:
        try:
            urllib.request.urlopen(url, timeout=2)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    if not wait_until(answers, _READY):
        log = LOGS / f"{name}.log"
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise Unable(f"{name} did not start:\n{tail}")


def _start(name: str, root: Path, command: list[str], ledger: Ledger) -> None:
    """Start a program of the Debian root in a mount namespace of its own and in the machine's network."""
    if ledger.alive(name):
        return
    state = STATE / ("rabbitmq" if name == "epmd" else name)
    inside = ["unshare", "-m", "--propagation", "private", "sh", "-c", _IN_ROOT, "sh", str(root), str(state)]
    machine.start(name, [*inside, *command], log=LOGS / f"{name}.log", ledger=ledger)


def _start_registries(root: Path, ledger: Ledger) -> None:
    write_if_different(STATE / "private-registry/accounts", _HASHES)
    for name, address, login in (("registry", REGISTRY, ""), ("private-registry", PRIVATE_REGISTRY, _LOGIN)):
        write_if_different(STATE / name / "config.yml", _REGISTRY.format(address) + login)
        _start(name, root, ["docker-registry", "serve", "/srv/config.yml"], ledger)


def _start_rabbitmq(root: Path, ledger: Ledger) -> None:
    state = STATE / "rabbitmq"
    write_if_different(state / "rabbitmq.conf", _RABBITMQ)
    write_if_different(state / "enabled_plugins", "[rabbitmq_management].\n")
    # RabbitMQ would start a name server that survives it, and that the ledger would not know of.
    _start("epmd", root, ["epmd", "-address", "127.0.0.1", "-port", _EPMD_PORT], ledger)
    variables = {
        "PATH": f"/usr/lib/rabbitmq/bin:{SYSTEM_PATH}",
        "HOME": "/srv",
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": _EPMD_PORT,
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_DIST_PORT": _DISTRIBUTION_PORT,
        "RABBITMQ_MNESIA_BASE": "/srv/data",
        "RABBITMQ_LOG_BASE": "/srv/log",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": "/srv/rabbitmq.conf",
        "RABBITMQ_ENABLED_PLUGINS_FILE": "/srv/enabled_plugins",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    environment = [f"{name}={value}" for name, value in variables.items()]
    _start("rabbitmq", root, ["env", "-i", *environment, "rabbitmq-server"], ledger)
