"""KEDA on the cluster that is made here: its operator, and the API server that answers for the metrics of other servers.

Both are processes of the machine and call the API server as its administrator; what KEDA may do is its own chart's affair.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.dev.machine import Ledger, Unable, locked, say, wait_until

from tests.cluster.harness import control, keys, layout, programs
from tests.cluster.harness.layout import BIN, HOST, KUBECONFIG, LOCK, LOGS, STATE

OPERATOR = "keda-operator"
ADAPTER = "keda-adapter"
NAMES = (ADAPTER, OPERATOR)
_NAMESPACE = "keda"
_SERVICE = "keda-metrics-apiserver"
_API = "v1beta1.external.metrics.k8s.io"
_CERTIFICATES = STATE / "keda"
_ADAPTER_PORT = 18443
_ADAPTER_METRICS_PORT = 18080
_HEALTH = "127.0.0.1:18081"
_OPERATOR = "127.0.0.1:19666"
_READY = 120.0
_ENVIRONMENT = (
    f"KUBECONFIG={KUBECONFIG}",
    f"POD_NAMESPACE={_NAMESPACE}",
    f"KEDA_CLUSTER_OBJECT_NAMESPACE={_NAMESPACE}",
    "WATCH_NAMESPACE=",
)
_COMMANDS: dict[str, tuple[str, ...]] = {
    OPERATOR: (
        f"--cert-dir={_CERTIFICATES}",
        f"--metrics-service-bind-address={_OPERATOR}",
        f"--health-probe-bind-address={_HEALTH}",
        "--enable-prometheus-metrics=false",
    ),
    ADAPTER: (
        f"--lister-kubeconfig={KUBECONFIG}",
        f"--authentication-kubeconfig={KUBECONFIG}",
        f"--authorization-kubeconfig={KUBECONFIG}",
        f"--bind-address={HOST}",
        f"--secure-port={_ADAPTER_PORT}",
        f"--port={_ADAPTER_METRICS_PORT}",
        f"--client-ca-file={_CERTIFICATES / 'ca.crt'}",
        f"--tls-cert-file={_CERTIFICATES / 'tls.crt'}",
        f"--tls-private-key-file={_CERTIFICATES / 'tls.key'}",
        f"--cert-dir={_CERTIFICATES}",
        f"--metrics-service-address={_OPERATOR}",
    ),
}


@contextmanager
def running() -> Iterator[None]:
    """Have KEDA on the cluster until the end of the block. Its kinds of objects stay known."""
    programs.provide(programs.KEDA.name)
    control.kubectl("apply", "--server-side", f"--filename={BIN / programs.KEDA.manifest}")
    with locked(LOCK):
        ledger = layout.ledger()
        _start(ledger)
    try:
        if not wait_until(_answers, _READY):
            raise Unable(f"KEDA did not become ready. Its logs are {LOGS}/keda-*.log.")
        yield
    finally:
        with locked(LOCK):
            stop(layout.ledger())


def _start(ledger: Ledger) -> None:
    _provide_certificates()
    _apply(*_objects())
    for name in reversed(NAMES):
        if not ledger.alive(name):
            command: list[str | Path] = ["env", *_ENVIRONMENT, BIN / name, *_COMMANDS[name]]
            control.start_program(name, command, ledger)


def stop(ledger: Ledger) -> None:
    """End KEDA; harmless when it does not run."""
    started = [item for item in ledger.processes if item.name in NAMES]
    if not started:
        return
    for item in started:
        if item.is_alive():
            say(f"Ending {item.name}")
            item.end()
        ledger.remove(item.name)
    # Where nothing answers for a group of the API, namespaces are never removed.
    with suppress(Unable):
        control.kubectl("delete", "apiservice", _API, "--ignore-not-found")


def log() -> str:
    """Return what the operator and the API server of metrics have logged."""
    files = (LOGS / f"{name}.log" for name in NAMES)
    return "\n".join(file.read_text(errors="replace") for file in files if file.exists())


def _answers() -> bool:
    try:
        condition = '{.status.conditions[?(@.type=="Available")].status}'
        return control.kubectl("get", "apiservice", _API, f"--output=jsonpath={condition}") == "True"
    except Unable:
        return False


def _provide_certificates() -> None:
    _CERTIFICATES.mkdir(parents=True, exist_ok=True)
    certificate, key = keys.pair("keda")
    for name, file in (("ca.crt", keys.AUTHORITY), ("tls.crt", certificate), ("tls.key", key)):
        link = _CERTIFICATES / name
        if not link.is_symlink():
            link.symlink_to(file)


def _apply(*objects: dict[str, object]) -> None:
    file = _CERTIFICATES / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    control.kubectl("apply", f"--filename={file}")


def _objects() -> Iterator[dict[str, object]]:
    """Yield what has the API server pass requests for external metrics on to the process outside of all pods."""
    here = {"name": _SERVICE, "namespace": _NAMESPACE}
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": here,
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": _ADAPTER_PORT}]},
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**here, "labels": {"kubernetes.io/service-name": _SERVICE}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": _ADAPTER_PORT}],
        "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
    }
    yield {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": _API},
        "spec": {
            "service": here,
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": b64encode(keys.AUTHORITY.read_bytes()).decode(),
        },
    }
