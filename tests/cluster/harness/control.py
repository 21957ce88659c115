"""The control plane: etcd, the API server, the controllers, the scheduler, and the proxy of all nodes."""

from pathlib import Path

from deploy.dev import machine
from deploy.dev.machine import Ledger, Unable, run, wait_until

from tests.cluster.harness import keys
from tests.cluster.harness.layout import (
    API_PORT,
    BIN,
    HOST,
    KUBECONFIG,
    LOGS,
    NODES_NETWORK,
    PATH,
    PODS_NETWORK,
    SERVICES_NETWORK,
    STATE,
)

API_SERVER = "kube-apiserver"
# In the order in which they are to end: etcd last, so that none of them waits for it in vain.
NAMES = ("kube-proxy", "kube-scheduler", "kube-controller-manager", API_SERVER, "etcd")
NODE_GRACE = 20
"""Seconds of silence after which a node counts as lost. Kubernetes takes 50, and pods leave 300 seconds later."""
_TOLERATION = 10
_READY_SECONDS = 180
_ETCD = "http://127.0.0.1:2379"
_ETCD_PEERS = "http://127.0.0.1:2380"


def start(ledger: Ledger) -> None:
    """Start what does not run; raises Unable if the API server does not become ready."""
    write_if_different(_PROXY_FILE, _PROXY)
    for name in reversed(NAMES):
        start_one(name, ledger)
        if name == API_SERVER and not wait_until(_answers, _READY_SECONDS):
            # The controllers end for good when it is not ready within ten seconds, as on a busy machine.
            raise Unable(f"The API server did not become ready. Its log is {LOGS / f'{API_SERVER}.log'}.")


def _answers() -> bool:
    try:
        kubectl("get", "--raw", "/readyz")
    except Unable:
        return False
    return True


def kubectl(*arguments: str) -> str:
    """Run kubectl on this cluster and return what it prints; raises Unable."""
    return run([BIN / "kubectl", f"--kubeconfig={KUBECONFIG}", *arguments], timeout=60).stdout


def start_one(name: str, ledger: Ledger) -> None:
    """Start one component if it does not run."""
    start_program(name, [BIN / name, *_FLAGS[name]], ledger)


def start_program(name: str, command: list[str | Path], ledger: Ledger) -> None:
    """Start a program of the cluster, with its PATH, if it does not run."""
    if not ledger.alive(name):
        machine.start(name, ["env", f"PATH={PATH}", *command], log=LOGS / f"{name}.log", ledger=ledger)


def write_if_different(file: Path, text: str) -> None:
    """Write a file; kube-proxy ends when its configuration is touched."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def _as(name: str) -> tuple[str, ...]:
    return (f"--kubeconfig={keys.kubeconfig(name)}", "--bind-address=127.0.0.1", "--leader-elect=false")


_SERVER_CERTIFICATE, _SERVER_KEY = keys.pair("apiserver")
_KUBELET_CERTIFICATE, _KUBELET_KEY = keys.pair("apiserver-kubelet")
_FRONT_PROXY_CERTIFICATE, _FRONT_PROXY_KEY = keys.pair("front-proxy")
_PROXY_FILE = STATE / "kube-proxy.yaml"
# Conntrack numbers of 0 leave the kernel's settings alone.
_PROXY = f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: "{keys.kubeconfig("proxy")}"}}
clusterCIDR: {PODS_NETWORK}
hostnameOverride: node-1
bindAddress: {HOST}
healthzBindAddress: {HOST}:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: [{NODES_NETWORK}]
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""
_FLAGS: dict[str, tuple[str, ...]] = {
    "etcd": (
        "--name=rabbit2docker",
        f"--data-dir={STATE / 'etcd'}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEERS}",
        f"--initial-advertise-peer-urls={_ETCD_PEERS}",
        f"--initial-cluster=rabbit2docker={_ETCD_PEERS}",
    ),
    API_SERVER: (
        f"--etcd-servers={_ETCD}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICES_NETWORK}",
        f"--tls-cert-file={_SERVER_CERTIFICATE}",
        f"--tls-private-key-file={_SERVER_KEY}",
        f"--client-ca-file={keys.AUTHORITY}",
        f"--kubelet-client-certificate={_KUBELET_CERTIFICATE}",
        f"--kubelet-client-key={_KUBELET_KEY}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys.SERVICE_ACCOUNT_PUBLIC}",
        f"--service-account-signing-key-file={keys.SERVICE_ACCOUNT_KEY}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        # API servers that answer for this one, such as that of KEDA's metrics, believe it who calls.
        f"--requestheader-client-ca-file={keys.AUTHORITY}",
        f"--requestheader-allowed-names={keys.FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={_FRONT_PROXY_CERTIFICATE}",
        f"--proxy-client-key-file={_FRONT_PROXY_KEY}",
        *(f"--default-{reason}-toleration-seconds={_TOLERATION}" for reason in ("not-ready", "unreachable")),
    ),
    "kube-controller-manager": (
        *_as("controller-manager"),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys.SERVICE_ACCOUNT_KEY}",
        f"--root-ca-file={keys.AUTHORITY}",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={NODE_GRACE}s",
        "--horizontal-pod-autoscaler-sync-period=2s",
    ),
    "kube-scheduler": _as("scheduler"),
    "kube-proxy": (f"--config={_PROXY_FILE}",),
}
