"""The network of the cluster: bridges, routes, and the settings of the kernel that it changes."""

import json
import subprocess
from pathlib import Path

from deploy.dev.engine import another_engine_runs
from deploy.dev.machine import SYSTEM_PATH, Unable, checkout_id, run

from tests.cluster.harness.layout import (
    BRIDGE,
    NODES,
    NODES_NETWORK,
    PODS_NETWORK,
    ROUTING_TABLE,
    SERVICES_NETWORK,
    STATE,
)

_SYSCTLS = STATE / "sysctls.json"
_FORWARDING = "net/ipv4/ip_forward"
# All but the first are changed by the kubelet.
_CHANGED = (_FORWARDING, "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
_OWNER = f"rabbit2docker {checkout_id()}"
_ACCEPTS = "rabbit2docker cluster"
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LANG": "C"}


def other_owner() -> str | None:
    """Return the owner of the cluster that uses this machine's network, unless that is this checkout."""
    alias = Path("/sys/class/net", BRIDGE, "ifalias")
    owner = alias.read_text().strip() if alias.exists() else _OWNER
    return None if owner == _OWNER else owner or "of an unknown owner"


def refuse_if_taken() -> None:
    """Raise Unable when the network belongs to another checkout's cluster."""
    if owner := other_owner():
        raise Unable(
            f"Another checkout's cluster ({owner}) uses this machine's network device {BRIDGE}, and there can be only "
            "one. End that one first: `make cluster-down` in its checkout, or, if that is gone, "
            f"`ip link del {BRIDGE}`."
        )


def up() -> None:
    """Make what is missing."""
    refuse_if_taken()
    _remember_sysctls()
    Path("/proc/sys", _FORWARDING).write_text("1")
    _bridge(BRIDGE)
    _ip("link", "set", BRIDGE, "alias", _OWNER)
    # Pods reach each other and this machine, and nothing else: a test that needs the internet fails everywhere.
    table = ("table", str(ROUTING_TABLE))
    _ip("route", "replace", *table, "unreachable", "default")
    _ip("route", "replace", *table, NODES_NETWORK, "dev", BRIDGE)
    if str(ROUTING_TABLE) not in _ip("rule", "list", "pref", str(ROUTING_TABLE)):
        _ip("rule", "add", "pref", str(ROUTING_TABLE), "from", PODS_NETWORK, "lookup", str(ROUTING_TABLE))
    for node in NODES:
        _ip("addr", "replace", f"{node.address}/24", "dev", BRIDGE)
        _bridge(node.pods_bridge)
        _ip("addr", "replace", f"{node.pods_gateway}/24", "dev", node.pods_bridge)
        _ip("route", "replace", *table, node.pods_network, "dev", node.pods_bridge)
    # An untranslated address of a service must not leave the machine by the default route.
    _ip("route", "replace", SERVICES_NETWORK, "dev", BRIDGE)
    _let_pods_through()


def down() -> None:
    """Remove what `up` and kube-proxy made; harmless when there is nothing."""
    if Path("/sys/class/net", BRIDGE).exists():
        _quietly("ip", "rule", "del", "pref", str(ROUTING_TABLE))
        _quietly("ip", "route", "flush", "table", str(ROUTING_TABLE))
        for device in (*(node.pods_bridge for node in NODES), BRIDGE):
            _quietly("ip", "link", "del", device)
        for family in ("ip", "ip6"):
            _quietly("nft", "delete", "table", family, "kube-proxy")
        _forget_pods()
    _restore_sysctls()


def _ip(*arguments: str) -> str:
    return run(["ip", *arguments], env=_ENVIRONMENT).stdout


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False, env=_ENVIRONMENT)


def _bridge(name: str) -> None:
    if not Path("/sys/class/net", name).exists():
        _ip("link", "add", name, "type", "bridge")
    # By default it takes the lowest address of its ports, so that it changes when a pod comes or goes, and the others
    # send to the old one until their neighbour tables learn better: half a minute of timeouts.
    _ip("link", "set", name, "address", Path("/sys/class/net", name, "address").read_text().strip())
    _ip("link", "set", name, "up")


def _chains_that_drop() -> list[str]:
    """Return other programs' forward chains, each as "table chain", in which a drop is final."""
    listing = json.loads(run(["nft", "--json", "list", "chains"], env=_ENVIRONMENT).stdout)
    chains = [item["chain"] for item in listing["nftables"] if "chain" in item]
    return [
        f"{chain['table']} {chain['name']}"
        for chain in chains
        if (chain["family"], chain.get("hook"), chain.get("policy")) == ("ip", "forward", "drop")
    ]


def _let_pods_through() -> None:
    """Accept pods' packets where a Docker engine on this machine set the forwarding policy to drop."""
    _forget_pods()
    for chain in _chains_that_drop():
        for direction in ("saddr", "daddr"):
            rule = f'ip {direction} {PODS_NETWORK} counter accept comment "{_ACCEPTS}"'
            run(["nft", f"insert rule ip {chain} {rule}"], env=_ENVIRONMENT)


def _forget_pods() -> None:
    listing = subprocess.run(
        ["nft", "--json", "list", "ruleset"], capture_output=True, text=True, check=False, env=_ENVIRONMENT
    )
    for item in json.loads(listing.stdout or '{"nftables": []}')["nftables"]:
        rule = item.get("rule", {})
        if rule.get("comment") == _ACCEPTS:
            where = (rule["family"], rule["table"], rule["chain"], "handle", str(rule["handle"]))
            _quietly("nft", "delete", "rule", *where)


def _remember_sysctls() -> None:
    if _SYSCTLS.exists():
        return
    STATE.mkdir(parents=True, exist_ok=True)
    _SYSCTLS.write_text(json.dumps({name: Path("/proc/sys", name).read_text().strip() for name in _CHANGED}))


def _restore_sysctls() -> None:
    if not _SYSCTLS.exists():
        return
    for name, value in json.loads(_SYSCTLS.read_text()).items():
        # A Docker engine that came after us found forwarding on and relies on it.
        if name != _FORWARDING or not another_engine_runs():
            Path("/proc/sys", name).write_text(value)
    _SYSCTLS.unlink()
