"""The identities in the cluster: one authority, a certificate and a kubeconfig for each component."""

import os
from pathlib import Path

from deploy.dev.machine import run

from tests.cluster.harness.layout import API_SERVICE, API_URL, HOST, KEYS, KUBECONFIG, NODES, STATE

AUTHORITY = KEYS / "ca.crt"
SERVICE_ACCOUNT_KEY = KEYS / "sa.key"
SERVICE_ACCOUNT_PUBLIC = KEYS / "sa.pub"
_DAYS = "3650"
# The loopback address is for tests that put a proxy before the API server.
_NAMES = (
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,"
    f"IP:127.0.0.1,IP:{API_SERVICE},IP:{HOST}"
)
FRONT_PROXY = "front-proxy-client"
"""As which the API server calls the API servers that it has others answer for."""
_KEDA_NAMES = "DNS:keda-metrics-apiserver.keda.svc,IP:127.0.0.1"
_COMPONENTS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    **{node.name: f"/O=system:nodes/CN=system:node:{node.name}" for node in NODES},
}


def provide() -> None:
    """Make what is missing of keys, certificates and kubeconfigs."""
    KEYS.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not AUTHORITY.exists():
        _authority()
    _certificate("apiserver", "/CN=kube-apiserver", f"extendedKeyUsage=serverAuth\nsubjectAltName={_NAMES}\n")
    client = "extendedKeyUsage=clientAuth\n"
    _certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client", client)
    _certificate("front-proxy", f"/CN={FRONT_PROXY}", client)
    both = "extendedKeyUsage=serverAuth,clientAuth\n"
    _certificate("keda", "/CN=keda", f"{both}subjectAltName={_KEDA_NAMES}\n")
    for name, subject in _COMPONENTS.items():
        _certificate(name, subject, client)
        _write_kubeconfig(name)
    if not SERVICE_ACCOUNT_PUBLIC.exists():
        _openssl("genrsa", "-out", str(SERVICE_ACCOUNT_KEY), "2048")
        _openssl("rsa", "-in", str(SERVICE_ACCOUNT_KEY), "-pubout", "-out", str(SERVICE_ACCOUNT_PUBLIC))


def kubeconfig(name: str) -> Path:
    """Return the file with which a component reaches the API server."""
    return KUBECONFIG if name == "admin" else STATE / f"{name}.kubeconfig"


def pair(name: str) -> tuple[Path, Path]:
    """Return certificate and key of a component."""
    return KEYS / f"{name}.crt", KEYS / f"{name}.key"


def _openssl(*arguments: str) -> None:
    run(["openssl", *arguments], umask=0o077)


def _key(name: str) -> str:
    key = str(pair(name)[1])
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    return key


def _authority() -> None:
    usage = "keyUsage=critical,keyCertSign,digitalSignature"
    request = (
        "req",
        "-x509",
        "-new",
        "-key",
        _key("ca"),
        "-days",
        _DAYS,
        "-subj",
        "/CN=rabbit2docker-cluster",
    )
    _openssl(*request, "-addext", usage, "-out", str(AUTHORITY))


def _certificate(name: str, subject: str, extensions: str) -> None:
    certificate, _ = pair(name)
    if certificate.exists():
        return
    request, extension_file = KEYS / f"{name}.csr", KEYS / f"{name}.ext"
    extension_file.write_text(
        f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n{extensions}"
    )
    _openssl("req", "-new", "-key", _key(name), "-subj", subject, "-out", str(request))
    authority = ("-CA", str(AUTHORITY), "-CAkey", str(KEYS / "ca.key"), "-CAcreateserial")
    signing = (
        "x509",
        "-req",
        "-in",
        str(request),
        *authority,
        "-days",
        _DAYS,
        "-extfile",
        str(extension_file),
    )
    new = certificate.with_suffix(".new")
    _openssl(*signing, "-out", str(new))
    new.rename(certificate)
    for leftover in (request, extension_file):
        leftover.unlink()


def _write_kubeconfig(name: str) -> None:
    certificate, key = pair(name)
    file = kubeconfig(name)
    if file.exists():
        return
    text = f"""apiVersion: v1
kind: Config
clusters:
- name: rabbit2docker
  cluster: {{server: "{API_URL}", certificate-authority: "{AUTHORITY}"}}
users:
- name: {name}
  user: {{client-certificate: "{certificate}", client-key: "{key}"}}
contexts:
- name: rabbit2docker
  context: {{cluster: rabbit2docker, user: {name}}}
current-context: rabbit2docker
"""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as target:
        target.write(text)
