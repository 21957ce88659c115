"""A policy engine on the cluster that is made here: kube-router, which enforces the network policies of one node's pods.

All nodes share one network, in which there can be one kube-router. It has the tables of legacy iptables to itself, as it
writes whole tables back: those of nftables belong to kube-proxy and to Docker engines of this machine.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.dev.machine import SYSTEM_PATH, need_packages, run, start

from tests.cluster.harness import layout, programs
from tests.cluster.harness.layout import BIN, BRIDGE, KUBECONFIG, LOGS, SERVICES_NETWORK, STATE, Node

METADATA = "169.254.169.254"
"""Where clouds have their metadata service."""
NAME = "kube-router"
_TOOLS = STATE / "policy-tools"
_CHAINS = "KUBE-"
_PACKAGES = {"iptables-legacy": "iptables", "ipset": "ipset"}
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LANG": "C"}


@contextmanager
def enforced(node: Node) -> Iterator[None]:
    """Enforce network policies for the pods of a node until the end of the block."""
    need_packages(_PACKAGES, "Enforcing network policies")
    programs.provide(NAME)
    forget()
    command: list[str | Path] = [
        *("env", f"PATH={_tools()}:{SYSTEM_PATH}", BIN / NAME),
        *(f"--kubeconfig={KUBECONFIG}", f"--hostname-override={node.name}"),
        *("--run-firewall=true", "--run-router=false", "--run-service-proxy=false"),
        *(f"--service-cluster-ip-range={SERVICES_NETWORK}", "--health-port=0"),
    ]
    ledger = layout.ledger()
    process = start(NAME, command, log=LOGS / f"{NAME}.log", ledger=ledger)
    try:
        yield
    finally:
        process.end()
        ledger.remove(NAME)
        forget()


def _tools() -> Path:
    """Return a directory in which `iptables` is the legacy one."""
    _TOOLS.mkdir(parents=True, exist_ok=True)
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            link = _TOOLS / f"{name}{suffix}"
            if not link.is_symlink():
                link.symlink_to(f"/usr/sbin/{name}-legacy{suffix}")
    return _TOOLS


def forget() -> None:
    """Remove the rules and sets of a policy engine; harmless when there are none."""
    saved = _printed("iptables-legacy-save", "-t", "filter")
    if _CHAINS in saved:
        kept = "".join(line for line in saved.splitlines(keepends=True) if _CHAINS not in line)
        subprocess.run(
            ["iptables-legacy-restore"],
            input=kept,
            text=True,
            capture_output=True,
            check=True,
            env=_ENVIRONMENT,
        )
    for name in _printed("ipset", "list", "-name").split():
        if name.startswith(_CHAINS):
            run(["ipset", "destroy", name], env=_ENVIRONMENT)


def _printed(*command: str) -> str:
    """Return what a program prints; nothing where it is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=_ENVIRONMENT).stdout
    except FileNotFoundError:
        return ""


class _Metadata(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"role credentials\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent."""


@contextmanager
def metadata_service() -> Iterator[None]:
    """Answer pods at the address of a cloud's metadata service until the end of the block."""
    run(["ip", "addr", "replace", f"{METADATA}/32", "dev", BRIDGE], env=_ENVIRONMENT)
    try:
        with ThreadingHTTPServer((METADATA, 80), _Metadata) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()
    finally:
        run(["ip", "addr", "del", f"{METADATA}/32", "dev", BRIDGE], env=_ENVIRONMENT)
